"""All tasks of a folder in every protocol, from one pre-trained model to one report.

What is done is not done again: each fine-tuning and evaluation has a folder of its own, and one that
was interrupted goes on.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import ml_collections
from jax.experimental.multihost_utils import broadcast_one_to_all
from rich.console import Console

from rc3_jax.config import ConfigError
from rc3_jax.data.record import DataError
from rc3_jax.downstream.config import (
    ENGLISH,
    MINIATURE,
    MINIATURES,
    TASKS,
    finetune_config,
    miniature_config,
)
from rc3_jax.downstream.finetune import UNFINISHED, evaluate, finetune
from rc3_jax.downstream.open import available, open_task
from rc3_jax.downstream.pretrained import load_pretrained, params_checksum
from rc3_jax.downstream.readers import ENGLISH_TASKS
from rc3_jax.downstream.report import summary_table, write_report
from rc3_jax.downstream.results import SCORES, config_checksum
from rc3_jax.observe.log import speaker
from rc3_jax.training.memory import OutOfMemory

PROTOCOLS = ("zero-shot", "translate-test", "few-shot", "translate-train", "languages")
"""`languages` is fine-tuning in each language that has training data, and in all together."""


@dataclasses.dataclass(frozen=True)
class Step:
    """A fine-tuning or an evaluation.

    Attributes:
      folder: of its results, below that of the task and seed.
      changes: of the task's settings, by dotted names.
      after: the step whose model it starts from, None for the pre-trained one.
      trains: False where it only scores.
      keeps: whether later steps need its model.
    """

    folder: str
    changes: Mapping[str, Any]
    after: str | None = None
    trains: bool = True
    keeps: bool = False


@dataclasses.dataclass(frozen=True)
class Options:
    """What a suite does.

    Attributes:
      protocols: of PROTOCOLS.
      seeds: of each fine-tuning.
      shots: of few-shot, as texts; () for all that there are.
      changes: settings of all tasks, by dotted names; `task/name` for those of one.
      tasks: () for all that there are.
    """

    protocols: Sequence[str] = ("zero-shot", "translate-test")
    seeds: Sequence[int] = (0,)
    shots: Sequence[str] = ()
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    tasks: Sequence[str] = ()


def run_suite(
    source: pathlib.Path,
    data: str,
    images: str,
    folder: pathlib.Path,
    options: Options,
    console: Console | None = None,
) -> pathlib.Path:
    """Runs what is not done yet, and writes the report; a task that cannot be run is named in it.

    Args:
      source: folder of the pre-trained model.
      data: folder of the tasks' folders, named like TASKS and their English ones in any case, or
        MINIATURE.
      images: folder of their pictures, or of a folder for each task; several are joined by ":".
      folder: to write: `<task>/seed_<n>/<step>/scores.json` and the report.

    Raises:
      ConfigError, DataError: if there is no task, or none can be run.
    """
    say = speaker(console)
    if len(set(options.seeds)) < len(options.seeds):
        raise ConfigError(f"seeds {', '.join(map(str, options.seeds))}: name each once")
    configs = task_configs(data, images, options)
    not_run: dict[str, str] = {}
    plans: dict[str, list[Step]] = {}
    for task, config in configs.items():
        try:
            plans[task] = plan(config, available(config), options, not_run)
        except (ConfigError, DataError) as error:
            not_run[task] = str(error)
            say(f"{task}: not run: {error}")
    results: list[dict[str, Any]] = []
    model_sha256 = params_checksum(load_pretrained(source, 1 << 20).params) if plans else ""
    for task, steps in plans.items():
        for seed in options.seeds:
            where = source, model_sha256, folder / task
            results += _run_steps(configs[task], steps, seed, *where, not_run, say, console)
    if not results:
        reasons = "\n  ".join(f"{what}: {why}" for what, why in not_run.items())
        raise DataError(f"{data}: no task could be run:\n  {reasons}")
    report = folder / "report.md"
    if jax.process_index() == 0:
        report = write_report(folder, results, not_run)
        (console or Console()).print(summary_table(results))
    say(f"report: {report}")
    return report


def task_configs(data: str, images: str, options: Options) -> dict[str, ml_collections.ConfigDict]:
    """Task → its settings, for the tasks that the folder holds.

    Raises:
      ConfigError: if it holds none, or lacks one that was asked for.
    """
    if data == MINIATURE:
        configs = {task: miniature_config(task) for task in MINIATURES}
    else:
        configs = _configs_of_folder(pathlib.Path(data), images)
    chosen = list(options.tasks or configs)
    if lacking := [task for task in chosen if task not in configs]:
        raise ConfigError(
            f"{data} has no {', '.join(lacking)}, but {', '.join(configs) or 'no task'}; folders are "
            f"named {', '.join(TASKS)}"
        )
    for name in options.changes:
        if name.rpartition("/")[0] not in ("", *TASKS) or name.rpartition("/")[2] == "seed":
            raise ConfigError(f"{name}: settings are NAME or TASK/NAME, and seeds are told apart")
    for task in chosen:
        for prefix in ("", f"{task}/"):  # what is set for a task overrides what is for all
            own = {
                name.removeprefix(prefix): value
                for name, value in options.changes.items()
                if name.rpartition("/")[0] == prefix.rstrip("/")
            }
            try:
                configs[task].lock().update_from_flattened_dict(own)
            except (KeyError, TypeError, ValueError) as error:
                raise ConfigError(f"{task}: {error.args[0]}") from error
    return {task: configs[task] for task in chosen}


def _configs_of_folder(data: pathlib.Path, images: str) -> dict[str, ml_collections.ConfigDict]:
    if not data.is_dir():
        raise ConfigError(f"{data}: no such folder of tasks")
    there = {path.name.lower(): path for path in sorted(data.iterdir()) if path.is_dir()}
    configs = {}
    for task in TASKS:
        if task not in there:
            continue
        config = configs[task] = finetune_config(task)
        config.annotations = str(there[task])
        english = ENGLISH_TASKS.get(task)
        if english in there:
            config.english = str(there[english])
        config.images = os.pathsep.join(_image_folders(images or str(there[task]), task, english))
    return configs


def _image_folders(images: str, *names: str | None) -> Iterator[str]:
    """The folders themselves, and before them those in them that are named after a task."""
    roots = images.split(os.pathsep)
    for root in roots:
        inside = pathlib.Path(root)
        for path in sorted(inside.iterdir()) if inside.is_dir() else ():
            if path.name.lower() in names and path.is_dir():
                yield str(path)
    yield from roots


def plan(
    config: ml_collections.ConfigDict,
    splits: Mapping[str, Sequence[str]],
    options: Options,
    not_run: dict[str, str],
) -> list[Step]:
    """The steps of a task, in an order in which they can be run.

    Args:
      splits: split → languages that there are.
      not_run: is told what cannot be run, and why.
    """
    unknown = set(options.protocols) - set(PROTOCOLS)
    if unknown:
        raise ConfigError(
            f"protocols: {', '.join(sorted(unknown))} unknown; use {', '.join(PROTOCOLS)}"
        )
    lacking = [
        f"{split} in English" for split in ("train", "dev") if ENGLISH not in splits.get(split, ())
    ]
    lacking += [] if splits.get("test") else ["test"]
    if lacking:
        raise DataError(
            f"{config.annotations} has no {', no '.join(lacking)}"
            + (f" (nor {config.english})" if config.english else "")
            + f"; it has {', '.join(splits) or 'nothing'}"
        )
    steps = []
    if {"zero-shot", "translate-test", "few-shot"} & set(options.protocols):
        steps.append(Step("zero_shot", {}, keeps=True))
    if "translate-test" in options.protocols:
        if "test_mt" in splits:
            change = {"test.split": "test_mt"}
            steps.append(Step("translate_test", change, after="zero_shot", trains=False))
        else:
            not_run[f"{config.task}, translate-test"] = "no machine-translated test set"
    if "few-shot" in options.protocols:
        found = list(_few_shot(config, splits, options.shots))
        if not found:
            asked = f" with {', '.join(options.shots)} shots" if options.shots else ""
            not_run[f"{config.task}, few-shot"] = f"no training set{asked}"
        steps += found
    if "translate-train" in options.protocols:
        found = list(_by_language("translate_train", splits, "train_mt"))
        if not found:
            not_run[f"{config.task}, translate-train"] = "no machine-translated training set"
        steps += found
    if "languages" in options.protocols:
        found = list(_by_language("single_language", splits, "train"))
        if found:
            every = (ENGLISH, *(step.changes["train.languages"][0] for step in found))
            selected = tuple(code for code in every if code in splits["dev"])
            changes = {"train.languages": every, "select.languages": selected}
            found.append(Step("all_languages", changes))
        else:
            not_run[f"{config.task}, languages"] = "no training set but in English"
        steps += found
    return steps


def _few_shot(config, splits: Mapping[str, Sequence[str]], shots: Sequence[str]) -> Iterator[Step]:
    for split, languages in splits.items():
        number = split.removeprefix("train_")
        if number == split or not number[0].isdigit() or (shots and number not in shots):
            continue
        for language in languages:
            if language == ENGLISH or language not in splits["test"]:
                continue
            changes = config.few_shot.to_dict() | {"train.split": split}
            changes["train.languages"] = (language,)
            changes["test.languages"] = (language,)
            yield Step(f"few_shot_{number}_{language}", changes, after="zero_shot")


def _by_language(name: str, splits: Mapping[str, Sequence[str]], split: str) -> Iterator[Step]:
    """Training in each language but English alone, selected and tested in it where that can be."""
    for language in splits.get(split, ()):
        if language == ENGLISH or language not in splits["test"]:
            continue
        selected = language if language in splits["dev"] else ENGLISH
        changes = {"train.split": split, "train.languages": (language,)}
        changes |= {"select.languages": (selected,), "test.languages": (language,)}
        yield Step(f"{name}_{language}", changes)


def _run_steps(config, steps, seed: int, source, model_sha256: str, folder, not_run, say, console):
    """The results of a task with a seed; a step that cannot be run is told, and what follows it."""
    results = []
    places = {step.folder: folder / f"seed_{seed}" / step.folder for step in steps}
    for step in steps:
        place = places[step.folder]
        name = f"{config.task}, {step.folder.replace('_', ' ')}, seed {seed}"
        if step.after and not _is_there(places[step.after] / SCORES):
            not_run[name] = f"{step.after.replace('_', ' ')} was not run"
            continue
        chosen = config.copy_and_resolve_references()
        chosen.update_from_flattened_dict({**step.changes, "seed": seed})
        if _is_there(place / SCORES):
            result = json.loads((place / SCORES).read_text(encoding="utf-8"))
            _check_done(place, result, chosen, None if step.after else model_sha256)
            if jax.process_index() == 0:
                shutil.rmtree(place / UNFINISHED, ignore_errors=True)
            results.append(result)
            continue
        say(f"{name}: {place}")
        begin = places[step.after] if step.after else source
        try:
            if step.trains:
                data = open_task(chosen, say)
                result = finetune(chosen, data, begin, place, console, keep=step.keeps)
            else:
                data = open_task(chosen, say, parts=("test",))
                result = evaluate(chosen, data, begin, place, console)
        except (ConfigError, DataError, FloatingPointError, OutOfMemory) as error:
            if jax.process_count() > 1:  # the others may wait for this one
                raise
            not_run[name] = str(error)
            say(f"{name}: not run: {error}")
            continue
        results.append(result)
    return results


def _is_there(file: pathlib.Path) -> bool:
    """As the first process sees it: file systems may show processes different things."""
    return bool(broadcast_one_to_all(file.is_file()))


def _check_done(
    place: pathlib.Path,
    result: Mapping[str, Any],
    config: ml_collections.ConfigDict,
    model_sha256: str | None,
) -> None:
    """Raises ConfigError where a result is not of these settings, this data or this model."""
    expected = {"data": config.annotations, "config_sha256": config_checksum(config)}
    if model_sha256 is not None:
        expected["model_sha256"] = model_sha256
    differing = [name for name, value in expected.items() if result.get(name) != value]
    if differing:
        raise ConfigError(
            f"{place / SCORES} has another {', '.join(differing)}: it is of other settings, other "
            "data or another model; choose another --workdir, or remove it"
        )
