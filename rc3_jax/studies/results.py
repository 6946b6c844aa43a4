"""The file of a study's results, and what is computed from it: means, differences, verdicts."""

from __future__ import annotations

import math
import pathlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Self

import pydantic
from scipy import stats

from rc3_jax.data.jsonl import read_json
from rc3_jax.settings import ConfigError, Settings
from rc3_jax.studies.execute import RESULT
from rc3_jax.studies.study import Claim, Outline, Run, Study
from rc3_jax.tasks.scoring import mean_and_error

CONFIDENCE = 0.95
HOLDS, FAILS, OPEN = "holds", "does not hold", "cannot be told"


class RunResult(Settings):
    """What `result.json` of a run holds."""

    variant: str
    seed: int
    settings_sha256: str
    scores: dict[str, float]
    """Raw scores, of which a file of results keeps those that the study's scores are means of."""
    seconds: float
    """Of the process that finished the run."""
    versions: dict[str, str]

    @property
    def run(self) -> Run:
        """Which run it is of."""
        return Run(self.variant, self.seed)


class Interval(NamedTuple):
    """A mean with its confidence interval, over `n` seeds."""

    mean: float
    low: float
    high: float
    n: int


class Results(Settings):
    """A study and the runs that are done."""

    study: Outline
    runs: tuple[RunResult, ...]

    @pydantic.model_validator(mode="after")
    def _check(self) -> Self:
        if unknown := {str(run.run) for run in self.runs if run.run not in self.study.runs()}:
            raise ValueError(f"runs: the study has no {'; '.join(sorted(unknown))}")
        return self

    def reported_seeds(self) -> tuple[int, ...]:
        """The fresh seeds where there are runs of any; else those that settings were chosen on."""
        fresh = self.study.fresh_seeds
        return fresh if any(run.seed in fresh for run in self.runs) else self.study.seeds

    def values(self, score: str, variant: str) -> dict[int, float]:
        """Reported seed → the score of a variant."""
        return {
            run.seed: self.study.value(score, run.scores, run.run)
            for run in self.runs
            if run.variant == variant and run.seed in self.reported_seeds()
        }

    def difference(self, score: str, variant: str, than: str | float) -> Interval | None:
        """By how much a variant's score is higher, of the seeds that both have; None without any.

        Args:
          than: another variant, or a number.
        """
        ours = self.values(score, variant)
        theirs = self.values(score, than) if isinstance(than, str) else dict.fromkeys(ours, than)
        differences = [value - theirs[seed] for seed, value in ours.items() if seed in theirs]
        return mean_interval(differences) if differences else None


def mean_interval(values: Sequence[float]) -> Interval:
    """The mean and its Student-t interval of 95 %; of one value, the interval is infinite.

    Of differences of pairs it is the paired t interval.
    """
    (mean, error), n = mean_and_error(values), len(values)
    if n < 2:
        return Interval(mean, -math.inf, math.inf, n)
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) * error
    return Interval(mean, mean - half, mean + half, n)


def verdict(claim: Claim, difference: Interval | None) -> str:
    """Whether a claim holds for a variant: the interval lies on one side of 0, or nothing is known."""
    if difference is None:
        return OPEN
    above, below = difference.low > 0, difference.high < 0
    if not above and not below:
        return OPEN
    return HOLDS if above == (claim.direction == "above") else FAILS


def collect(study: Study, workdir: pathlib.Path, out: pathlib.Path) -> Results:
    """The results of the runs that are done in a folder, and of those in a file, if it is there.

    Raises:
      ConfigError, DataError: a run has other settings, or two results; a file cannot be read.
    """
    outline = Outline.parse({name: getattr(study, name) for name in Outline.model_fields})
    found: dict[Run, RunResult] = {}
    for run in study.runs():
        if (file := run.folder(workdir) / RESULT).is_file():
            found[run] = RunResult.parse(read_json(file), str(file))
            study.check_settings(run, found[run].settings_sha256, file.parent)
    earlier = Results.parse(read_json(out), str(out)).runs if out.is_file() else ()
    for before in Results.parse({"study": outline, "runs": earlier}, str(out)).runs:
        study.check_settings(before.run, before.settings_sha256, out)
        now = found.setdefault(before.run, before)
        if now.seconds != before.seconds or not before.scores.items() <= now.scores.items():
            raise ConfigError(f"{out}: {before.run} has another result there than in {workdir}")
    runs = [
        found[run].model_copy(update={"scores": study.chosen(found[run].scores, run)})
        for run in study.runs()
        if run in found
    ]
    return Results(study=outline, runs=tuple(runs))


def read_results(files: Iterable[pathlib.Path]) -> list[Results]:
    """Files of results, in the order of the studies' names.

    Raises:
      ConfigError, DataError: a file cannot be read, or two are of one study.
    """
    found: dict[str, Results] = {}
    for file in files:
        results = Results.parse(read_json(file), str(file))
        if found.setdefault(results.study.name, results) is not results:
            raise ConfigError(f"{file}: there are two files of the study {results.study.name}")
    return [found[name] for name in sorted(found)]
