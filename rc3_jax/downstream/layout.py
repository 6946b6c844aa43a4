"""Which annotation files a folder of the benchmark holds, told by their names.

Both the layout of the IGLUE repository (`datasets/<Task>/annotations/<language>/test.jsonl`,
`few_shot/annotations/marvl-id_train10.jsonl`, `annotations/test_ar.jsonl`) and flat copies of it
(`<Task>/<language>/train_48.jsonl`) are read: of a file only its split and its language count.

The split stands in the file's name: `train`, `dev` (also `valid`, `val`), `test`, `testdev`, with
the shots of few-shot sets after `train`: `train_48`, `train_100x5`. `_mt` is added where the text
is machine translated, which the folder `annotations_machine-translate` or the ending `_gmt` says.
`_ann`, `_balanced_questions` and `_head200` (an excerpt) say nothing. The language is a two-letter
code in the name, as in `test_ar` or `marvl-id`, or else the nearest folder named by such a code.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import re

from rc3_jax.data.record import BadRecord, DataError, check_language

_SPLITS = {
    "train": "train",
    "dev": "dev",
    "valid": "dev",
    "val": "dev",
    "test": "test",
    "test1": "test",  # of NLVR2
    "testdev": "testdev",
}
_SILENT = {"marvl", "nlvr2", "snli", "ve", "ann", "balanced", "questions"}
_ANSWERS = "trainval_"
"""Files that begin so are lists of the answers of GQA."""
_ENDINGS = (".jsonl", ".jsonl.gz", ".json")
_OTHER_ENDINGS = (".pkl", ".zip", ".gz", ".csv", ".tsv")
"""Of files that might be annotations but are not read."""


@dataclasses.dataclass(frozen=True, slots=True)
class AnnotationFile:
    """A file of rows; `language` is None where each row says its own."""

    path: pathlib.Path
    split: str | None
    language: str | None


@dataclasses.dataclass(frozen=True, slots=True)
class Found:
    """What a folder holds.

    Attributes:
      files: one for each split and language.
      pickles: files that would be read if they were JSON, and have no twin that is.
      ignored: paths and why they are not read.
    """

    files: list[AnnotationFile]
    pickles: list[AnnotationFile]
    ignored: list[str]


def annotation_files(
    folder: pathlib.Path | str, language: str | None = None, split: str | None = None
) -> Found:
    """Looks through a folder and all below.

    Args:
      language: of files whose path names none; None: such files are ignored.
      split: likewise.

    Raises:
      DataError: no such folder, a folder of a language without any, a file that leads out of the
        folder, two files for one split and language.
    """
    root = os.path.realpath(folder)
    if not os.path.isdir(root):
        raise DataError(f"{folder}: no such folder of annotations; check the path")
    files: dict[tuple[str, str], AnnotationFile] = {}
    pickles, ignored = [], []
    for path in _paths_below(root):
        try:
            found = _parsed(path, path.relative_to(root).parts, language, split)
        except BadRecord as error:
            ignored.append(str(error))
            continue
        if path.name.endswith(".pkl"):
            pickles.append(found)
        elif not path.name.endswith(_ENDINGS):
            ignored.append(f"{path}: unpack it to have it read")
        else:
            _add(files, found, ignored)
    pickles = [file for file in pickles if (file.split, file.language) not in files]
    return Found(list(files.values()), pickles, ignored)


def _paths_below(root: str) -> list[pathlib.Path]:
    """The files that may hold annotations and are not hidden, in the order of their names."""

    def stop(error: OSError) -> None:
        raise DataError(f"{error.filename}: cannot be read ({error.strerror})") from error

    paths = []
    for directory, names, files in os.walk(root, onerror=stop):
        names[:] = sorted(name for name in names if name[0] != ".")
        endings = _ENDINGS + _OTHER_ENDINGS
        files = sorted(name for name in files if name[0] != "." and name.endswith(endings))
        files = [name for name in files if not name.startswith(_ANSWERS)]
        if not names and not files and _is_language(os.path.basename(directory)):
            raise DataError(
                f"{directory}: folder of a language without a file of annotations; download them or "
                "remove it"
            )
        for name in files:
            path = os.path.join(directory, name)
            if not os.path.realpath(path).startswith(os.path.join(root, "")):
                raise DataError(f"{path}: leads out of {root}; put the file itself there")
            paths.append(pathlib.Path(path))
    return paths


def _parsed(
    path: pathlib.Path, parts: tuple[str, ...], language: str | None, split: str | None
) -> AnnotationFile:
    """Raises BadRecord where the name does not say enough."""
    translated = any("machine-translate" in part for part in parts[:-1])
    splits, shots, languages = [], [], []
    for word in re.split("[-_]", path.name.split(".")[0]):
        if word == "gmt":
            translated = True
        elif word in _SPLITS:
            splits.append(_SPLITS[word])
        elif match := re.fullmatch(r"(train)?(\d+(?:x\d+)?)", word):  # train10, 10
            splits += [match[1]] if match[1] else []
            shots.append(match[2])
        elif _is_language(word):
            languages.append(word)
        elif word not in _SILENT and not re.fullmatch(r"head\d+", word):
            raise BadRecord(f"{path}: name of no split")
    languages = languages or [part for part in parts[:-1] if _is_language(part)][-1:]
    splits = splits or [split] * (split is not None and not shots)
    languages = languages or [language] * (language is not None)
    if len(splits) != 1 or len(languages) != 1 or len(shots) > (splits == ["train"]):
        raise BadRecord(
            f"{path}: names of split and language expected, as in de/train_10 or test_de"
        )
    name = "_".join([*splits, *shots, *["mt"] * translated])
    return AnnotationFile(path, name, languages[0])


def _add(
    files: dict[tuple[str, str], AnnotationFile], file: AnnotationFile, ignored: list[str]
) -> None:
    """Adds a file unless there is one for its split and language."""
    key = (file.split, file.language)
    other = files.setdefault(key, file)
    if other is file:
        return
    # GQA is there as published and in the form of IGLUE, the same questions.
    plain, *rest = sorted((other, file), key=lambda one: "balanced" in one.path.name)
    if "balanced" in plain.path.name or "balanced" not in rest[0].path.name:
        raise DataError(
            f"{other.path} and {file.path} are both split {file.split} in {file.language}; keep one"
        )
    files[key] = plain
    ignored.append(f"{rest[0].path}: the same split as {plain.path.name}")


def _is_language(word: str) -> bool:
    """Whether a part of a name is a code of two letters, as all of the benchmark are."""
    try:
        check_language(word, "")
    except BadRecord:
        return False
    return len(word) == 2
