"""Scores of many fine-tunings and evaluations, brought together over seeds.

A setting is a protocol, and of few-shot its number of shots. Of each task and setting every language
has a score from each seed; means and errors are over seeds.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rc3_jax.config import check_choice
from rc3_jax.downstream.config import ENGLISH, MINIATURE, TASKS
from rc3_jax.downstream.scoring import average_without_english, mean_and_error, zero_shot_gap

Result = Mapping[str, Any]
"""What a `scores.json` holds; see docs/tasks.md."""

ZERO_SHOT, FEW_SHOT, TRANSLATE_TEST = "zero-shot", "few-shot", "translate-test"
PROTOCOLS = (
    *(ZERO_SHOT, FEW_SHOT, TRANSLATE_TEST),
    *("translate-train", "single language", "all languages"),
)
"""In the order of a report; others follow."""
WITH_MEAN_RECALL = ("multi30k", "mscoco")
RE_RANKED = "re-ranked "
SYSTEM_NAMES = {"rc3": "RC³", "cclm": "CCLM"}


class Setting(NamedTuple):
    """How a task was learnt and tested."""

    protocol: str
    shots: str | None = None

    def __str__(self) -> str:
        return self.protocol if self.shots is None else f"{self.protocol}, {self.shots}"


class Cell(NamedTuple):
    """A number of a table.

    Attributes:
      mean: over seeds; a share, or the variance of a rank.
      error: the standard error of the mean, not a number where there is one seed.
      n: seeds.
      partial: some rows of the data could not be scored.
    """

    mean: float
    error: float
    n: int
    partial: bool = False


class Variance(NamedTuple):
    """Rank variances of a setting, by name; of the languages that they are over."""

    setting: Setting
    languages: tuple[str, ...]
    cells: dict[str, Cell]


class Numbers:
    """What a report shows of the results of one system.

    Raises:
      ValueError: if there are none, or if they do not go together: several systems, a task on
        generated and on other data, or two scores where there can be one.
    """

    def __init__(self, results: Sequence[Result]):
        if not results:
            raise ValueError("no results to report")
        self.results = results
        self.system = _only({result["system"] for result in results}, "system")
        # task, setting → score → language → seed → value
        self._scores: dict[tuple[str, Setting], dict[str, dict[str, dict[int, float]]]] = {}
        self._partial: set[tuple[str, Setting, str]] = set()
        self._languages: dict[str, dict[str, None]] = {}
        self._generated: dict[str, bool] = {}
        # task, setting, seed, language → the model's folder
        self._origins: dict[tuple[str, Setting, int, str], str] = {}
        for result in results:
            self._add(result)

    @property
    def tasks(self) -> list[str]:
        """Those with results, in the order of `TASKS`."""
        return [task for task in TASKS if task in self._languages]

    @property
    def system_name(self) -> str:
        """As in papers."""
        return SYSTEM_NAMES.get(self.system, self.system)

    @property
    def has_few_shot(self) -> bool:
        """Of any task."""
        return any(self.shots(task) for task in self.tasks)

    @property
    def seeds(self) -> list[int]:
        """Of any result."""
        return sorted({result["seed"] for result in self.results})

    @property
    def protocols(self) -> list[str]:
        """Of any task."""
        settings = sorted({setting for _, setting in self._scores}, key=_setting_order)
        return list(dict.fromkeys(setting.protocol for setting in settings))

    def settings(self, task: str) -> list[Setting]:
        """By protocol, then by shots."""
        return sorted((s for t, s in self._scores if t == task), key=_setting_order)

    def languages(self, task: str) -> list[str]:
        """In the order of the results."""
        return list(self._languages[task])

    def is_generated(self, task: str) -> bool:
        """Whether its examples were made from scenes, so that nothing published compares."""
        return self._generated[task]

    def metrics(self, task: str) -> list[str]:
        """Names of scores, in the order of the results."""
        found = (name for (t, _), scores in self._scores.items() if t == task for name in scores)
        return list(dict.fromkeys(found))

    def is_reranked(self, task: str) -> bool:
        """Whether every result of a retrieval task has re-ranked scores, which are shown then."""
        return all(
            f"{RE_RANKED}IR@1" in scores
            for result in self.results
            if result["task"] == task
            for scores in result["scores"].values()
        )

    def headline(self, task: str) -> dict[str, str]:
        """Column of the summary → name of its score."""
        if not TASKS[task].retrieval:
            return {task: "accuracy"}
        prefix = RE_RANKED if self.is_reranked(task) else ""
        return {column: prefix + column.removeprefix(f"{task} ") for column in columns(task)}

    def shots(self, task: str) -> list[str]:
        """Of few-shot, from few to many."""
        return [s.shots for s in self.settings(task) if s.protocol == FEW_SHOT]

    def most_shots(self, task: str) -> Setting | None:
        """Few-shot with the most shots that all its languages have, or else with the most."""
        few = [s for s in self.settings(task) if s.protocol == FEW_SHOT]
        of = {s: {code for by in self._scores[task, s].values() for code in by} for s in few}
        every = set().union(*of.values())
        return max(few, key=lambda s: (of[s] == every, shots_order(s.shots)), default=None)

    def cell(self, task: str, setting: Setting, metric: str, language: str) -> Cell | None:
        """Over the seeds that have the language."""
        values = self._by_language(task, setting, metric).get(language)
        if not values:
            return None
        partial = (task, setting, language) in self._partial
        return Cell(*mean_and_error(list(values.values())), len(values), partial)

    def others(self, task: str, setting: Setting | None) -> list[str]:
        """The languages of a setting without English."""
        found = [code for t, s, _, code in self._origins if (t, s) == (task, setting)]
        return [code for code in dict.fromkeys(found) if code != ENGLISH]

    def average(self, task: str, setting: Setting, metric: str) -> Cell | None:
        """Mean over the languages without English, of the seeds that have all of these."""
        by_language = self._by_language(task, setting, metric)
        others = {code: of for code, of in by_language.items() if code != ENGLISH}
        if not others:
            return None
        seeds = sorted(set.intersection(*(set(of) for of in others.values())))
        if not seeds:
            return None
        means = [
            average_without_english({code: of[seed] for code, of in others.items()}, ENGLISH)
            for seed in seeds
        ]
        partial = any((task, setting, code) in self._partial for code in others)
        return Cell(*mean_and_error(means), len(means), partial)

    def gap(self, task: str, metric: str, language: str) -> Cell | None:
        """By how much zero-shot is below English, over the seeds that have both."""
        setting = Setting(ZERO_SHOT)
        by_language = self._by_language(task, setting, metric)
        english, other = by_language.get(ENGLISH, {}), by_language.get(language, {})
        seeds = [seed for seed in other if seed in english]
        if language == ENGLISH or not seeds:
            return None
        gaps = [
            zero_shot_gap({ENGLISH: english[seed], language: other[seed]}, ENGLISH)[language]
            for seed in seeds
        ]
        partial = any((task, setting, code) in self._partial for code in (ENGLISH, language))
        return Cell(*mean_and_error(gaps), len(gaps), partial)

    def variances(self, task: str) -> list[Variance]:
        """Of ranks over languages; results over other languages stay apart."""
        found: dict[tuple, dict[str, list[float]]] = {}
        for result in self.results:
            if result["task"] != task or not result.get("across"):
                continue
            over = tuple(code for code in self.languages(task) if code in result["scores"])
            of = found.setdefault((setting_of(result), over), {})
            for name, value in result["across"].items():
                of.setdefault(name, []).append(value)
        return [
            Variance(setting, over, self._variance_cells(task, setting, over, found[setting, over]))
            for setting, over in sorted(found, key=lambda key: _setting_order(key[0]))
        ]

    def aggregated(self) -> dict[str, Any]:
        """task → protocol → shots (null but for few-shot) → score → language → the cell."""
        return self._tree(
            lambda task, setting, metric, by_language: {
                code: _as_json(self.cell(task, setting, metric, code)) for code in by_language
            }
        )

    def averages(self) -> dict[str, Any]:
        """As `aggregated`, of the mean over languages without English in place of languages."""
        return self._tree(
            lambda task, setting, metric, _: _as_json(self.average(task, setting, metric))
        )

    def _add(self, result: Result) -> None:
        task, setting, seed = result["task"], setting_of(result), result["seed"]
        check_choice("the task of a result", task, TASKS)
        if self._generated.setdefault(task, _is_generated(result)) != _is_generated(result):
            raise ValueError(f"{task}: results on the {MINIATURE} and on other data; report apart")
        if (setting.protocol == FEW_SHOT) != (setting.shots is not None):
            raise ValueError(f"{task}, {setting.protocol}: shots are {setting.shots}")
        languages = self._languages.setdefault(task, {})
        metrics = self._scores.setdefault((task, setting), {})
        left_out = result["test"].get("left_out") or {}
        for language, scores in result["scores"].items():
            key = task, setting, seed, language
            if key in self._origins:
                raise ValueError(
                    f"{task}, {setting}, seed {seed}: two results for {language}, of "
                    f"{self._origins[key]} and of {result['from']}; a report takes one"
                )
            self._origins[key] = result["from"]
            languages[language] = None
            if left_out.get(language):
                self._partial.add((task, setting, language))
            for name, value in scores.items():
                metrics.setdefault(name, {}).setdefault(language, {})[seed] = value

    def _by_language(self, task: str, setting: Setting, metric: str) -> dict[str, dict[int, float]]:
        return self._scores.get((task, setting), {}).get(metric, {})

    def _variance_cells(self, task, setting, languages, values) -> dict[str, Cell]:
        partial = any((task, setting, code) in self._partial for code in languages)
        return {
            name: Cell(*mean_and_error(of), len(of), partial) for name, of in sorted(values.items())
        }

    def _tree(self, content) -> dict[str, Any]:
        tree: dict[str, Any] = collections.defaultdict(lambda: collections.defaultdict(dict))
        for task in self.tasks:
            for setting in self.settings(task):
                tree[task][setting.protocol][setting.shots] = {
                    metric: content(task, setting, metric, by_language)
                    for metric, by_language in self._scores[task, setting].items()
                }
        return tree


def columns(task: str) -> tuple[str, ...]:
    """Of a summary: accuracy, or recall at 1 and of some tasks its mean over 1, 5 and 10."""
    if not TASKS[task].retrieval:
        return (task,)
    names = ("IR@1", "TR@1", "mean") if task in WITH_MEAN_RECALL else ("IR@1", "TR@1")
    return tuple(f"{task} {name}" for name in names)


def setting_of(result: Result) -> Setting:
    """Its protocol and shots."""
    return Setting(result["protocol"], result["shots"])


def shots_order(shots: str) -> tuple[int, int]:
    """Sorts "10x2" after "10" and before "25"."""
    number, _, times = shots.partition("x")
    return int(number), int(times or 1)


def _setting_order(setting: Setting) -> tuple:
    known = setting.protocol in PROTOCOLS
    place = PROTOCOLS.index(setting.protocol) if known else len(PROTOCOLS)
    return place, setting.protocol, shots_order(setting.shots or "0")


def _is_generated(result: Result) -> bool:
    return result.get("data") == MINIATURE


def _only(found: set[str], what: str) -> str:
    if len(found) > 1:
        names = " and ".join(sorted(found))
        raise ValueError(f"results of more than one {what}, {names}; write a report for each")
    return found.pop()


def _as_json(cell: Cell | None) -> dict[str, Any] | None:
    if cell is None:
        return None
    error = None if math.isnan(cell.error) else cell.error
    return {"mean": cell.mean, "error": error, "n": cell.n, "partial": cell.partial}
