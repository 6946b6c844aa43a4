"""Metrics to `metrics.jsonl`, and one console line a step."""

from __future__ import annotations

import io
import json
import math
import os
import pathlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Self, TextIO

import jax
from rich.console import Console

from rc3_jax.data.jsonl import parse_object
from rc3_jax.data.record import BadRecord
from rc3_jax.paths import scheme_of
from rc3_jax.settings import ConfigError

METRICS = "metrics.jsonl"
MEAN_LOSS = "mean_loss"
"""The mean of `loss` since the evaluation before, in the line of a step that is evaluated."""
Say = Callable[[str], None]
"""Prints a line."""


class Clock:
    """Times a run: speed since the last line, share of time spent waiting for data, ETA.

    Args:
      flops: model FLOPs of a step on a device; 0 where they are not counted.
      peak: FLOPs that a device can do in a second.
    """

    def __init__(
        self, step: int, steps: int, batch_size: int, flops: float = 0.0, peak: float = math.inf
    ):
        self._steps, self._batch_size = steps, batch_size
        self._flops, self._peak = flops, peak
        self._mark = (step, time.perf_counter())
        self._waited = 0.0

    def wait(self, seconds: float) -> None:
        """Adds time during which no batch was ready."""
        self._waited += seconds

    def skip(self, step: int) -> None:
        """Leaves out the time since the last reading, such as that of an evaluation."""
        self._mark, self._waited = (step, time.perf_counter()), 0.0

    def read(self, step: int) -> dict[str, float]:
        """Since the last reading: `samples_per_second`, `data_wait` (share of time), `eta` (s).

        Where FLOPs are counted also `tflops_per_device` (a second) and `mfu`, their share of the peak.
        """
        now, (last_step, last_time) = time.perf_counter(), self._mark
        seconds, done = max(now - last_time, 1e-9), step - last_step
        reading = {
            "samples_per_second": done * self._batch_size / seconds,
            "data_wait": self._waited / seconds,
            "eta": (self._steps - step) * seconds / max(done, 1),
        }
        if self._flops:
            rate = done * self._flops / seconds
            reading |= {"tflops_per_device": rate / 1e12, "mfu": rate / self._peak}
        self._mark, self._waited = (step, now), 0.0
        return reading


class Log:
    """Writes every metric to a file, one line a step, and the terms of the loss to the console.

    Attributes:
      last: the last line that was written, or that `rewind` kept; empty before.

    Args:
      folder: where `metrics.jsonl` is appended to; None writes no file (other processes).
      terms: names of the loss's terms, in the order of the console line.
    """

    def __init__(
        self,
        folder: pathlib.Path | None,
        console: Console | None = None,
        terms: Sequence[str] = (),
    ):
        self._terms = terms
        self._path = None if folder is None else folder / METRICS
        self._file = None if self._path is None else _opened(self._path)
        self._start = 0
        self.last: dict[str, float | None] = {}
        self.console = console or Console(quiet=folder is None, soft_wrap=True)
        self._say = speaker(self.console)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_) -> None:
        if self._file is not None:
            self._file.close()

    def rewind(self, step: int) -> None:
        """Removes the lines after a step, which a resumed run writes again."""
        if self._path is None or self._file is None:
            return
        kept: dict[float, dict[str, float | None]] = {}
        for row in read_metrics(self._path.parent):
            if 0 < (number := row["step"] or 0) <= step:
                kept[number] = kept.get(number, {}) | row
        self._file.close()
        rows = list(kept.values())
        lines = [json.dumps(row) + "\n" for row in rows]
        new = self._path.with_name(f"{METRICS}.new")  # so that a kill at any moment loses nothing
        new.write_text("".join(lines), encoding="utf-8")
        new.replace(self._path)
        self._file = _opened(self._path)
        self._start = sum(map(len, lines[:-1]))
        self.last = rows[-1] if rows else {}

    def has_evaluation(self, step: int) -> bool:
        """Whether the last line is that of the step, with an evaluation."""
        return self.last.get("step") == step and is_evaluation(self.last)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Adds values to the line of a step, the last one; what is no finite number becomes null."""
        if self._file is None:
            return
        row = {
            name: float(value) if math.isfinite(value) else None for name, value in values.items()
        }
        if self.last.get("step") == step:
            self._file.truncate(self._start)
            row = self.last | row
        self._append({"step": step, **row})

    def _append(self, row: dict[str, float | None]) -> None:
        if self._file is not None:
            self._start = self._file.seek(0, os.SEEK_END)
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()
            self.last = row

    def step(self, step: int, steps: int, values: Mapping[str, float]) -> None:
        """Shows a step's line."""
        self.say(step_line(step, steps, values, self._terms))

    def say(self, text: str) -> None:
        """Prints a line as it is."""
        self._say(text)


def _opened(path: pathlib.Path) -> TextIO:
    """A file to append to."""
    return _Rewritten(path) if scheme_of(path) else path.open("a", encoding="utf-8")


class _Rewritten(io.StringIO):
    """A file of an object store, where nothing can be appended: each flush writes it anew."""

    def __init__(self, path: pathlib.Path):
        super().__init__(path.read_text(encoding="utf-8") if path.is_file() else "")
        self._path = path

    def flush(self) -> None:
        self._path.write_text(self.getvalue(), encoding="utf-8")


def speaker(console: Console | None = None, stderr: bool = False) -> Say:
    """A function that prints lines as they are; by default to the first process's terminal."""
    if console is None:
        console = Console(quiet=jax.process_index() > 0, soft_wrap=True, stderr=stderr)
    return lambda line: console.print(line, markup=False, highlight=False, emoji=False)


def step_line(step: int, steps: int, values: Mapping[str, float], terms: Iterable[str]) -> str:
    """The loss and those terms that have a value, samples a second, data wait and time left.

    Where they are known also TFLOP/s of a device and MFU.
    """
    shown = " ".join(f"{name} {values[name]:.3f}" for name in ("loss", *terms) if name in values)
    minutes, seconds = divmod(int(min(values["eta"], 359_999)), 60)
    left = f"{minutes // 60:02}:{minutes % 60:02}:{seconds:02}"
    used = ""
    if "mfu" in values:
        used = f"{values['tflops_per_device']:.1f} TFLOP/s a device  MFU {values['mfu']:.1%}  "
    return (
        f"step {step}/{steps}  {shown}  {values['samples_per_second']:.0f} samples/s  {used}"
        f"data wait {values['data_wait']:.1%}  ETA {left}"
    )


def read_metrics(folder: pathlib.Path) -> list[dict[str, float | None]]:
    """The lines of `metrics.jsonl` in a folder; a last line that was cut short is left out.

    Raises:
      ConfigError: for another line that is no JSON object.
    """
    file = folder / METRICS
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True) if file.is_file() else []
    rows = []
    for number, line in enumerate(lines, 1):
        if line.endswith("\n"):
            try:
                rows.append(parse_object(line, f"{file}:{number}"))
            except BadRecord as error:
                raise ConfigError(f"{error}; remove the line") from error
    return rows


def is_evaluation(row: Mapping[str, float | None]) -> bool:
    """Whether a line of `metrics.jsonl` holds the nested scores of an evaluation."""
    return any("/" in name for name in row)
