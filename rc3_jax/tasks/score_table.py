"""One flat table of scores; every number of a report is a filter and a group-by over its rows."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

from rc3_jax.settings import check_choice
from rc3_jax.tasks.base import ENGLISH
from rc3_jax.tasks.benchmarks import TASKS
from rc3_jax.tasks.config import MINIATURE
from rc3_jax.tasks.scoring import mean_and_error

Result = Mapping[str, Any]
"""Content of a `scores.json`; see docs/tasks.md."""
T = TypeVar("T")

OURS = "ours"
ZERO_SHOT, FEW_SHOT, TRANSLATE_TEST = "zero-shot", "few-shot", "translate-test"
PROTOCOLS = (
    *(ZERO_SHOT, FEW_SHOT, TRANSLATE_TEST),
    *("translate-train", "single language", "all languages"),
)
"""In the order of a report; others follow."""
MEAN = f"mean without {ENGLISH}"
"""In place of a language: the mean over the other languages, of seeds that have all of them."""
GAP = ": gap to English"
"""After the name of a score: by how much zero-shot is below English."""
RANK_VARIANCE = " rank variance"
"""After IR or TR: a score across languages, whose `language` names them all."""
RE_RANKED = "re-ranked "


class Row(NamedTuple):
    """One score of one model.

    Attributes:
      model: `OURS`, or the name of a published one.
      protocol: with the shots, as in "few-shot, 10x2".
      value: a share, or the variance of a rank.
      partial: whether some rows of the test could not be scored.
    """

    model: str
    task: str
    protocol: str
    metric: str
    language: str
    seed: int
    value: float
    partial: bool = False


class Cell(NamedTuple):
    """The mean of rows that differ only in their seed.

    Attributes:
      error: the standard error of the mean; NaN for one seed.
      n: number of seeds; 0 for a published score.
      partial: whether any of the rows is.
    """

    mean: float
    error: float
    n: int
    partial: bool = False


class ScoreTable:
    """Scores of one system, with those that others published for the same tasks.

    Attributes:
      rows: one for each score in the results, and the published ones.
      cells: model, task, protocol, metric and language → the mean over seeds.
      generated: tasks whose examples were generated, so that nothing published compares.

    Raises:
      ValueError: if there are no results, or they do not go together: several systems, a task on
        generated and on other data, training in different languages, or two scores in one place.
    """

    def __init__(self, results: Sequence[Result]):
        if not results:
            raise ValueError("no results to report")
        _check_comparable(results)
        self.results, self.system = results, str(results[0]["system"])
        self.generated = {r["task"] for r in results if r.get("data") == MINIATURE}
        every = [row for result in results for row in _rows(result)]
        self.rows = [row for row in every if RANK_VARIANCE not in row.metric]
        derived = [*_means(self.rows), *_gaps(self.rows)]
        derived += [row for row in every if RANK_VARIANCE in row.metric]
        for task in (name for name in self.tasks if name not in self.generated):
            self.rows += _published(task)
        self.cells = {
            key: _cell(rows)
            for key, rows in group([*self.rows, *derived], lambda row: row[:5]).items()
        }

    def cell(
        self, task: str, protocol: str, metric: str, language: str, model: str = OURS
    ) -> Cell | None:
        """The mean over seeds; `language` may be `MEAN`, and `metric` may end in `GAP`."""
        return self.cells.get((model, task, protocol, metric, language))

    def distinct(
        self, column: str, task: str | None = None, protocol: str | None = None, model: str = OURS
    ) -> list:
        """Values of a column, in the order of the results, where task and protocol are these."""
        wanted = {"model": model, "task": task, "protocol": protocol}
        rows = (
            row
            for row in self.rows
            if all(value in (None, getattr(row, name)) for name, value in wanted.items())
        )
        return list(dict.fromkeys(getattr(row, column) for row in rows))

    @property
    def tasks(self) -> list[str]:
        """Tasks with results, in the order of `TASKS`."""
        return sorted(self.distinct("task"), key=list(TASKS).index)

    @property
    def models(self) -> list[str]:
        """Ours, and then the published ones."""
        return list(dict.fromkeys(row.model for row in self.rows))

    def protocols(self, task: str | None = None) -> list[str]:
        """Our protocols of a task or of all, in order."""
        return sorted(self.distinct("protocol", task), key=protocol_order)

    def headline(self, task: str) -> list[str]:
        """The scores that count; re-ranked ones where every result has them."""
        scores = TASKS[task].scores
        every = [of for r in self.results if r["task"] == task for of in r["scores"].values()]
        prefix = RE_RANKED if all(RE_RANKED + scores[0] in of for of in every) and every else ""
        return [prefix + name for name in scores]

    def headlines(self) -> list[tuple[str, str]]:
        """All tasks, each with its scores that count."""
        return [(task, metric) for task in self.tasks for metric in self.headline(task)]

    def few_shot(self, task: str | None = None) -> list[str]:
        """Our few-shot protocols of a task or of all, from few shots to many."""
        return [protocol for protocol in self.protocols(task) if shots_of(protocol)]

    def most_shots(self, task: str, model: str = OURS) -> str:
        """Few-shot with the most shots that all its languages have, or else with the most."""
        few = filter(shots_of, self.distinct("protocol", task, model=model))
        over = {name: set(self.distinct("language", task, name, model)) for name in few}
        every = set().union(*over.values())
        return max(over, key=lambda n: (over[n] == every, protocol_order(n)), default=FEW_SHOT)


def group(rows: Iterable[T], key: Callable[[T], Hashable]) -> dict[Any, list[T]]:
    """key → its rows, in their order."""
    found: dict[Any, list[T]] = {}
    for row in rows:
        found.setdefault(key(row), []).append(row)
    return found


def protocol_of(result: Result) -> str:
    """Protocol and shots of a result, as in "few-shot, 10x2"."""
    return result["protocol"] + (f", {result['shots']}" if result["shots"] else "")


def shots_of(protocol: str) -> str:
    """The shots of a few-shot protocol, such as "10x2"; empty for the others."""
    return protocol.partition(", ")[2]


def protocol_order(protocol: str) -> tuple:
    """Key that sorts protocols by name, and shots "10x2" after "10" and before "25"."""
    name, _, shots = protocol.partition(", ")
    number, _, times = shots.partition("x")
    place = PROTOCOLS.index(name) if name in PROTOCOLS else len(PROTOCOLS)
    return place, name, int(number or 0), int(times or 1)


def left_out(result: Result) -> dict[str, int]:
    """language → number of rows of the test that could not be scored, where there are any."""
    return {code: n for code, n in (result["test"].get("left_out") or {}).items() if n}


def _rows(result: Result) -> Iterator[Row]:
    """All scores of a result, those across languages last."""
    task, protocol, lost = result["task"], protocol_of(result), left_out(result)
    for code, scores in result["scores"].items():
        for metric, value in scores.items():
            yield Row(OURS, task, protocol, metric, code, result["seed"], value, code in lost)
    codes = list(result["scores"])
    for metric, value in (result.get("across") or {}).items():
        partial = any(code in lost for code in codes)
        yield Row(OURS, task, protocol, metric, " ".join(codes), result["seed"], value, partial)


def _published(task: str) -> Iterator[Row]:
    """The published scores of a task as rows, as shares."""
    scores, shots = TASKS[task].scores, TASKS[task].shots
    for model in TASKS[task].baselines:
        for protocol, language, values in (
            (ZERO_SHOT, ENGLISH, model.english),
            (ZERO_SHOT, MEAN, model.zero_shot),
            (TRANSLATE_TEST, MEAN, model.translate_test),
            (f"{FEW_SHOT}, {shots}", MEAN, model.few_shot),
        ):
            for metric, value in zip(scores, values or (), strict=False):
                yield Row(model.model, task, protocol, metric, language, 0, value / 100)
    for name, by_metric in TASKS[task].by_language.items():
        for metric, by_language in by_metric.items():
            for code, value in by_language.items():
                yield Row(name, task, ZERO_SHOT, metric, code, 0, value / 100)


def _means(rows: Sequence[Row]) -> Iterator[Row]:
    """The mean over languages without English, of each seed that has all of them."""
    others = [row for row in rows if row.language != ENGLISH]
    for found in group(others, lambda row: row[:4]).values():
        languages = {row.language for row in found}
        for seed, of_seed in group(found, lambda row: row.seed).items():
            if len(of_seed) == len(languages):
                value, partial = (
                    np.mean([r.value for r in of_seed]),
                    any(r.partial for r in of_seed),
                )
                yield Row(*found[0][:4], MEAN, seed, float(value), partial)


def _gaps(rows: Sequence[Row]) -> Iterator[Row]:
    """By how much zero-shot is below English, of each seed that has both."""
    zero_shot = [row for row in rows if row.protocol == ZERO_SHOT]
    english = {(r.task, r.metric, r.seed): r for r in zero_shot if r.language == ENGLISH}
    for row in zero_shot:
        best = english.get((row.task, row.metric, row.seed))
        if best and row.language != ENGLISH:
            gap, partial = best.value - row.value, best.partial or row.partial
            yield row._replace(metric=row.metric + GAP, value=gap, partial=partial)


def _cell(rows: Sequence[Row]) -> Cell:
    mean, error = mean_and_error([row.value for row in rows])
    n = len(rows) if rows[0].model == OURS else 0
    return Cell(mean, error, n, any(row.partial for row in rows))


def _check_comparable(results: Sequence[Result]) -> None:
    """Raises ValueError where results differ in what they must share."""
    known: dict[tuple[str, str], str] = {}
    for number, result in enumerate(results):
        task, protocol = result["task"], protocol_of(result)
        check_choice("the task of a result", task, TASKS)
        if (result["protocol"] == FEW_SHOT) != bool(result["shots"]):
            raise ValueError(f"{task}, {protocol}: shots are {result['shots']}")
        kind = MINIATURE if result.get("data") == MINIATURE else "files"
        facts = [("system", "all", result["system"]), ("kind of data", task, kind)]
        trained_on = " ".join((result.get("train") or {}).get("languages", ()))
        for code in result["scores"]:
            place = f"{task}, {protocol}, {code}"
            facts.append(("set of training languages", place, trained_on))
            own = f"{result['from']} (number {number})"
            facts.append(("result", f"{place}, seed {result['seed']}", own))
        for what, place, value in facts:
            if (before := known.setdefault((what, place), value)) != value:
                raise ValueError(
                    f"{place}: more than one {what}, {before} and {value}; write a report for each"
                )
