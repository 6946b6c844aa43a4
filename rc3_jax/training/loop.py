"""The training loop: steps, evaluations, checkpoints. Pre-training and fine-tuning run it alike."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from flax.traverse_util import flatten_dict
from jax.experimental.multihost_utils import broadcast_one_to_all

from rc3_jax.observe.log import MEAN_LOSS, Clock, Log
from rc3_jax.training.checkpoint import Checkpoints
from rc3_jax.training.state import TrainState
from rc3_jax.training.step import Batch, Metrics, TrainStep
from rc3_jax.training.watchdog import Watchdog


class Intervals(NamedTuple):
    """How long a run is and what else happens at which steps.

    Attributes:
      steps: length of the run.
      batch_size: rows of a global batch, for the reported speed.
      log: steps between two reported ones.
      evaluation: steps between two evaluations; 0 evaluates only at the end, as every run does.
      checkpoint: steps between two checkpoints; 0 saves only at the end.
      checkpoint_minutes: a checkpoint that is due waits until so many minutes have passed.
      flops, peak: of a device, for the reported MFU; see `Clock`.
    """

    steps: int
    batch_size: int
    log: int
    evaluation: int
    checkpoint: int
    checkpoint_minutes: float = 0.0
    flops: float = 0.0
    peak: float = math.inf

    def evaluates(self, step: int) -> bool:
        """Whether an evaluation follows the step."""
        return _is_due(step, self.evaluation) or step == self.steps


Evaluate = Callable[[int, Any], tuple[Mapping[str, Any], str]]
"""`(step, params)` to nested scores, and a line about them."""


def fit(
    step: TrainStep,
    state: TrainState,
    batches: Callable[[int], Iterator[Batch]],
    evaluate: Evaluate,
    intervals: Intervals,
    checkpoints: Checkpoints,
    log: Log,
    watchdog: Watchdog,
) -> tuple[TrainState, Mapping[str, Any]]:
    """Trains from `state.step` to `intervals.steps`, and evaluates the result.

    A step is dispatched before the metrics of the one before are read, so that devices do not wait.

    Args:
      batches: step number to the global batches from there on.

    Returns:
      The last state and its scores.

    Raises:
      FloatingPointError: if the loss or a parameter is no longer finite; the last checkpoint remains.
    """
    start = int(state.step)
    reporter = _Reporter(start, intervals, log)

    def score(number: int, params: Any) -> Mapping[str, Any]:
        watchdog.beat("evaluating")
        scores, line = evaluate(number, params)
        if not log.has_evaluation(number):  # an ended run is scored again
            reporter.write(number, flatten_dict(scores, sep="/"))
        log.say(f"step {number} evaluation  {line}")
        reporter.skip(number)
        return scores

    scores: Mapping[str, Any] = {}
    if start >= intervals.steps:
        return state, score(start, state.params)
    if start and intervals.evaluates(start) and broadcast_one_to_all(not log.has_evaluation(start)):
        score(start, state.params)  # the run was interrupted between saving and scoring
    stream = batches(start)
    batch = next(stream)
    watchdog.beat("compiling")
    step.compile(batch, log.say)
    saved = time.perf_counter()
    reporter.skip(start)
    for number in range(start + 1, intervals.steps + 1):
        watchdog.beat(f"step {number}")
        state, metrics = step(state, batch)
        reporter.read()
        reporter.pending = (number, metrics)
        if number < intervals.steps:
            waiting = time.perf_counter()
            batch = next(stream)
            reporter.clock.wait(time.perf_counter() - waiting)
        last = number == intervals.steps
        saves = last or _is_due(number, intervals.checkpoint)
        if saves or intervals.evaluates(number):
            reporter.read()  # nothing unsound is saved or scored
        if saves and (last or _have_passed(intervals.checkpoint_minutes, saved)):
            watchdog.beat("saving")
            checkpoints.save(number, state)
            saved = time.perf_counter()
        if intervals.evaluates(number):
            scores = score(number, state.params)
    return state, scores


def _is_due(step: int, every: int) -> bool:
    return bool(every) and step % every == 0


def _have_passed(minutes: float, since: float) -> bool:
    """Whether so many minutes have passed for the first process, which decides for all."""
    if not minutes:
        return True
    return bool(broadcast_one_to_all(time.perf_counter() - since >= 60 * minutes))


class _Reporter:
    """Reads, checks and logs the metrics of each step.

    Attributes:
      pending: number and metrics of a step that were not read yet.
    """

    def __init__(self, start: int, intervals: Intervals, log: Log):
        self.clock = Clock(
            start, intervals.steps, intervals.batch_size, intervals.flops, intervals.peak
        )
        self.pending: tuple[int, Metrics] | None = None
        self._intervals, self._log = intervals, log
        self._losses: list[float] = []

    def write(self, number: int, values: Mapping[str, float]) -> None:
        """Adds values to a step's line, with the time and the samples seen."""
        last = self._log.last
        before, samples = last.get("step") or 0, last.get("samples_seen") or 0
        if not samples:  # a line of a run that did not count them
            samples = before * self._intervals.batch_size
        described = {
            "time": time.time(),
            "samples_seen": samples + (number - before) * self._intervals.batch_size,
        }
        self._log.write(number, {**values, **described})

    def read(self) -> None:
        """Raises FloatingPointError unless the pending loss is finite."""
        if self.pending is None:
            return
        number, metrics = self.pending
        self.pending = None
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        if not math.isfinite(values["loss"] + values["parameter_norm"]):
            unsound = [f"{name} is {v:g}" for name, v in values.items() if not math.isfinite(v)]
            self.write(number, values)
            raise FloatingPointError(
                f"step {number}: {', '.join(unsound)}; train with a lower learning rate"
            )
        self._losses.append(values["loss"])
        shows = _is_due(number, self._intervals.log) or number == self._intervals.steps
        if shows:
            values |= self.clock.read(number)
            self._log.step(number, self._intervals.steps, values)
        if self._intervals.evaluates(number):
            values[MEAN_LOSS] = float(np.mean(self._losses))
            self._losses.clear()
        if shows or MEAN_LOSS in values:
            self.write(number, values)

    def skip(self, number: int) -> None:
        """Leaves the time since the last reading out of the reported speed."""
        self.clock.skip(number)
