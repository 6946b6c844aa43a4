"""What a run does beside its steps, to be timed: its start, its evaluation, its checkpoints."""

from __future__ import annotations

import os
import pathlib
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np

from rc3_jax.config import PretrainSettings
from rc3_jax.evaluation.pair_encoder import PairEncoder
from rc3_jax.evaluation.ranking import ranks_both_ways
from rc3_jax.evaluation.retrieval import seen, visual_rows
from rc3_jax.observe.step_bench import drawn_state, rows_of
from rc3_jax.paths import cache_folder
from rc3_jax.settings import ConfigError
from rc3_jax.training.aot import abstract_run, vocabulary_size
from rc3_jax.training.checkpoint import Checkpoints
from rc3_jax.training.run import prepare_run

STAGES = {
    "first line": "",
    "data and vocabulary": " parameters, vocabulary ",
    "compiling": "compiling the step",
    "compiled": "compiled the step",
    "first step": "step 1/",
}
"""Stage of a start -> what the line that ends it holds."""
Seconds = dict[str, dict[str, float]]
"""Stage -> `seconds` (median of the rounds), `least`, `most`, and what follows from these."""


def time_starts(program: Sequence[str]) -> list[dict[str, Any]]:
    """Starts a training program twice, each time up to the end of its first step.

    The caches of vocabularies and compiled programs, in a folder of their own, are empty at the
    first start and hold at the second what the first one put there.

    Args:
      program: the program in launch/ and its flags.

    Returns:
      `cache` (`empty` or `warm`) and `stages`, the `seconds` from the start to the end of each.

    Raises:
      ConfigError: if the program ends before its first step; says what it said last.
    """
    stored = os.environ.get("HF_HOME") or cache_folder("").parent / "huggingface"
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {
            "XDG_CACHE_HOME": f"{folder}/cache",
            "HF_HOME": str(stored),
            "PYTHONUNBUFFERED": "1",
        }
        environment.pop("JAX_COMPILATION_CACHE_DIR", None)
        return [
            {
                "cache": cache,
                "stages": _start([*program, f"--workdir={folder}/{cache}"], environment),
            }
            for cache in ("empty", "warm")
        ]


def _start(program: Sequence[str], environment: dict[str, str]) -> Seconds:
    """Runs a program until the last stage has ended."""
    found: Seconds = {}
    waiting, last = list(STAGES), ""
    begun = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, *program, "--config.log_every=1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        start_new_session=True,  # ended with the processes that read its data
    ) as process:
        assert process.stdout
        try:
            while waiting and (line := process.stdout.readline()):
                if STAGES[waiting[0]] in line:
                    found[waiting.pop(0)] = dict(seconds=time.perf_counter() - begun)
                last = line
        finally:
            os.killpg(process.pid, signal.SIGKILL)
    if waiting:
        raise ConfigError(last.strip().removeprefix("error: "))
    return found


def time_evaluation(config: ml_collections.ConfigDict, rounds: int) -> dict[str, Any]:
    """Encodes and ranks the held-out images and all of their texts, with a model drawn at random.

    A configuration without sources takes generated scenes.

    Returns:
      `name`, numbers of `images` and `texts`, `batch` (of the encoder), and `stages`: reading the
      pictures, encoding images and texts, ranking each against all of the other side.

    Raises:
      ConfigError, DataError: invalid settings; sources that cannot be read or hold no images.
    """
    if not config.data.sources:
        config.data.sources = dict(scenes=dict(type="scenes", strict=1000, weak=1000))
    run = prepare_run(config)
    records, size = run.corpus.heldout, run.config.evaluation.batch_size
    if not records:
        raise ConfigError("no images are held out; raise evaluation.images, or name data that are")
    spoken = [
        (place, text)
        for place, record in enumerate(records)
        for texts in record.texts.values()
        for text in texts
    ]
    owners, ids = np.array([n for n, _ in spoken]), run.tokenizer.encode([t for _, t in spoken])
    params = drawn_state(run).params
    encoder = PairEncoder(run.model, run.mesh, size)
    rows = visual_rows(records, run.config)
    fields = seen(rows, run.config.evaluation.modes[0])
    images = encoder.image_vectors(params, len(records), fields)
    texts = encoder.text_vectors(params, ids)
    work: dict[str, tuple[int, Callable[[], object]]] = {
        "read images": (len(records), lambda: visual_rows(records, run.config)),
        "encode images": (
            len(records),
            lambda: encoder.image_vectors(params, len(records), fields),
        ),
        "encode texts": (len(texts), lambda: encoder.text_vectors(params, ids)),
        "rank pairs": (len(records) * len(texts), lambda: ranks_both_ways(images, texts, owners)),
    }
    stages = {}
    for name, (count, function) in work.items():
        times = []
        for _ in range(rounds):
            begun = time.perf_counter()
            function()
            times.append(time.perf_counter() - begun)
        taken = _summary(times)
        stages[name] = taken | dict(a_second=count / taken["seconds"])
    about = dict(name=run.config.name, images=len(records), texts=len(texts), batch=size)
    return about | dict(stages=stages)


def time_checkpoints(
    config: ml_collections.ConfigDict | PretrainSettings, rounds: int
) -> dict[str, Any]:
    """Saves and restores a state drawn at random, in the folder for temporary files.

    Returns:
      `name`, `state_mib` (the arrays), `files_mib` (as stored), and `stages`: how long a save keeps
      the training waiting, how long until it is complete, and how long to restore it. The system may
      still hold the files in memory.

    Raises:
      ConfigError: for invalid settings.
    """
    run = abstract_run(config, jax.devices(), rows_of(config), vocabulary_size(config))
    state = jax.block_until_ready(drawn_state(run))
    taken: dict[str, list[float]] = {"save blocks": [], "saved": [], "restored": []}
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        for step in range(rounds):
            with Checkpoints(folder, keep=1) as checkpoints:
                begun = time.perf_counter()
                checkpoints.save(step, state)
                taken["save blocks"].append(time.perf_counter() - begun)
            taken["saved"].append(time.perf_counter() - begun)  # closing waits for the files
            with Checkpoints(folder, keep=1) as checkpoints:
                begun = time.perf_counter()
                jax.block_until_ready(checkpoints.restore(run.abstract_state, lambda line: None))
                taken["restored"].append(time.perf_counter() - begun)
        stored = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) / 2**20
    stages = {}
    for name, seconds in taken.items():
        stages[name] = _summary(seconds)
        stages[name]["mib_a_second"] = size / stages[name]["seconds"]
    about = dict(name=config.name, state_mib=round(size, 1), files_mib=round(stored / 2**20, 1))
    return about | dict(stages=stages)


def _summary(seconds: Sequence[float]) -> dict[str, float]:
    return dict(seconds=statistics.median(seconds), least=min(seconds), most=max(seconds))
