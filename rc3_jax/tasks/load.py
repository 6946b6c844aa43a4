"""Loads the examples of a task, from its files or generated: `load_task`."""

from __future__ import annotations

import collections
import functools
import os
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import ml_collections

from rc3_jax.data.jsonl import Row, preview, read_items, read_objects
from rc3_jax.data.record import BadRecord, DataError, Skips
from rc3_jax.observe.log import Say
from rc3_jax.scenes.tasks import split_languages
from rc3_jax.settings import ConfigError
from rc3_jax.tasks.base import Example, RowContext, TaskData, TaskFiles
from rc3_jax.tasks.benchmarks import TASKS
from rc3_jax.tasks.config import MINIATURE, GeneratedSizes
from rc3_jax.tasks.files import FORMATS, AnnotationFile, annotation_files
from rc3_jax.tasks.images import ImageFinder

FOLDERS = ("annotations", "images")
PARTS = ("train", "select", "test")
"""Uses of the examples."""
ENOUGH = 0.95
"""Share of a split's images that must be usable: links die, so some of WIT and NLVR2 always lack."""
MAX_LINE_BYTES = 2**22

Key = tuple[str, str]
"""Split and language."""


def load_task(
    config: ml_collections.ConfigDict, say: Say = print, parts: Sequence[str] = PARTS
) -> TaskData:
    """Loads the splits that a configuration trains, selects and tests on; see `FinetuneSettings`.

    Args:
      say: is given a line on everything that is left out: files, rows, images.
      parts: loads the splits for these uses alone.

    Raises:
      ConfigError, DataError: they are not there or cannot be used.
    """
    task = TASKS[config.task]
    if config.annotations == MINIATURE and task.miniature:
        sizes = config.generated or GeneratedSizes().config_dict()
        return task.miniature(task.name, sizes.to_dict())
    if not config.annotations or not config.images or config.generated:
        given = ",".join(f"{name}={config[name] or '/data/...'}" for name in FOLDERS)
        raise ConfigError(
            "name the folders of the task's files and of its images after the colon of --config, as "
            f"in --config=configs/downstream/{task.name}.py:{given}"
        )
    images = ImageFinder(config.images.split(os.pathsep), regions=config.mode != "patches")
    return read_task(config, images, {config[part].split for part in parts}, say)


def available_splits(config: ml_collections.ConfigDict) -> dict[str, list[str]]:
    """Returns split → languages that the files of a task have; no image is looked for.

    Raises:
      DataError: the files cannot be read.
    """
    task = TASKS[config.task]
    if config.annotations == MINIATURE and task.miniature:
        return {split: list(languages) for split, languages in split_languages().items()}
    found: dict[str, dict[str, None]] = {}
    reader = TaskReader(config, ImageFinder([]))
    for folder, files in task.all_files(config):
        for file in annotation_files(folder, files, []):
            if not file.split:  # each row states its own
                reader.read_file(file, files)
            for split, language in [(file.split, file.language)] if file.split else reader.images:
                found.setdefault(split, {})[language] = None
    return {split: list(languages) for split, languages in found.items()}


def read_task(
    config: ml_collections.ConfigDict, images: ImageFinder, splits: Collection[str], say: Say
) -> TaskData:
    """Reads splits of a task from its files, and from those of its English task if one is named.

    `test_mt` is the test machine translated into English, under the language it was translated
    from; `dev_mt` is the English one translated into a language. 1 % of the rows of a file may be
    unusable, and 5 % of the images of a split and language unless `config.allow_missing` is set;
    they are left out.

    Raises:
      DataError: a split that is not there, files of another task, too many unusable rows or
        images. The message names file, line and remedy.
    """
    task = TASKS[config.task]
    if config.english and not task.english:
        raise ConfigError(f"{task.name} has no English task of its own; leave english out")
    reader = TaskReader(config, images, splits)
    for folder, files in task.all_files(config):
        ignored: list[str] = []
        taken = set(reader.images)
        for file in annotation_files(folder, files, ignored):
            if (file.split, file.language) in taken:
                ignored.append(f"{file.path}: {file.split} in {file.language} was read before")
            elif not file.split or file.split in splits:
                reader.read_file(file, files)
        if ignored:
            reader.notes.append(f"{folder}: {len(ignored)} files are not read: {_listed(ignored)}")
    data = reader.task_data(say)
    for note in reader.notes:
        say(f"note: {note}")
    if lacking := sorted(set(splits) - set(data.splits)):
        raise DataError(
            f"{config.annotations}: no usable rows of {', '.join(lacking)}; check folder, task and "
            f"splits. {'; '.join(reader.notes[-3:])}"
        )
    return data


class TaskReader:
    """Gathers the examples of a task's files in some splits, by default in all."""

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        finder: ImageFinder,
        splits: Collection[str] | None = None,
    ):
        task = TASKS[config.task]
        self._classes = task.read_classes(config) if task.read_classes else task.classes
        self._numbers: dict[str | None, int] = {c: n for n, c in enumerate(self._classes)}
        self._config, self._finder, self._splits = config, finder, splits
        self._examples: dict[Key, list[Example]] = collections.defaultdict(list)
        self.images: dict[Key, set[str]] = collections.defaultdict(set)
        """Split and language → names of the images that the usable rows are about."""
        self.notes: list[str] = []
        self._left_out: collections.Counter[Key] = collections.Counter()
        self._captions: collections.Counter[tuple[Key, str]] = collections.Counter()
        self._places: dict[tuple[Key, str], object] = {}
        self._memory: dict[str, str] = {}

    def read_file(self, file: AnnotationFile, files: TaskFiles) -> None:
        """Reads one file; raises DataError for another task's, or one with too many bad rows."""
        if not file.path.name.endswith(FORMATS):
            raise DataError(
                f"{file.path}: unpack it, or put its JSON twin beside it; only {', '.join(FORMATS)} "
                "are read, since unpickling a file runs whatever program is in it"
            )
        skips = Skips()
        if file.path.suffix == ".json":
            rows = read_items(file.path, files.key_field)
        else:
            rows = read_objects(file.path, MAX_LINE_BYTES)
        add_row = functools.partial(self._add_row, file, files)
        used = sum(skips.usable(rows, add_row, str(file.path)))
        self._left_out[file.split, file.language] += len(skips.reasons)
        if skips.reasons or not used:
            reasons = _listed(list(skips.reasons.values())) or "no rows"
            self.notes.append(f"{file.path}: {len(skips.reasons)} unusable rows: {reasons}")

    def _add_row(
        self, file: AnnotationFile, files: TaskFiles, where: object, fields: dict[str, Any]
    ) -> bool:
        """Adds all texts of a row or, if one of them is bad, none."""
        row = parse_row(files, fields, where)
        if file.language and fields.get("language", file.language) != file.language:
            problem = f"language {preview(fields['language'])} in a file of {file.language}"
            raise BadRecord(where, f"{problem}; rename the file or move the row")
        found = []
        for text in files.read(row, RowContext(where, file.language, self._config, self._memory)):
            key = text.split or file.split, text.language or file.language
            if self._splits is None or key[0] in self._splits:
                found.append((key, text, [self._finder.find(ref, where) for ref in text.images]))
        for key, text, pictures in found:
            if text.identity and self._places.setdefault((key, text.identity), where) is not where:
                first = self._places[key, text.identity]
                raise BadRecord(where, f"{preview(text.identity)} was on {first} already")
            self.images[key].update(ref.name for ref in text.images)
            there = tuple(filter(None, pictures))
            if len(there) < len(pictures):
                self._left_out[key] += 1
                continue
            image, label = there[0].name, self._numbers.get(text.label)
            identity = text.identity or f"{image}#{self._captions[key, image]}"
            self._captions[key, image] += 1
            self._examples[key].append(Example(str(where), identity, text.text, there, label))
        return True

    def task_data(self, say: Say) -> TaskData:
        """Returns the examples, without those about images that cannot be decoded.

        Raises:
          DataError: too few images can be used.
        """
        lost = {name: f"{path} is missing" for name, path in self._finder.missing.items()}
        for key in self.images:  # before all are decoded, which takes long
            self._check_images(key, lost)
        say(f"decoding {len(self._finder.found):,} images once, to find damaged ones")
        lost |= self._finder.unreadable(self._config.threads)
        splits: dict[str, dict[str, list[Example]]] = {}
        left_out: dict[str, dict[str, int]] = {}
        for key in sorted(self.images):
            self.notes += self._check_images(key, lost)
            examples = self._examples[key]
            kept = [e for e in examples if not any(p.name in lost for p in e.pictures)]
            if kept:
                splits.setdefault(key[0], {})[key[1]] = kept
            count = self._left_out[key] + self._left_out["", ""] + len(examples) - len(kept)
            if count:
                left_out.setdefault(key[0], {})[key[1]] = count
        return TaskData(self._classes, splits, left_out)

    def _check_images(self, key: Key, lost: Mapping[str, str]) -> list[str]:
        """Returns notes on images that are lost (name → why) or have no region file.

        Raises:
          DataError: fewer than `ENOUGH` can be used, and that is not allowed.
        """
        names, notes = sorted(self.images[key]), []
        problems = [lost[name] for name in names if name in lost]
        bare = [n for n in names if n not in lost and self._finder.found[n].boxes is None]
        what, usable = f"{key[0]} in {key[1]}", len(names) - len(problems)
        if problems:
            found = f"{usable} of {len(names)} images of {', '.join(self._finder.roots)} are usable"
            notes.append(f"{what}: {found}: {_listed(problems)}")
        if usable < ENOUGH * len(names) and not self._config.allow_missing:
            raise DataError(
                f"{notes[0]}. Add them, check the folder, or set allow_missing to go on without "
                "their rows; their scores do not compare with published ones"
            )
        if self._finder.regions and bare:
            notes.append(f"{what}: {len(bare)} of {len(names)} have no region file, as {bare[0]}")
        return notes


def parse_row(files: TaskFiles, fields: Mapping[str, Any], where: object) -> Row:
    """Checks the fields of a row.

    Raises:
      BadRecord: a field is missing or not of its type.
      DataError: it is a row of another task.
    """
    for form in files.rows:
        if _required(form) <= fields.keys():
            return form.parse(fields, where)
    for task in TASKS.values():
        for other in filter(None, (task.files, task.english)):
            if any(_required(form) <= fields.keys() for form in other.rows):
                problem = f"a row of {other.folder}, while {files.folder} is expected"
                raise DataError(f"{where}: {problem}; check folder and task")
    return files.rows[0].parse(fields, where)


@functools.cache
def _required(form: type[Row]) -> frozenset[str]:
    return frozenset(name for name, field in form.model_fields.items() if field.is_required())


def _listed(items: Sequence[str]) -> str:
    """The first five."""
    return "; ".join(items[:5]) + " ..." * (len(items) > 5)
