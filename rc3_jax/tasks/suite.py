"""Runs all tasks of a folder in every protocol, from one pre-trained model to one report.

Resumable: each fine-tuning and evaluation has a folder of its own. What is done is not done again, and
what was interrupted goes on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import ml_collections
from jax.experimental.multihost_utils import broadcast_one_to_all
from rich.console import Console

from rc3_jax.data.jsonl import read_json
from rc3_jax.data.record import DataError
from rc3_jax.observe.log import Say, speaker
from rc3_jax.settings import ConfigError, change_setting, check_choice
from rc3_jax.tasks.base import TaskData
from rc3_jax.tasks.benchmarks import TASKS
from rc3_jax.tasks.config import MINIATURE, FinetuneSettings, finetune_config, miniature_config
from rc3_jax.tasks.evaluate import check_settings, data_checksum, evaluate
from rc3_jax.tasks.finetune import UNFINISHED, finetune
from rc3_jax.tasks.images import ImageFinder
from rc3_jax.tasks.load import (
    PARTS,
    available_splits,
    image_finder,
    load_task,
    wanted_languages,
)
from rc3_jax.tasks.plan import PROTOCOLS, ZERO_SHOT, Options, Step, plan
from rc3_jax.tasks.report import summary_table, write_report
from rc3_jax.tasks.results import SCORES, config_checksum
from rc3_jax.training.checkpoint import read_params
from rc3_jax.training.load import params_checksum
from rc3_jax.training.memory import OutOfMemory


class OtherResult(ConfigError):
    """A folder holds the result of other settings, other data or another model."""


def run_suite(
    source: pathlib.Path,
    data: str,
    images: str,
    folder: pathlib.Path,
    options: Options,
    console: Console | None = None,
    train: Callable[..., dict[str, Any]] = finetune,
    score: Callable[..., dict[str, Any]] = evaluate,
) -> pathlib.Path:
    """Runs what is not done yet, and writes the report; a task that cannot be run is named in it.

    Args:
      source: folder of the pre-trained model.
      data: folder of the tasks' folders, named like `TaskFiles.folder` in any case, or MINIATURE.
      images: folder of their images, or of a folder for each task; several are joined by ":".
      folder: to write: `<task>/seed_<n>/<step>/scores.json` and the report.
      train, score: run a step, as `finetune` and `evaluate` do.

    Raises:
      ConfigError, DataError: there is no task, none can be run, or a result in the folder is of other
        settings, other data or another model.

    Returns:
      The path of the report.
    """
    say = speaker(console)
    if len(set(options.seeds)) < len(options.seeds):
        raise ConfigError(f"seeds {', '.join(map(str, options.seeds))}: name each once")
    for protocol in options.protocols:
        check_choice("protocols", protocol, PROTOCOLS)
    results: list[dict[str, Any]] = []
    not_run: dict[str, str] = {}
    runner = _Runner(source, say, console, train, score)
    for task, config in task_configs(data, images, options).items():
        steps: list[Step] = []
        with _explained(task, not_run, say):
            steps = plan(config, available_splits(config), options, not_run)
        for step, seed in itertools.product(steps, options.seeds):
            name = f"{task}, {step.folder.replace('_', ' ')}, seed {seed}"
            chosen = config.copy_and_resolve_references()
            chosen.update_from_flattened_dict({**step.changes, "seed": seed})
            with _explained(name, not_run, say):
                seed_folder = folder / task / f"seed_{seed}"
                results.append(runner.run(name, step, chosen, seed_folder))
    if not results:
        reasons = "\n  ".join(f"{what}: {why}" for what, why in not_run.items())
        raise DataError(f"{data}: no task could be run:\n  {reasons}")
    report = folder / "report.md"
    if jax.process_index() == 0:
        report = write_report(folder, results, not_run)
        (console or Console()).print(summary_table(results))
    say(f"report: {report}")
    return report


@contextlib.contextmanager
def _explained(what: str, not_run: dict[str, str], say: Say) -> Iterator[None]:
    """Notes why something cannot be run; an error ends the program only if processes share it."""
    try:
        yield
    except OtherResult:
        raise
    except (ConfigError, DataError, FloatingPointError, OutOfMemory) as error:
        if jax.process_count() > 1:  # the others may wait for this one
            raise
        not_run[what] = str(error)
        say(f"{what}: not run: {error}")


@dataclasses.dataclass
class _Runner:
    """Runs steps, or reads their results."""

    source: pathlib.Path
    say: Say
    console: Console | None
    train: Callable[..., dict[str, Any]]
    score: Callable[..., dict[str, Any]]
    loaded: tuple[tuple, TaskData] | None = None
    images: tuple[str, ImageFinder] | None = None
    """A task, and what found its images."""

    def run(
        self, name: str, step: Step, config: ml_collections.ConfigDict, folder: pathlib.Path
    ) -> dict[str, Any]:
        """The result of a step."""
        place, parts = folder / step.folder, PARTS if step.trains else ("test",)
        begin = folder / step.after if step.after else self.source
        if step.after and not _is_there(begin / SCORES):
            raise DataError(f"{step.after.replace('_', ' ')} was not run")
        if not _is_there(place / SCORES):
            self.say(f"{name}: {place}")
            given = config, self.load(config, parts), begin, place, self.console
            return (
                self.train(*given, keep=step.folder == ZERO_SHOT)
                if step.trains
                else self.score(*given)
            )
        result = read_json(place / SCORES)
        expected = {"config_sha256": config_checksum(config)}
        expected |= {} if step.after else {"model_sha256": self.model_sha256}
        if all(result.get(name) == value for name, value in expected.items()):  # data can be read
            expected["data_sha256"] = data_checksum(config, self.load(config, parts), parts)
        if differing := [name for name, value in expected.items() if result.get(name) != value]:
            stale = folder if step.folder == ZERO_SHOT else place  # few-shot steps start from it
            raise OtherResult(
                f"{place / SCORES} has another {', '.join(differing)}: it is of other settings, other "
                f"data or another model; choose another --workdir, or remove {stale}"
            )
        if jax.process_index() == 0:
            shutil.rmtree(place / UNFINISHED, ignore_errors=True)
        return result

    @functools.cached_property
    def model_sha256(self) -> str:
        """The checksum of the pre-trained parameters."""
        return params_checksum(read_params(self.source))

    def load(self, config: ml_collections.ConfigDict, parts: Sequence[str]) -> TaskData:
        """The examples of some parts; the last ones are kept, as steps in a row share them.

        Images are found and decoded once a task.
        """
        generated = config.annotations == MINIATURE  # whole, whatever is asked for
        key = config.task, {} if generated else wanted_languages(config, parts)
        if self.loaded is None or self.loaded[0] != key:
            self.loaded = None  # frees their memory first
            if not generated and (self.images is None or self.images[0] != config.task):
                self.images = config.task, image_finder(config)
            images = self.images[1] if self.images and not generated else None
            self.loaded = key, load_task(config, self.say, parts, images)
        return self.loaded[1]


def _is_there(file: pathlib.Path) -> bool:
    """Whether the first process sees a file; file systems may show processes different things."""
    return bool(broadcast_one_to_all(file.is_file()))


def task_configs(data: str, images: str, options: Options) -> dict[str, ml_collections.ConfigDict]:
    """Task → its settings, for the tasks that the folder holds.

    Raises:
      ConfigError: it holds none or lacks one that was asked for, or a setting is unknown.
    """
    if data == MINIATURE:
        configs = {name: miniature_config(name) for name, task in TASKS.items() if task.miniature}
    else:
        configs = _configs_of_folder(pathlib.Path(data), images)
    chosen = list(options.tasks or configs)
    if lacking := [task for task in chosen if task not in configs]:
        names = ", ".join(task.files.folder for task in TASKS.values())
        raise ConfigError(
            f"{data} has no {', '.join(lacking)}, but {', '.join(configs) or 'no task'}; folders are "
            f"named {names}"
        )
    for name, value in options.changes.items():
        task, _, setting = name.rpartition("/")
        if task not in ("", *TASKS) or setting == "seed":
            raise ConfigError(f"{name}: write NAME or TASK/NAME, and seeds as --seeds")
    # What is set for one task overrides what is set for all.
    changes = sorted(options.changes.items(), key=lambda change: "/" in change[0])
    for name, value in changes:
        of_task, _, setting = name.rpartition("/")
        for task in chosen if not of_task else {of_task} & set(chosen):
            change_setting(configs[task], setting, value, FinetuneSettings, task)
    for task in chosen:
        check_settings(configs[task])
    return {task: configs[task] for task in chosen}


def _configs_of_folder(data: pathlib.Path, images: str) -> dict[str, ml_collections.ConfigDict]:
    if not data.is_dir():
        raise ConfigError(f"{data}: no such folder of tasks")
    there = _folders(data)
    configs = {}
    for name, task in TASKS.items():
        if task.files.folder in there:
            files = [task.files, task.english] if task.english else [task.files]
            configs[name] = config = finetune_config(name)
            config.annotations = there[task.files.folder]
            config.english = there.get(task.english.folder, "") if task.english else ""
            roots = (images or config.annotations).split(os.pathsep)
            # Folders of images that are named after a task come before those that hold them.
            own = [
                folders[f.folder]
                for folders in map(_folders, roots)
                for f in files
                if f.folder in folders
            ]
            config.images = os.pathsep.join([*own, *roots])
    return configs


def _folders(root: pathlib.Path | str) -> dict[str, str]:
    """Name in lower case → path of each folder in a folder."""
    root = pathlib.Path(root)
    inside = sorted(root.iterdir()) if root.is_dir() else ()
    return {path.name.lower(): str(path) for path in inside if path.is_dir()}
