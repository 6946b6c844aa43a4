"""Metrics to `metrics.jsonl`, and one console line a step."""

from __future__ import annotations

import json
import math
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Self

import jax
from rich.console import Console

RC3_TERMS = ("itc", "xtcl", "xvtcl", "xvtcl_weak", "soft", "kl", "hinge", "mse", "itm", "mclm")
CCLM_TERMS = (
    *("mlm", "caption_ttc", "ttc", "ttm", "text_mlm"),
    *("region_itc", "region_itm", "region_mlm", "box", "giou"),
)
SHOWN = ("loss", *RC3_TERMS, *CCLM_TERMS)
Say = Callable[[str], None]
"""Is given a line at a time."""


class Clock:
    """Times a run: speed since the last line, share of time spent waiting for data, ETA."""

    def __init__(self, step: int, steps: int, batch_size: int):
        self._steps, self._batch_size = steps, batch_size
        self._mark = (step, time.perf_counter())
        self._waited = 0.0

    def wait(self, seconds: float) -> None:
        """Adds time during which no batch was ready."""
        self._waited += seconds

    def skip(self, step: int) -> None:
        """Leaves out the time since the last reading, such as that of an evaluation."""
        self._mark, self._waited = (step, time.perf_counter()), 0.0

    def read(self, step: int) -> dict[str, float]:
        """Since the last reading: `samples_per_second`, `data_wait` (share of time), `eta` (s)."""
        now, (last_step, last_time) = time.perf_counter(), self._mark
        seconds, done = max(now - last_time, 1e-9), step - last_step
        reading = {
            "samples_per_second": done * self._batch_size / seconds,
            "data_wait": self._waited / seconds,
            "eta": (self._steps - step) * seconds / max(done, 1),
        }
        self._mark, self._waited = (step, now), 0.0
        return reading


class Log:
    """Writes every metric to a file, and the important ones to the console.

    Args:
      folder: where `metrics.jsonl` is appended to; None writes no file (other processes).
    """

    def __init__(self, folder: pathlib.Path | None, console: Console | None = None):
        self._file = None if folder is None else (folder / "metrics.jsonl").open("a")
        self.console = console or Console(quiet=folder is None, soft_wrap=True)
        self._say = speaker(self.console)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_) -> None:
        if self._file is not None:
            self._file.close()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Appends one line of JSON; a value that is no finite number becomes null."""
        if self._file is None:
            return
        row = {
            name: float(value) if math.isfinite(value) else None for name, value in values.items()
        }
        self._file.write(json.dumps({"step": step, **row}) + "\n")
        self._file.flush()

    def step(self, step: int, steps: int, values: Mapping[str, float]) -> None:
        """Shows a step's line."""
        self.say(step_line(step, steps, values))

    def say(self, text: str) -> None:
        """Prints a line as it is."""
        self._say(text)


def speaker(console: Console | None = None) -> Say:
    """What prints lines as they are; by default to the terminal, in the first process alone."""
    if console is None:
        console = Console(quiet=jax.process_index() > 0, soft_wrap=True)
    return lambda line: console.print(line, markup=False, highlight=False, emoji=False)


def step_line(step: int, steps: int, values: Mapping[str, float]) -> str:
    """Step, loss terms, samples a second, data wait and time left, in one line."""
    terms = " ".join(f"{name} {values[name]:.3f}" for name in SHOWN if name in values)
    minutes, seconds = divmod(int(min(values["eta"], 359_999)), 60)
    left = f"{minutes // 60:02}:{minutes % 60:02}:{seconds:02}"
    return (
        f"step {step}/{steps}  {terms}  {values['samples_per_second']:.0f} samples/s  "
        f"data wait {values['data_wait']:.1%}  ETA {left}"
    )
