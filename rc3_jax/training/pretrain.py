"""A whole pre-training run: data, model, state, steps, evaluations, checkpoints, scores."""

from __future__ import annotations

import json
import pathlib
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import ml_collections
from rich.console import Console

from rc3_jax.config import PretrainSettings, stored_settings, validate
from rc3_jax.data.batch_cache import keep_batches, rows_checksum
from rc3_jax.data.corpus import sampled_texts
from rc3_jax.data.coverage import coverage_lines, text_coverage
from rc3_jax.data.example import text_sizes
from rc3_jax.data.jsonl import read_json
from rc3_jax.data.kinds import KINDS, wanted
from rc3_jax.data.record import DataError, Skips
from rc3_jax.data.stream import batch_rows, iterate, make_batches
from rc3_jax.data.tokenizer import FILE_NAME
from rc3_jax.evaluation.evaluate import Evaluator, score_tables, summary
from rc3_jax.observe.chips import chip_of
from rc3_jax.observe.log import Log
from rc3_jax.parallel.mesh import to_global
from rc3_jax.paths import as_path
from rc3_jax.settings import ConfigError, describe, no_such_setting
from rc3_jax.stored_config import (
    CONFIG_FILE,
    MAY_CHANGE,
    changed_settings,
    is_among,
    save_config,
)
from rc3_jax.systems import term_names
from rc3_jax.training.aot import advice, device_flops
from rc3_jax.training.checkpoint import CHECKPOINTS, Checkpoints
from rc3_jax.training.loop import Intervals, fit
from rc3_jax.training.memory import explain_out_of_memory
from rc3_jax.training.run import Run, RunModel, prepare_run
from rc3_jax.training.state import TrainState, count_parameters
from rc3_jax.training.step import Batch
from rc3_jax.training.warm_start import warm_start_parts
from rc3_jax.training.watchdog import Watchdog

RECORDS = "records"
"""What `accept_changes` calls the numbers of records."""
RECORDS_FILE = "records.json"
"""Numbers of the training records, by kind and languages; a resumed run must have the same."""


def train(
    config: ml_collections.ConfigDict | PretrainSettings,
    folder: pathlib.Path,
    resume: bool = False,
    console: Console | None = None,
    accept_changes: Sequence[str] = (),
) -> dict[str, Any]:
    """Trains as `config` says and returns the scores that `folder/scores.json` then holds.

    Args:
      folder: the run's folder; the README lists what it will hold.
      resume: continues from the newest checkpoint in the folder, if there is one.
      console: where progress is shown; standard output by default.
      accept_changes: patterns of settings that a resumed run may have otherwise although they
        change the mathematics of its rows, such as `objective.*`; `records` stands for the data.

    Raises:
      ConfigError: for invalid settings; if the folder holds a run already and `resume` is False, or
        one with other settings and `resume` is True.
      DataError: for data that cannot be used.
      FloatingPointError: if the loss is no longer finite; the last checkpoint remains.
      OutOfMemory: if a device's memory does not suffice.
    """
    config = validate(config)
    is_first = jax.process_index() == 0
    changes = _check_folder(folder, config, resume, accept_changes)
    folder.mkdir(parents=True, exist_ok=True)
    with Log(folder if is_first else None, console, term_names(config)) as log:
        for change in changes:
            log.say(f"--resume: {change}")
        skips = Skips(config.data.skip_limit, log.say)
        try:
            run = prepare_run(config, folder if resume else None, skips)
            scores = _train(run, folder, log, accept_changes)
        except FloatingPointError as error:
            again = ["python", "launch/train.py", "--resume", f"--workdir={folder}"]
            again.append(f"--config.optimizer.lr={config.optimizer.lr / 2:g}")
            raise FloatingPointError(f"{error}: {shlex.join(again)}") from error
        finally:
            name = "skipped.jsonl" if is_first else f"skipped.{jax.process_index()}.jsonl"
            skips.write(folder / name)
        if is_first:
            text = json.dumps({"step": config.steps, **scores}, indent=2)
            (folder / "scores.json").write_text(text + "\n", encoding="utf-8")
        for table in score_tables(scores):
            log.console.print(table)
    return scores


def _train(
    run: Run, folder: pathlib.Path, log: Log, accept_changes: Sequence[str]
) -> dict[str, Any]:
    """From the first state, or the newest checkpoint, to the final scores."""
    config = run.config
    rows = batch_rows(config.batch_size, config.batch_mix, list(run.corpus.pools))
    with (
        explain_out_of_memory(lambda: advice(run, rows)),
        Watchdog(config.watchdog_minutes) as watchdog,
        Checkpoints(folder, config.checkpoint.keep) as checkpoints,
    ):
        evaluator = Evaluator(run, lambda: watchdog.beat("evaluating"))
        state = _first_state(run, folder, checkpoints, log, accept_changes)
        texts = _describe(run, state, rows, log)

        def batches(start: int) -> Iterator[Batch]:
            made = make_batches(
                run.corpus.pools,
                run.tokenizer,
                config,
                run.skips,
                jax.process_index(),
                jax.process_count(),
            )
            if config.data.batch_cache:
                of = rows_checksum(config, run.tokenizer, jax.process_index(), jax.process_count())
                made = keep_batches(made, pathlib.Path(config.data.batch_cache) / of, run.skips)
            return (to_global(batch, run.mesh) for batch in iterate(made, start, config))

        def evaluate(step: int, params: Any) -> tuple[dict[str, Any], str]:
            scores = evaluator.scores(params)
            return scores, summary(scores)

        intervals = Intervals(
            config.steps,
            config.batch_size,
            config.log_every,
            config.evaluation.every,
            config.checkpoint.every,
            **device_speed(run, rows),
        )
        _, scores = fit(
            run.train_step(), state, batches, evaluate, intervals, checkpoints, log, watchdog
        )
    return {**scores, "texts": texts}


def device_speed(run: RunModel, rows: Mapping[str, int]) -> dict[str, float]:
    """`flops` and `peak` of `Intervals`; empty for devices or number types without figures, and
    for processes that log nothing.

    Args:
      rows: rows of each kind in a global batch.
    """
    chip = chip_of(run.mesh.devices.flat[0].device_kind)
    if chip is None or run.config.model.dtype != "bfloat16" or jax.process_index():
        return {}
    return {"flops": device_flops(run, rows), "peak": chip.flops}


def _first_state(
    run: Run,
    folder: pathlib.Path,
    checkpoints: Checkpoints,
    log: Log,
    accept_changes: Sequence[str],
) -> TrainState:
    """The state to start from; also writes down what the run depends on."""
    records = {
        kind: {"+".join(pair): len(numbers) for pair, numbers in pool.pairs.items()}
        for kind, pool in run.corpus.pools.items()
    }
    if checkpoints.latest is not None and not is_among(RECORDS, accept_changes):
        _check_records(records, folder, accept_changes)
    state = checkpoints.restore(run.abstract_state, log.say)
    step = 0 if state is None else int(state.step)
    if step > run.config.steps:
        raise ConfigError(f"steps={run.config.steps}: {folder} has done {step} steps; give more")
    if jax.process_index() == 0:
        save_config(run.config, folder / CONFIG_FILE)
        (folder / FILE_NAME).write_text(run.tokenizer.to_json(), encoding="utf-8")
        (folder / RECORDS_FILE).write_text(json.dumps(records, indent=2) + "\n", encoding="utf-8")
    log.rewind(step)
    if state is not None:
        log.say(f"resuming after step {step}")
        return state
    state = run.create_state()
    if run.config.init is not None:
        parts = warm_start_parts(as_path(run.config.init, "init")) or sorted(state.params)
        new = [part for part in sorted(state.params) if part not in parts]
        log.say(f"{', '.join(parts)} from {run.config.init}")
        log.say(f"drawn at random: {', '.join(new) or 'nothing'}")
    return state


def _check_folder(
    folder: pathlib.Path, config: PretrainSettings, resume: bool, accept_changes: Sequence[str]
) -> list[str]:
    """The settings that a resumed run has otherwise than it began with, a phrase each.

    Raises:
      ConfigError: unless a run with these settings may be in the folder.
    """
    begun = folder / CHECKPOINTS
    if not resume:
        if accept_changes:
            raise ConfigError("--accept_changes is for --resume; leave it out")
        if begun.exists() and any(begun.iterdir()):
            raise ConfigError(
                f"{folder} holds a run already; continue it with --resume, or choose another --workdir"
            )
        return []
    if not (folder / CONFIG_FILE).exists():
        if begun.exists() and any(begun.iterdir()):
            raise ConfigError(
                f"{folder} has checkpoints and no {CONFIG_FILE}, so that nobody knows of what run; "
                "restore the file, or choose another --workdir"
            )
        return []
    stored = stored_settings(folder)
    names = [RECORDS, *(name for settings in (stored, config) for name, *_ in describe(settings))]
    for pattern in accept_changes:
        if not any(is_among(name, [pattern]) for name in names):
            raise ConfigError(f"--accept_changes: {no_such_setting(pattern, type(config))}")
    changes = changed_settings(stored, config)
    free = [*MAY_CHANGE, *accept_changes]
    if getattr(config.objective, "negatives", "global") == "local":
        free.remove("mesh.*")  # negatives come from the rows of a device
    taken = {name for name in changes if is_among(name, free)}
    if refused := sorted(changes.keys() - taken):
        accepted = ",".join([*accept_changes, *refused])
        first = f"--resume: the mathematics of promised rows differs from {folder / CONFIG_FILE}:"
        remedy = (
            "leave these out to go on with the settings of the run, take them with "
            f"--accept_changes={accepted}, or start another run in another --workdir"
        )
        raise ConfigError("\n  ".join([first, *(changes[name] for name in refused), remedy]))
    effects = {
        "steps": "; schedule and ramp follow the new length",
        "init": "; it has no effect on a run that has begun",
        "data.tokenizer.*": "; it has no effect, as the run's folder holds its vocabulary",
    }
    return [
        phrase + next((said for of, said in effects.items() if is_among(name, [of])), "")
        for name, phrase in changes.items()
    ]


def _check_records(
    records: Mapping[str, Any], folder: pathlib.Path, accept_changes: Sequence[str]
) -> None:
    """Raises DataError if a resumed run has other numbers of records than it began with.

    The order of the rows depends on these numbers, wherever the data lie.
    """
    file = folder / RECORDS_FILE
    before = read_json(file) if file.is_file() else records
    if before != records:
        accepted = ",".join([*accept_changes, RECORDS])
        raise DataError(
            f"--resume: the run began with records {before}, and data.sources offer {records} now; "
            f"restore the data, take them with --accept_changes={accepted}, or start another run in "
            "another --workdir"
        )


def _describe(run: Run, state: TrainState, rows: Mapping[str, int], log: Log) -> dict[str, Any]:
    """Tells what the run is made of; returns what the vocabulary makes of the training texts."""
    config, skips = run.config, run.skips
    pools = ", ".join(f"{len(pool)} {kind}" for kind, pool in run.corpus.pools.items())
    log.say(
        f"{config.name}: {count_parameters(state.params):,} parameters, vocabulary "
        f"{run.tokenizer.vocab_size:,}, {run.mesh.size} {jax.devices()[0].platform} device(s) as "
        f"{dict(run.mesh.shape)}\nrecords: {pools}; {len(skips.reasons)} skipped; "
        f"{len(run.corpus.heldout)} held-out images; rows a batch: {rows}"
    )
    for what, counts in skips.left_out.items():
        log.say(f"left out: {sum(counts.values())} {what}, of {len(counts)} records")
    for kind, pool in run.corpus.pools.items():
        if kind not in rows and not KINDS[kind].image:  # images are there for other kinds too
            log.say(f"batch_mix.{kind} is 0: {len(pool):,} {kind} records are not used")
    for kind in wanted(KINDS, config.batch_mix):
        if kind not in run.corpus.pools:
            log.say(f"batch_mix.{kind}: no source offers such rows; the others take their place")
    told: dict[str, Any] = {}
    for has_image, texts in sampled_texts(run.corpus, skips).items():
        length = text_sizes(config, has_image)[0]
        coverage = text_coverage(run.tokenizer.with_length(length), texts)
        of_parallel = not has_image and config.data.parallel_max_length
        setting = "data.parallel_max_length" if of_parallel else "data.max_length"
        room = config.model.text.max_positions - config.model.text.position_offset
        for line in coverage_lines(coverage, length, setting, room, "model.text.max_positions"):
            log.say(f"{'' if has_image else 'parallel '}{line}")
        name = "images" if has_image else "parallel"
        told[name] = {language: of._asdict() for language, of in coverage.items()}
    return told
