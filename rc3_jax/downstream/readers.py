"""Reads the annotations of a downstream task: `read_task`.

The tasks of IGLUE (Bugliarello et al. 2022), the English ones that models are fine-tuned on, and
retrieval on folders of captions. What a task's rows look like, and where their images are looked
for, stands in the file of its reader.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import pathlib
from collections.abc import Callable, Mapping, Sequence

from rc3_jax.data.record import BadRecord, DataError, Skips
from rc3_jax.downstream.examples import Example, TaskData
from rc3_jax.downstream.layout import AnnotationFile, annotation_files
from rc3_jax.downstream.marvl import marvl, nlvr2
from rc3_jax.downstream.pictures import ImageFinder
from rc3_jax.downstream.reading import Gathered, Task, rows_of
from rc3_jax.downstream.wit import wit
from rc3_jax.downstream.xflickrco import captions_folder, flickr30k, xflickrco
from rc3_jax.downstream.xgqa import gqa, xgqa
from rc3_jax.downstream.xvnli import xvnli

CAPTIONS_FILES = ("captions.jsonl", "captions.jsonl.gz")
ENGLISH_TASKS = {"xgqa": "gqa", "marvl": "nlvr2", "xflickrco": "flickr30k"}
"""Task → the English one that models for it are fine-tuned on, in a folder of its own."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Options:
    folder: pathlib.Path
    answers: pathlib.Path | None = None
    strip_phrase_numbers: bool = False


_TASKS: Mapping[str, Callable[[_Options], Task]] = {
    "xvnli": lambda options: xvnli(),
    "gqa": lambda options: gqa(options.folder, options.answers),
    "xgqa": lambda options: xgqa(options.folder, options.answers),
    "nlvr2": lambda options: nlvr2(),
    "marvl": lambda options: marvl(),
    "flickr30k": lambda options: flickr30k(),
    "xflickrco": lambda options: xflickrco(options.strip_phrase_numbers),
    "wit": lambda options: wit(),
    "multi30k": lambda options: captions_folder(),
    "mscoco": lambda options: captions_folder(),
}
TASKS = tuple(_TASKS)


def read_task(
    task: str,
    folder: pathlib.Path | str,
    images: ImageFinder,
    *,
    splits: Sequence[str] | None = None,
    languages: Sequence[str] | None = None,
    skips: Skips | None = None,
    allow_missing: bool = False,
    english: pathlib.Path | str | None = None,
    answers: pathlib.Path | str | None = None,
    strip_phrase_numbers: bool = False,
    notes: list[str] | None = None,
) -> TaskData:
    """Reads every split and language of a task that a folder holds.

    Args:
      task: one of TASKS.
      folder: the task's folder of the IGLUE repository, or a flat copy of it (see layout.py); of
        multi30k and mscoco, the folder of `captions.jsonl`.
      images: finds the task's images.
      splits: read these only, such as `train`, `dev`, `test`, `train_48`; `test_mt` is the test set
        machine translated into English, under the language it was translated from, and `dev_mt`
        the English one translated into a language.
      languages: read these only.
      skips: gathers rows that cannot be used; its limit (1 % by default) holds for each file.
      allow_missing: go on with however few images are found. Otherwise 95 % of the images of each
        split and language have to be there. Rows about missing images are left out.
      english: folder of the English task (ENGLISH_TASKS), whose splits are added. Of a split that `folder`
        has in English too, that one is taken.
      answers: file of the answers of GQA; see `xgqa`.
      strip_phrase_numbers: see `xflickrco`; off, as in the benchmark.
      notes: gathers a line on everything that is left out: files, rows, images.

    Raises:
      DataError: nothing to read, a split or language that is not there, files of another task,
        too many bad rows or missing images. The message names file, line and remedy.
    """
    folder = pathlib.Path(folder)
    if task not in _TASKS:
        raise DataError(f"task {task!r} is unknown; use one of {', '.join(TASKS)}")
    if english is not None and task not in ENGLISH_TASKS:
        raise DataError(f"{task} has no English task of its own; leave english out")
    names = {task: folder} | (
        {} if english is None else {ENGLISH_TASKS[task]: pathlib.Path(english)}
    )
    answers = None if answers is None else pathlib.Path(answers)
    notes = [] if notes is None else notes

    def is_wanted(split: str, language: str) -> bool:
        return (splits is None or split in splits) and (languages is None or language in languages)

    classes: tuple[str, ...] | None = None
    data: dict[str, dict[str, Sequence[Example]]] = {}
    left_out: dict[str, dict[str, int]] = {}
    there: list[AnnotationFile] = []
    for name, where in names.items():
        if not where.is_dir():
            raise DataError(f"{where}: no such folder of annotations; check the path")
        described = _TASKS[name](_Options(where, answers, strip_phrase_numbers))
        if classes not in (None, described.classes):
            raise DataError(f"{where}: other answers than in {folder}; give one file as answers")
        classes = described.classes
        taken = {(split, language) for split in data for language in data[split]}
        found = _files(described, where, is_wanted, notes)
        there += found
        gathered = Gathered(described, images, is_wanted, skips)
        for file in found:
            key = (file.split, file.language)
            if key in taken:
                notes.append(f"{file.path}: not read, for {folder} has {key[0]} in {key[1]}")
            elif file.split is None or is_wanted(*key):
                gathered.add_file(file)
        gathered.check_images(allow_missing)
        notes += gathered.notes
        for (split, language), examples in sorted(gathered.examples.items()):
            data.setdefault(split, {})[language] = examples
        for split, language in sorted(gathered.names):
            keys = itertools.product((split, None), (language, None))
            if lost := sum(gathered.left_out[key] for key in keys):
                left_out.setdefault(split, {})[language] = lost
    _check_complete(data, splits, languages, there, folder, notes)
    return TaskData(classes, data, left_out)


def splits_of(
    task: str,
    folder: pathlib.Path,
    english: pathlib.Path | None = None,
    answers: pathlib.Path | None = None,
) -> dict[str, list[str]]:
    """split → languages that the files of a task have; the arguments are those of `read_task`.

    Raises:
      DataError: a folder that is not there or holds files that cannot be told apart.
    """
    found: dict[str, list[str]] = {}
    names = {task: folder} | ({} if english is None else {ENGLISH_TASKS[task]: english})
    for name, where in names.items():
        described = _TASKS[name](_Options(where, answers))
        for file in _files(described, where, lambda split, language: False, []):
            keys = [(file.split, file.language)]
            if described.captions_file:
                keys = _splits_of_rows(described, file)
            for split, language in keys:
                if language not in found.setdefault(split, []):
                    found[split].append(language)
    return found


def _splits_of_rows(task: Task, file: AnnotationFile) -> list[tuple[str, str]]:
    """Split and language of the rows of a captions file that can be used."""
    keys: dict[tuple[str, str], None] = {}
    for where, row in rows_of(file.path):
        if isinstance(row, dict):
            with contextlib.suppress(BadRecord):  # `read_task` counts them
                keys |= {(line.split, line.language): None for line in task.read(row, where, file)}
    return list(keys)


def _files(
    task: Task,
    folder: pathlib.Path,
    is_wanted: Callable[[str, str], bool],
    notes: list[str],
) -> list[AnnotationFile]:
    """The annotation files of a folder; notes what else is there."""
    if task.captions_file:
        paths = [folder / name for name in CAPTIONS_FILES if (folder / name).is_file()]
        if len(paths) != 1:
            raise DataError(f"{folder}: one file {' or '.join(CAPTIONS_FILES)} is expected here")
        return [AnnotationFile(paths[0], None, None)]
    found = annotation_files(folder, task.language, task.split)
    if found.ignored:
        shown = "; ".join(found.ignored[:5]) + (" ..." if len(found.ignored) > 5 else "")
        notes.append(f"{folder}: {len(found.ignored)} files are not read: {shown}")
    for file in found.pickles:
        if is_wanted(file.split, file.language):
            raise DataError(
                f"{file.path}: pickle files are not read, for unpickling one runs whatever program "
                f"is in it; put its twin {file.path.with_suffix('.json').name} beside it, or leave "
                f"out split {file.split} in {file.language}"
            )
    return found.files


def _check_complete(
    data: Mapping[str, Mapping[str, Sequence[Example]]],
    splits: Sequence[str] | None,
    languages: Sequence[str] | None,
    files: Sequence[AnnotationFile],
    folder: pathlib.Path,
    notes: Sequence[str],
) -> None:
    """Raises DataError where what was asked for is not there."""
    read = {split for split in data}
    spoken = {language for split in data for language in data[split]}
    lacking = [f"split {one!r}" for one in splits or () if one not in read]
    lacking += [f"language {one!r}" for one in languages or () if one not in spoken]
    if data and not lacking:
        return
    there = ", ".join(sorted(f"{file.split}/{file.language}" for file in files if file.split))
    raise DataError(
        f"{folder}: no usable rows{' of ' if lacking else ''}{', '.join(lacking)}. Files of split/"
        f"language: {there or 'none; names are expected such as de/train_10.jsonl'}. Check folder, "
        "task, splits and languages" + (f". Notes: {'; '.join(notes[-3:])}" if notes else "")
    )
