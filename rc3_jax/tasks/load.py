"""Loads the examples of a task, from its files or generated: `load_task`."""

from __future__ import annotations

import collections
import functools
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import ml_collections

from rc3_jax.data.coverage import check_languages
from rc3_jax.data.jsonl import preview, read_items, read_objects
from rc3_jax.data.record import BadRecord, DataError, Skips
from rc3_jax.data.text import usable_text
from rc3_jax.observe.log import Say
from rc3_jax.scenes.ceiling import miniature_ceilings
from rc3_jax.scenes.tasks import split_languages
from rc3_jax.settings import ConfigError
from rc3_jax.tasks.base import ENGLISH, Example, RowContext, TaskData, TaskFiles
from rc3_jax.tasks.benchmarks import TASKS
from rc3_jax.tasks.config import MINIATURE, GeneratedSizes
from rc3_jax.tasks.files import FORMATS, AnnotationFile, annotation_files
from rc3_jax.tasks.images import ImageFinder
from rc3_jax.tasks.rows import class_finder, parse_row

FOLDERS = ("annotations", "images")
PARTS = ("train", "select", "test")
"""Uses of the examples."""
ENOUGH = 0.95
"""Share of a split's images that must be usable: links die, so some of WIT and NLVR2 always lack."""
MAX_LINE_BYTES = 2**22

Key = tuple[str, str]
"""Split and language."""
Wanted = Mapping[str, Collection[str]]
"""Split → the languages that are needed of it; () for all."""


def load_task(
    config: ml_collections.ConfigDict,
    say: Say = print,
    parts: Sequence[str] = PARTS,
    images: ImageFinder | None = None,
) -> TaskData:
    """Loads the splits and languages that a configuration trains, selects and tests on.

    Args:
      say: is given a line on everything that is left out: files, rows, images.
      parts: loads what these uses need alone.
      images: what `image_finder` made before for this task; it decodes no image again.

    Raises:
      ConfigError, DataError: they are not there or cannot be used.
    """
    task = TASKS[config.task]
    if config.annotations == MINIATURE and task.miniature:
        sizes = config.generated or GeneratedSizes().config_dict()
        data = task.miniature(task.name, sizes.to_dict())
        if "test" in parts and not data.classes:
            ceilings = miniature_ceilings(task.name, sizes.test).items()
            best = (f"{code} {of['IR@1']:.1%} {of['TR@1']:.1%}" for code, of in ceilings)
            say(f"best IR@1 and TR@1, as texts fit several pictures: {', '.join(best)}")
        return data
    wanted = wanted_languages(config, parts)
    return read_task(config, images or image_finder(config), wanted, say)


def image_finder(config: ml_collections.ConfigDict) -> ImageFinder:
    """What finds the images of a task that is read from files.

    Raises:
      ConfigError, DataError: its folders are not named, or are not there.
    """
    if not config.annotations or not config.images or config.generated:
        given = ",".join(f"{name}={config[name] or '/data/...'}" for name in FOLDERS)
        raise ConfigError(
            "name the folders of the task's files and of its images after the colon of --config, as "
            f"in --config=configs/downstream/{config.task}.py:{given}"
        )
    return ImageFinder(config.images.split(os.pathsep), regions=config.mode != "patches")


def wanted_languages(
    config: ml_collections.ConfigDict, parts: Sequence[str]
) -> dict[str, tuple[str, ...]]:
    """Split → the languages that some uses of the examples need of it; () for all."""
    wanted: dict[str, tuple[str, ...]] = {}
    for part in parts:
        split, languages = config[part].split, tuple(config[part].languages)
        before = wanted.get(split, languages)
        wanted[split] = tuple(dict.fromkeys(before + languages)) if before and languages else ()
    return wanted


def available_splits(config: ml_collections.ConfigDict) -> dict[str, list[str]]:
    """Returns split → languages that the files of a task have; no image is looked for.

    Raises:
      DataError: the files cannot be read.
    """
    task = TASKS[config.task]
    if config.annotations == MINIATURE and task.miniature:
        return {split: list(languages) for split, languages in split_languages().items()}
    reader = TaskReader(config, ImageFinder([]))
    for folder, files in task.all_files(config):
        for file in annotation_files(folder, files, []):
            if file.split:
                reader.wants(file.split, file.language)
            else:  # each row states its own
                reader.read_file(file, files)
    return {split: list(languages) for split, languages in reader.languages.items()}


def read_task(
    config: ml_collections.ConfigDict, images: ImageFinder, splits: Iterable[str] | Wanted, say: Say
) -> TaskData:
    """Reads splits of a task from its files, and from those of its English task if one is named.

    `test_mt` is the test machine translated into English, under the language it was translated
    from; `dev_mt` is the English one translated into a language. 1 % of the rows of a file may be
    unusable, and 5 % of the images of a split and language unless `config.allow_missing` is set;
    they are left out. So is every text without a word. All of this is counted and said.

    Args:
      splits: names of splits, of which all languages are read, or `Wanted`.

    Raises:
      DataError: a split or a language that is not there, files of another task, too many unusable
        rows or images. The message names file, line and remedy.
    """
    task = TASKS[config.task]
    if config.english and not task.english:
        raise ConfigError(f"{task.name} has no English task of its own; leave english out")
    wanted = splits if isinstance(splits, Mapping) else dict.fromkeys(splits, ())
    needed = set().union(*wanted.values()) if all(wanted.values()) else ()
    reader = TaskReader(config, images, wanted)
    for folder, files in task.all_files(config):
        ignored: list[str] = []
        taken = set(reader.images)
        for file in annotation_files(folder, files, ignored, needed):
            if (file.split, file.language) in taken:
                ignored.append(f"{file.path}: {file.split} in {file.language} was read before")
            elif not file.split or reader.wants(file.split, file.language):
                reader.read_file(file, files)
        if ignored:
            reader.notes.append(f"{folder}: {len(ignored)} files are not read: {_listed(ignored)}")
    for split in wanted.keys() & reader.languages.keys():
        named = (p for p in PARTS if config[p].split == split and config[p].languages)
        settings = " or ".join(f"{part}.languages" for part in named)
        check_languages(settings, wanted[split], reader.languages[split])
    data = reader.task_data(say)
    for note in reader.notes:
        say(f"note: {note}")
    if lacking := sorted(wanted.keys() - data.splits.keys()):
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
        wanted: Wanted | None = None,
    ):
        task = TASKS[config.task]
        self._classes = task.read_classes(config) if task.read_classes else task.classes
        self._class_of = class_finder(self._classes)
        self._config, self._finder, self._wanted = config, finder, wanted
        self._examples: dict[Key, list[Example]] = collections.defaultdict(list)
        self.languages: dict[str, dict[str, None]] = collections.defaultdict(dict)
        """Split → languages that there are, wanted or not."""
        self.images: dict[Key, set[str]] = collections.defaultdict(set)
        """Split and language → names of the images that the usable rows are about."""
        self.notes: list[str] = []
        self._left_out: collections.Counter[Key] = collections.Counter()
        self._wordless: dict[Key, list[str]] = collections.defaultdict(list)
        self._no_class: dict[Key, list[str]] = collections.defaultdict(list)
        self._captions: collections.Counter[tuple[Key, str]] = collections.Counter()
        self._places: dict[tuple[Key, str], object] = {}
        self._memory: dict[str, str] = {}

    def wants(self, split: str, language: str) -> bool:
        """Whether texts of a split in a language are to be read; notes that there are some."""
        self.languages[split][language] = None
        if self._wanted is None:
            return True
        return split in self._wanted and language in (self._wanted[split] or (language,))

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
        if files.is_english and file.language != ENGLISH and not _into_english(file.split):
            texts = [e.text for e in self._examples[file.split, file.language]]
            if 2 * len(english := list(filter(files.is_english, texts))) > len(texts):
                raise DataError(
                    f"{file.path}: {len(english)} of {len(texts)} texts are English, such as "
                    f"{english[0][:60]!r}, in a file of {file.language}; move it to a folder "
                    f"{ENGLISH}, or put texts in {file.language} there"
                )

    def _add_row(
        self, file: AnnotationFile, files: TaskFiles, where: object, fields: dict[str, Any]
    ) -> bool:
        """Adds the texts of a row, without those that have no word; none if the row is bad."""
        row = parse_row(files, fields, where)
        if file.language and fields.get("language", file.language) != file.language:
            problem = f"language {preview(fields['language'])} in a file of {file.language}"
            raise BadRecord(where, f"{problem}; rename the file or move the row")
        found, wordless = [], []
        for text in files.read(row, RowContext(where, file.language, self._config, self._memory)):
            key = text.split or file.split, text.language or file.language
            if not self.wants(*key):
                continue
            try:
                text = text._replace(text=usable_text(text.text))
            except ValueError as error:
                wordless.append((key, f"{where}: {error}"))
                continue
            found.append((key, text, [self._finder.find(ref, where) for ref in text.images]))
        for key, problem in wordless:
            self._wordless[key].append(problem)
        for key, text, pictures in found:
            if text.identity and self._places.setdefault((key, text.identity), where) is not where:
                first = self._places[key, text.identity]
                raise BadRecord(where, f"{preview(text.identity)} was on {first} already")
            self.images[key].update(ref.name for ref in text.images)
            there = tuple(filter(None, pictures))
            if len(there) < len(pictures):
                self._left_out[key] += 1
                continue
            image, label = there[0].name, self._class_of(text.label or "")
            if label is None and self._classes:
                self._no_class[key].append(preview(text.label))
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
        if fresh := self._finder.undecoded():
            say(f"decoding {len(fresh):,} images once, to find damaged ones")
        lost |= self._finder.unreadable(self._config.threads)
        splits: dict[str, dict[str, list[Example]]] = {}
        left_out: dict[str, dict[str, int]] = {}
        for key in sorted({*self.images, *self._wordless}):
            self.notes += self._check_images(key, lost)
            examples = self._examples[key]
            kept = [e for e in examples if not any(p.name in lost for p in e.pictures)]
            if kept:
                splits.setdefault(key[0], {})[key[1]] = kept
            what, wordless = f"{key[0]} in {key[1]}", self._wordless[key]
            if wordless:
                self.notes.append(
                    f"{what}: {len(wordless)} texts are left out: {_listed(wordless)}"
                )
            if none := self._no_class[key]:
                self.notes.append(
                    f"{what}: {len(none)} of {len(examples)} labels are none of the "
                    f"{len(self._classes)} classes, so that no prediction is right: "
                    f"{_listed(list(dict.fromkeys(none)))}"
                )
            count = self._left_out[key] + self._left_out["", ""] + len(wordless)
            count += len(examples) - len(kept)
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


def _into_english(split: str) -> bool:
    """Whether a split is a test that was translated into English."""
    return split.startswith("test") and split.endswith("_mt")


def _listed(items: Sequence[str]) -> str:
    """The first five."""
    return "; ".join(items[:5]) + " ..." * (len(items) > 5)
