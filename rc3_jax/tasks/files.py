"""The annotation files of a task's folder, recognised by their names.

Both the layout of the IGLUE repository (`datasets/<Task>/annotations/<language>/test.jsonl`,
`few_shot/annotations/marvl-id_train10.jsonl`, `annotations/test_ar.jsonl`) and flat copies of it
(`<Task>/<language>/train_48.jsonl`) are read, since only a file's split and language count.

The name states the split (SPLITS), with the shots of few-shot sets after `train`: `train_48`,
`train_100x5`. `_mt` is added where the text is machine translated: in a folder
`annotations_machine-translate`, or in a name with `_gmt`. The language is a two-letter code in the
name, as in `test_ar` or `marvl-id`, or else the nearest folder named by such a code. Links to files
and folders are followed.
"""

from __future__ import annotations

import collections
import os
import pathlib
import re
from collections.abc import Collection, Iterator
from typing import NamedTuple

import langcodes

from rc3_jax.data.record import DataError
from rc3_jax.tasks.base import TaskFiles

SPLITS = {
    **{split: split for split in ("train", "dev", "test", "testdev")},
    "valid": "dev",
    "val": "dev",
    "test1": "test",  # test1 is of NLVR2
}
FORMATS = (".jsonl", ".jsonl.gz", ".json")
OTHER_FORMATS = (".pkl", ".zip", ".gz", ".csv", ".tsv")
_MEANINGLESS = re.compile(r"marvl|nlvr2|snli|ve|ann|balanced|questions|head\d+")
_ANSWERS = "trainval_"
"""GQA's lists of answers begin so."""


class AnnotationFile(NamedTuple):
    """A file of rows; split and language are empty where each row states its own."""

    path: pathlib.Path
    split: str = ""
    language: str = ""


def annotation_files(
    folder: str, task_files: TaskFiles, ignored: list[str], languages: Collection[str] = ()
) -> list[AnnotationFile]:
    """Finds one file for each split and language in a folder and all below it.

    A file in one of OTHER_FORMATS is returned where it has no twin in one of FORMATS.

    Args:
      ignored: gathers the other files, and why they are not read.
      languages: those that are needed; () needs all.

    Raises:
      DataError: no such folder, a folder of a needed language without files, two files for one split
        and language.
    """
    root = os.path.realpath(folder)
    if not os.path.isdir(root):
        raise DataError(f"{folder}: no such folder of annotations; check the path")
    if task_files.names:
        paths = [path for name in task_files.names if (path := pathlib.Path(root, name)).is_file()]
        if len(paths) != 1:
            raise DataError(f"{folder}: exactly one {' or '.join(task_files.names)} is expected")
        return [AnnotationFile(paths[0])]
    found: dict[tuple[str, str], list[pathlib.Path]] = collections.defaultdict(list)
    for path in _paths_below(root, languages, ignored):
        if key := _split_and_language(path.relative_to(root), task_files):
            found[key].append(path)
        else:
            ignored.append(f"{path}: no name of a split and a language, as de/train_10 or test_de")
    return [AnnotationFile(_choose(paths, ignored), *key) for key, paths in found.items()]


def _choose(paths: list[pathlib.Path], ignored: list[str]) -> pathlib.Path:
    """The file to read of those with the same split and language."""
    readable = [path for path in paths if path.name.endswith(FORMATS)] or paths[:1]
    # GQA is there as published, "balanced", and in the form of IGLUE: the same questions.
    chosen = [path for path in readable if "balanced" not in path.name] or readable
    if len(chosen) > 1:
        raise DataError(f"{chosen[0]} and {chosen[1]} have one split and language; keep one")
    ignored += [f"{path}: the same as {chosen[0].name}" for path in readable if path not in chosen]
    return chosen[0]


def _paths_below(
    root: str, languages: Collection[str], ignored: list[str]
) -> Iterator[pathlib.Path]:
    """Yields the files that may hold annotations and are not hidden, in the order of names."""
    for directory, folders, names in os.walk(root, onerror=_raise, followlinks=True):
        here = pathlib.Path(directory).resolve()
        # A link to a folder above would lead in circles.
        folders[:] = sorted(
            name
            for name in folders
            if name[0] != "." and not here.is_relative_to((here / name).resolve())
        )
        names = sorted(name for name in names if name[0] != "." and not name.startswith(_ANSWERS))
        names = [name for name in names if name.endswith(FORMATS + OTHER_FORMATS)]
        language = os.path.basename(directory)
        if not folders and not names and _is_language(language):
            problem = f"{directory}: no annotations of this language"
            if not languages or language in languages:
                raise DataError(f"{problem}; add files, or remove the folder")
            ignored.append(problem)
        yield from (pathlib.Path(directory, name) for name in names)


def _raise(error: OSError) -> None:
    raise DataError(f"{error.filename}: cannot be read ({error.strerror})") from error


def _split_and_language(path: pathlib.Path, task_files: TaskFiles) -> tuple[str, str] | None:
    """What a relative path states; None where that is not enough, or not clear."""
    *folders, name = path.parts
    words = re.split("[-_]", re.sub(r"train(?=\d)", "train_", name.split(".")[0]))
    words = [word for word in words if not _MEANINGLESS.fullmatch(word)]
    splits = [SPLITS[word] for word in words if word in SPLITS]
    shots = [word for word in words if re.fullmatch(r"\d+(x\d+)?", word)]
    languages = [word for word in words if _is_language(word)]
    known = len(splits) + len(shots) + len(languages) + words.count("gmt") == len(words)
    translated = "gmt" in words or any("machine-translate" in folder for folder in folders)
    splits = splits or [task_files.split] * (not shots)
    languages = languages or [word for word in folders if _is_language(word)][-1:]
    languages = languages or [task_files.language]
    if not known or len(splits) != 1 or len(languages) != 1 or len(shots) > (splits == ["train"]):
        return None
    split = "_".join([*splits, *shots, *["mt"] * translated])
    return (split, languages[0]) if splits[0] and languages[0] else None


def _is_language(word: str) -> bool:
    """Whether this is a two-letter code, as all languages of the benchmarks have."""
    return len(word) == 2 and word.islower() and langcodes.tag_is_valid(word)
