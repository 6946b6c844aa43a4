"""A whole run: data, model, state, steps, evaluations, checkpoints, scores."""

from __future__ import annotations

import json
import math
import pathlib
import time
from typing import Any

import jax
import ml_collections
from flax.traverse_util import flatten_dict
from rich.console import Console

from rc3_jax.config import ConfigError, save_config
from rc3_jax.data.stream import batch_rows, iterate, make_batches
from rc3_jax.data.tokenizer import FILE_NAME
from rc3_jax.evaluation.evaluate import Evaluator, score_tables, summary
from rc3_jax.observe.log import Clock, Log
from rc3_jax.parallel.mesh import to_global
from rc3_jax.training.checkpoint import Checkpoints
from rc3_jax.training.memory import advice, describe_memory, explain_out_of_memory
from rc3_jax.training.run import Run, prepare_run, with_defaults
from rc3_jax.training.start import start_parts
from rc3_jax.training.state import TrainState, count_parameters
from rc3_jax.training.step import make_step
from rc3_jax.training.watchdog import Watchdog


def train(
    config: ml_collections.ConfigDict,
    folder: pathlib.Path,
    resume: bool = False,
    console: Console | None = None,
) -> dict[str, Any]:
    """Trains as `config` says and returns the scores that `folder/scores.json` then holds.

    Args:
      folder: the run's folder; see the README for what it will hold.
      resume: goes on from the newest checkpoint in the folder, if there is one.
      console: where progress is shown; standard output by default.

    Raises:
      ConfigError: if the folder holds a run already and `resume` is False.
      FloatingPointError: if the loss is no longer finite; the last checkpoint remains.
    """
    config = ml_collections.FrozenConfigDict(config)
    is_first = jax.process_index() == 0
    _check_folder(folder, resume)
    folder.mkdir(parents=True, exist_ok=True)
    if is_first and not resume:
        (folder / "metrics.jsonl").unlink(missing_ok=True)  # of a start that saved nothing
    with Log(folder if is_first else None, console) as log:
        if resume:
            _check_same_settings(folder, config)
        run = prepare_run(config, folder if resume else None)  # large files take their time
        try:
            with Watchdog(config.watchdog_minutes) as watchdog:
                scores = _train(run, folder, log, watchdog)
        finally:
            name = "skipped.jsonl" if is_first else f"skipped.{jax.process_index()}.jsonl"
            run.skips.write(folder / name)
        if is_first:
            text = json.dumps({"step": config.steps, **scores}, indent=2)
            (folder / "scores.json").write_text(text + "\n", encoding="utf-8")
        for table in score_tables(scores):
            log.console.print(table)
    return scores


def _train(run: Run, folder: pathlib.Path, log: Log, watchdog: Watchdog) -> dict[str, Any]:
    """From the first state, or the newest checkpoint, to the final scores."""
    config = run.config
    evaluator = Evaluator(run, lambda: watchdog.beat("evaluating"))
    checkpoint = config.checkpoint
    with (
        explain_out_of_memory(lambda: advice(run)),
        Checkpoints(folder, checkpoint.every, checkpoint.keep) as checkpoints,
    ):
        state = _first_state(run, checkpoints, log)
        if jax.process_index() == 0:
            save_config(config, folder / "config.json")
            (folder / FILE_NAME).write_text(run.tokenizer.to_json(), encoding="utf-8")
        _describe(run, state, log)
        state = _steps(run, state, checkpoints, evaluator, log, watchdog)
        watchdog.beat("saving")
        checkpoints.save(config.steps, state, force=True)
        return evaluator.scores(state.params)


def _steps(
    run: Run,
    state: TrainState,
    checkpoints: Checkpoints,
    evaluator: Evaluator,
    log: Log,
    watchdog: Watchdog,
) -> TrainState:
    """The loop: dispatches step n, then reads the metrics of step n - 1."""
    config, start = run.config, int(state.step)
    batches = make_batches(
        run.corpus.pools,
        run.tokenizer,
        config,
        run.skips,
        jax.process_index(),
        jax.process_count(),
    )
    if start >= config.steps:
        return state
    stream = iterate(batches, start, config)
    batch = to_global(next(stream), run.mesh)
    watchdog.beat("compiling")
    compiled = compile_step(run, state, batch, log)
    clock = Clock(start, config.steps, config.batch_size)
    pending = None
    for step in range(start, config.steps):
        watchdog.beat(f"step {step + 1}")
        state, metrics = compiled(state, batch)
        if pending is not None:
            _report(step, pending, clock, config, log)
        pending = metrics
        if step + 1 < config.steps:
            waiting = time.perf_counter()
            rows = next(stream)
            clock.wait(time.perf_counter() - waiting)
            batch = to_global(rows, run.mesh)
        evaluates = _is_due(step + 1, config.evaluation.every) and step + 1 < config.steps
        if evaluates or _is_due(step + 1, config.checkpoint.every):
            _report(step + 1, pending, clock, config, log)  # nothing unsound is saved or scored
            pending = None
        checkpoints.save(step + 1, state)
        if evaluates:
            scores = evaluator.scores(state.params)
            log.write(step + 1, flatten_dict(scores, sep="/"))
            log.say(f"step {step + 1} evaluation  {summary(scores)}")
            clock.skip(step + 1)
    if pending is not None:
        _report(config.steps, pending, clock, config, log)
    return state


def _is_due(step: int, every: int) -> bool:
    return bool(every) and step % every == 0


def compile_step(run: Run, state: TrainState, batch: Any, log: Log):
    """The step, compiled ahead for this state and batch: it cannot compile again later."""
    begun = time.perf_counter()
    step = make_step(run, state)
    compiled = step.lower(state, batch).compile()
    log.say(f"compiled the step in {time.perf_counter() - begun:.1f} s")
    log.say(describe_memory(compiled))
    return compiled


def _report(step: int, metrics, clock: Clock, config, log: Log) -> None:
    values = {name: float(value) for name, value in jax.device_get(metrics).items()}
    if not math.isfinite(values["loss"] + values["parameter_norm"]):
        log.write(step, values)
        raise FloatingPointError(
            f"the loss of step {step} is {values['loss']}; lower optimizer.lr or optimizer.clip, "
            "and go on from the last checkpoint with --resume"
        )
    if _is_due(step, config.log_every) or step == config.steps:
        values |= clock.read(step)
        log.write(step, values)
        log.step(step, config.steps, values)


def _first_state(run: Run, checkpoints: Checkpoints, log: Log) -> TrainState:
    newest = checkpoints.latest
    if newest is None:
        state = run.create_state()
        if run.config.init is not None:
            parts = start_parts(pathlib.Path(run.config.init)) or sorted(state.params)
            new = [part for part in sorted(state.params) if part not in parts]
            log.say(f"{', '.join(parts)} from {run.config.init}")
            log.say(f"drawn at random: {', '.join(new) or 'nothing'}")
        return state
    log.say(f"resuming after step {newest}")
    return checkpoints.restore(run.abstract_state())


def _check_folder(folder: pathlib.Path, resume: bool) -> None:
    begun = folder / "checkpoints"
    if not resume and begun.exists() and any(begun.iterdir()):
        raise ConfigError(
            f"{folder} holds a run already; go on with --resume, or choose another --workdir"
        )


def _check_same_settings(folder: pathlib.Path, config: ml_collections.ConfigDict) -> None:
    """A resumed run reads and computes what it would have; only its surroundings may change."""
    stored_file = folder / "config.json"
    if not stored_file.exists():
        return

    def fixed(settings):
        names = ("seed", "steps", "batch_size", "shares", "data", "model", "objective", "optimizer")
        kept = {name: settings.get(name) for name in names}
        for part, name in (("model", "remat"), ("model", "unroll"), ("objective", "pairs")):
            kept[part] = {k: v for k, v in (kept[part] or {}).items() if k != name}
        return kept

    stored = fixed(with_defaults(json.loads(stored_file.read_text(encoding="utf-8"))))
    present = fixed(json.loads(json.dumps(config.to_dict())))
    changed = [name for name in present if stored[name] != present[name]]
    if changed:
        raise ConfigError(
            f"--resume: {', '.join(changed)} differ from {stored_file}; take the settings of the "
            "run, or start another one in another --workdir"
        )


def _describe(run: Run, state: TrainState, log: Log) -> None:
    pools = ", ".join(f"{len(pool)} {kind}" for kind, pool in run.corpus.pools.items())
    rows = batch_rows(run.config.batch_size, run.config.shares, list(run.corpus.pools))
    log.say(
        f"{run.config.name}: {count_parameters(state.params):,} parameters, vocabulary "
        f"{run.tokenizer.vocab_size:,}, {run.mesh.size} {jax.devices()[0].platform} device(s) as "
        f"{dict(run.mesh.shape)}\nrecords: {pools}; {len(run.skips.reasons)} skipped; "
        f"{len(run.corpus.heldout)} held-out images; rows a batch: {rows}"
    )
