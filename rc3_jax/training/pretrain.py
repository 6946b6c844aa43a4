"""A whole pre-training run: data, model, state, steps, evaluations, checkpoints, scores."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import ml_collections
from rich.console import Console

from rc3_jax.config import PretrainSettings, settings_class, validate
from rc3_jax.data.record import DataError
from rc3_jax.data.stream import batch_rows, iterate, make_batches
from rc3_jax.data.tokenizer import FILE_NAME
from rc3_jax.evaluation.evaluate import Evaluator, score_tables, summary
from rc3_jax.observe.log import Log
from rc3_jax.parallel.mesh import to_global
from rc3_jax.settings import ConfigError
from rc3_jax.stored_config import CONFIG_FILE, changed_settings, read_config, save_config
from rc3_jax.systems import term_names
from rc3_jax.training.aot import advice
from rc3_jax.training.checkpoint import CHECKPOINTS, Checkpoints
from rc3_jax.training.loop import Intervals, fit
from rc3_jax.training.memory import explain_out_of_memory
from rc3_jax.training.run import Run, prepare_run
from rc3_jax.training.state import TrainState, count_parameters
from rc3_jax.training.step import Batch
from rc3_jax.training.warm_start import warm_start_parts
from rc3_jax.training.watchdog import Watchdog

RECORDS = "records.json"
"""Numbers of the training records, by kind and languages; a resumed run must have the same."""


def train(
    config: ml_collections.ConfigDict | PretrainSettings,
    folder: pathlib.Path,
    resume: bool = False,
    console: Console | None = None,
) -> dict[str, Any]:
    """Trains as `config` says and returns the scores that `folder/scores.json` then holds.

    Args:
      folder: the run's folder; the README lists what it will hold.
      resume: continues from the newest checkpoint in the folder, if there is one.
      console: where progress is shown; standard output by default.

    Raises:
      ConfigError: for invalid settings; if the folder holds a run already and `resume` is False, or
        with other settings and `resume` is True.
      DataError: for data that cannot be used.
      FloatingPointError: if the loss is no longer finite; the last checkpoint remains.
      OutOfMemory: if a device's memory does not suffice.
    """
    config = validate(config)
    is_first = jax.process_index() == 0
    _check_folder(folder, config, resume)
    folder.mkdir(parents=True, exist_ok=True)
    with Log(folder if is_first else None, console, term_names(config)) as log:
        run = prepare_run(config, folder if resume else None)  # large files take their time
        try:
            scores = _train(run, folder, log)
        finally:
            name = "skipped.jsonl" if is_first else f"skipped.{jax.process_index()}.jsonl"
            run.skips.write(folder / name)
        if is_first:
            text = json.dumps({"step": config.steps, **scores}, indent=2)
            (folder / "scores.json").write_text(text + "\n", encoding="utf-8")
        for table in score_tables(scores):
            log.console.print(table)
    return scores


def _train(run: Run, folder: pathlib.Path, log: Log) -> dict[str, Any]:
    """From the first state, or the newest checkpoint, to the final scores."""
    config = run.config
    rows = batch_rows(config.batch_size, config.batch_mix, list(run.corpus.pools))
    with (
        explain_out_of_memory(lambda: advice(run, rows)),
        Watchdog(config.watchdog_minutes) as watchdog,
        Checkpoints(folder, config.checkpoint.keep) as checkpoints,
    ):
        evaluator = Evaluator(run, lambda: watchdog.beat("evaluating"))
        state = _first_state(run, folder, checkpoints, log)
        _describe(run, state, rows, log)

        def batches(start: int) -> Iterator[Batch]:
            made = make_batches(
                run.corpus.pools,
                run.tokenizer,
                config,
                run.skips,
                jax.process_index(),
                jax.process_count(),
            )
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
        )
        _, scores = fit(
            run.train_step(), state, batches, evaluate, intervals, checkpoints, log, watchdog
        )
    return dict(scores)


def _first_state(run: Run, folder: pathlib.Path, checkpoints: Checkpoints, log: Log) -> TrainState:
    """The state to start from; also writes down what the run depends on."""
    newest = checkpoints.latest
    _check_records(run, folder, resumed=newest is not None)
    if jax.process_index() == 0:
        save_config(run.config, folder / CONFIG_FILE)
        (folder / FILE_NAME).write_text(run.tokenizer.to_json(), encoding="utf-8")
    if newest is not None:
        log.say(f"resuming after step {newest}")
        log.rewind(newest)
        return checkpoints.restore(run.abstract_state)
    log.rewind(0)
    state = run.create_state()
    if run.config.init is not None:
        parts = warm_start_parts(pathlib.Path(run.config.init)) or sorted(state.params)
        new = [part for part in sorted(state.params) if part not in parts]
        log.say(f"{', '.join(parts)} from {run.config.init}")
        log.say(f"drawn at random: {', '.join(new) or 'nothing'}")
    return state


def _check_folder(folder: pathlib.Path, config: PretrainSettings, resume: bool) -> None:
    """Raises ConfigError unless a run with these settings may be in the folder."""
    begun = folder / CHECKPOINTS
    if not resume:
        if begun.exists() and any(begun.iterdir()):
            raise ConfigError(
                f"{folder} holds a run already; continue it with --resume, or choose another --workdir"
            )
    elif (folder / CONFIG_FILE).exists():
        stored = read_config(folder)
        if changed := changed_settings(settings_class(stored).parse(stored), config):
            raise ConfigError(
                "\n  ".join([f"--resume: other settings than in {folder / CONFIG_FILE}:", *changed])
                + "\n  take the settings of the run, or start another one in another --workdir"
            )


def _check_records(run: Run, folder: pathlib.Path, resumed: bool) -> None:
    """Raises DataError if a resumed run has other numbers of records than it began with.

    The order of the rows depends on these numbers, wherever the data lie.
    """
    counts = {
        kind: {"+".join(pair): len(numbers) for pair, numbers in pool.pairs.items()}
        for kind, pool in run.corpus.pools.items()
    }
    file = folder / RECORDS
    if resumed and file.is_file():
        before = json.loads(file.read_text(encoding="utf-8"))
        if before != counts:
            raise DataError(
                f"--resume: the run began with records {before}, and data.sources offer {counts} now; "
                f"restore the data, or start another run in another --workdir"
            )
    elif jax.process_index() == 0:
        file.write_text(json.dumps(counts, indent=2) + "\n", encoding="utf-8")


def _describe(run: Run, state: TrainState, rows: Mapping[str, int], log: Log) -> None:
    pools = ", ".join(f"{len(pool)} {kind}" for kind, pool in run.corpus.pools.items())
    log.say(
        f"{run.config.name}: {count_parameters(state.params):,} parameters, vocabulary "
        f"{run.tokenizer.vocab_size:,}, {run.mesh.size} {jax.devices()[0].platform} device(s) as "
        f"{dict(run.mesh.shape)}\nrecords: {pools}; {len(run.skips.reasons)} skipped; "
        f"{sum(map(len, run.corpus.heldout.values()))} held-out images; rows a batch: {rows}"
    )
