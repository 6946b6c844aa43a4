"""The steps of a task in every protocol: what is trained, on what, and what is scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import ml_collections

from rc3_jax.data.coverage import check_languages
from rc3_jax.data.record import DataError
from rc3_jax.tasks.base import ENGLISH
from rc3_jax.tasks.results import shots_of_split

PROTOCOLS = ("zero-shot", "translate-test", "few-shot", "translate-train", "languages")
"""`languages` is fine-tuning in each language that has training data, and in all together."""
ZERO_SHOT = "zero_shot"
"""Folder of the model that is fine-tuned in English."""

Splits = Mapping[str, Sequence[str]]
"""split → languages that the files of a task have."""


class Step(NamedTuple):
    """A fine-tuning or an evaluation.

    Attributes:
      folder: name of the folder of its results.
      changes: changes of the task's settings, by dotted names.
      after: folder of the step whose model it starts from; None for the pre-trained model.
    """

    folder: str
    changes: Mapping[str, Any]
    after: str | None = None
    trains: bool = True


class Options(NamedTuple):
    """What a suite does.

    Attributes:
      protocols: some of PROTOCOLS.
      shots: numbers of few-shot examples, such as "10x2"; () for all that there are.
      changes: settings of all tasks, by dotted names; `task/name` for those of one.
      tasks: names of tasks; () for all that there are.
    """

    protocols: Sequence[str] = ("zero-shot", "translate-test")
    seeds: Sequence[int] = (0,)
    shots: Sequence[str] = ()
    changes: Mapping[str, Any] = {}
    tasks: Sequence[str] = ()


def plan(
    config: ml_collections.ConfigDict, splits: Splits, options: Options, not_run: dict[str, str]
) -> list[Step]:
    """The steps of a task, in an order in which they can be run.

    Args:
      splits: split → languages that there are.
      not_run: is given what cannot be run, and why.

    Raises:
      DataError: there are no English examples to train and select on, no test, or not in a language
        of `config.test`.
    """
    lacking = [f"{s} in English" for s in ("train", "dev") if ENGLISH not in splits.get(s, ())]
    lacking += [] if splits.get("test") else ["test"]
    if lacking:
        folders = f"{config.annotations} has no {', no '.join(lacking)}"
        folders += f" (nor {config.english})" if config.english else ""
        raise DataError(f"{folders}; it has {', '.join(splits) or 'nothing'}")
    check_languages("test.languages", config.test.languages, splits["test"])
    chosen = config.test.languages
    translated = [code for code in splits.get("test_mt", ()) if not chosen or code in chosen]
    changed = {"test.split": "test_mt"} | ({"test.languages": tuple(translated)} if chosen else {})
    test_mt = Step("translate_test", changed, ZERO_SHOT, trains=False)
    splits = {**splits, "test": chosen or splits["test"]}
    few_shot, changes = [], config.few_shot.to_dict()
    numbers = {split: number for split in splits if (number := shots_of_split(split))}
    not_there = [number for number in options.shots if number not in numbers.values()]
    for split, number in numbers.items():
        if number in (options.shots or [number]):
            few_shot += _each_language(f"few_shot_{number}", splits, split, changes, ZERO_SHOT)
    single = _each_language("single_language", splits, "train")
    if single:
        every = (ENGLISH, *(step.changes["train.languages"][0] for step in single))
        selected = tuple(code for code in every if code in splits["dev"])
        changed = {"train.languages": every, "select.languages": selected}
        single.append(Step("all_languages", changed))
    found = {
        "zero-shot": [Step(ZERO_SHOT, {})],
        "translate-test": [test_mt] if translated else [],
        "few-shot": few_shot,
        "translate-train": _each_language("translate_train", splits, "train_mt"),
        "languages": single,
    }
    steps: list[Step] = []
    for protocol in (name for name in PROTOCOLS if name in options.protocols):
        steps += found[protocol]
        shots = not_there if protocol == "few-shot" else []
        if shots or not found[protocol]:
            which = f" with {', '.join(shots)} shots" if shots else ""
            chosen = config.test.languages
            which += f" in {', '.join(chosen)} (test.languages)" if chosen else ""
            not_run[f"{config.task}, {protocol}"] = f"no files for it{which}"
    if any(step.after for step in steps) and "zero-shot" not in options.protocols:
        steps.insert(0, Step(ZERO_SHOT, {}))
    return steps


def _each_language(
    name: str, splits: Splits, split: str, changes: Mapping = {}, after: str | None = None
) -> list[Step]:
    """Training in each language but English that has a test, and selection on it where it has dev
    data; few-shot is selected on English dev, as in IGLUE.
    """
    steps = []
    for code in splits.get(split, ()):
        if code != ENGLISH and code in splits["test"]:
            own = {"train.split": split, "train.languages": (code,), "test.languages": (code,)}
            if after is None and code in splits["dev"]:
                own["select.languages"] = (code,)
            steps.append(Step(f"{name}_{code}", {**changes, **own}, after))
    return steps
