"""Fine-tuning on a task: train, select on dev, score every language of the test."""

from __future__ import annotations

import json
import pathlib
import shutil
from typing import Any

import jax
import ml_collections
from jax.experimental.multihost_utils import sync_global_devices
from rich.console import Console

from rc3_jax.convert.output import write_json
from rc3_jax.data.record import DataError
from rc3_jax.data.tokenizer import FILE_NAME
from rc3_jax.observe.log import speaker
from rc3_jax.parallel.mesh import batch_devices, make_mesh
from rc3_jax.settings import ConfigError
from rc3_jax.tasks.base import Example, TaskData, checksum
from rc3_jax.tasks.benchmarks import TASKS
from rc3_jax.tasks.evaluate import (
    SMALLER_BATCH,
    check_settings,
    examples_of,
    score_languages,
    tell_coverage,
)
from rc3_jax.tasks.make_head import make_head
from rc3_jax.tasks.results import APART, SCORES, result_of, write_result
from rc3_jax.tasks.train import train
from rc3_jax.training.checkpoint import PARAMS, save_params
from rc3_jax.training.load import LoadedModel, load_model, params_checksum
from rc3_jax.training.memory import explain_out_of_memory

OF_OTHERS = ("test", "rerank", "few_shot")
"""Settings that training does not read."""
MEMORY_ADVICE = (
    "change remat=full: one forward pass more, and the least of activations",
    f"or {SMALLER_BATCH}; retrieval has fewer negatives to train on",
    "or mesh.fsdp: spreads parameters and moments over so many devices",
)
UNFINISHED = "unfinished"
"""Folder of what an interrupted fine-tuning needs."""


@explain_out_of_memory(lambda: MEMORY_ADVICE)
def finetune(
    config: ml_collections.ConfigDict,
    data: TaskData,
    source: pathlib.Path,
    folder: pathlib.Path,
    console: Console | None = None,
    keep: bool = True,
) -> dict[str, Any]:
    """Trains from `source`, keeps the epoch that is best on dev, and scores it on the test.

    Writes `params`, `config.json`, the vocabulary, `predictions` and last `scores.json` into
    `folder`, which may be the `source` of another fine-tuning, few-shot for instance. Called again
    for the folder of one that was interrupted, it continues from its last checkpoint.

    Args:
      config: see `finetune_config`.
      source: the folder of a run, of converted parameters, or of a fine-tuned model.
      keep: False writes scores and predictions only.

    Raises:
      ConfigError, DataError: for invalid settings or data; nothing is written then.
      FloatingPointError: if the loss is no longer finite.
      OutOfMemory: if a device's memory does not suffice.

    Returns:
      What `scores.json` holds; see docs/tasks.md.
    """
    say = speaker(console)
    used = [name for name in (SCORES, "config.json", "checkpoints") if (folder / name).exists()]
    if SCORES in used or (used and not (folder / UNFINISHED).exists()):
        raise ConfigError(f"{folder} holds a model or scores already; choose another --workdir")
    check_settings(config)
    config = config.copy_and_resolve_references()
    mesh = make_mesh(config.mesh)
    pretrained = load_model(source, config.max_length, config.max_words)
    pretrained = pretrained.with_settings(
        dropout=config.dropout, remat=config.remat or pretrained.settings.remat
    )
    chosen = {name: examples_of(data, config[name], name) for name in ("train", "select", "test")}
    usable = [e for of in chosen["train"].values() for e in of if _is_usable(e, config.task)]
    if not usable:
        raise DataError(f"{config.task}: no example of {config.train.split} has a class to learn")
    devices = batch_devices(mesh)
    rows = min(config.batch_size, -(-len(usable) // devices) * devices)
    head = make_head(config, data, pretrained, mesh)
    say(
        f"{config.task}: {len(usable):,} examples to train on, "
        + ", ".join(f"{len(of):,} in {code}" for code, of in chosen["test"].items())
        + " to test"
    )
    settings = json.loads(config.to_json_best_effort())
    by_split = {f"{name} {config[name].split}": of for name, of in chosen.items()}
    coverage = tell_coverage(pretrained, by_split, say)
    learned = {name: chosen[name] for name in ("train", "select")}
    origin: dict[str, Any] = {"model_sha256": params_checksum(pretrained.params)}
    identity = {name: settings[name] for name in settings.keys() - {*APART, *OF_OTHERS}}
    identity |= {"seed": config.seed, "data": checksum(learned, data.classes), **origin}
    params, best, history = train(
        config,
        head,
        head.batches(usable, batch_size=rows),
        chosen["select"],
        mesh,
        folder / UNFINISHED,
        identity,
        console,
    )
    found = score_languages(config, data, head, params, chosen["test"], say)
    origin |= {
        "system": pretrained.system,
        "from": str(source),
        "train": dict(settings["train"], examples=len(usable)),
        "dev": history,
        "best": best,
    }
    result = result_of(config, data, by_split, found, texts=coverage, **origin)
    if keep:
        _write_model(folder, settings | {"train": origin["train"]}, data, pretrained, params)
    write_result(folder, result, found)
    if jax.process_index() == 0:
        shutil.rmtree(folder / UNFINISHED)
    sync_global_devices("fine-tuned")
    return result


def _is_usable(example: Example, task: str) -> bool:
    return TASKS[task].retrieval or example.label is not None


def _write_model(folder: pathlib.Path, finetuning, data, pretrained: LoadedModel, params) -> None:
    if jax.process_index() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(folder / PARAMS, ignore_errors=True)  # of a writing that was cut short
    sync_global_devices("made room")
    save_params(folder, params)
    if jax.process_index():
        return
    settings = {
        "system": pretrained.system,
        "model": pretrained.settings.model_dump(),
        "vocab_size": pretrained.tokenizer.vocab_size,
        "task": finetuning["task"],
        "classes": data.classes,
        "max_words": pretrained.max_words,
        "finetuning": finetuning,
    }
    write_json(folder / "config.json", settings)
    (folder / FILE_NAME).write_text(pretrained.tokenizer.to_json(), encoding="utf-8")
