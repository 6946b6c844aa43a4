"""What the readers of all tasks share: rows of a file, their fields, pictures and identities."""

from __future__ import annotations

import collections
import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence

from rc3_jax.data.record import BadRecord, DataError, Skips
from rc3_jax.data.sources.lines import parsed_object, placed_lines
from rc3_jax.data.sources.rows import check_text, shown
from rc3_jax.downstream.examples import Example
from rc3_jax.downstream.layout import AnnotationFile
from rc3_jax.downstream.pictures import ImageFinder, Wanted

MAX_LINE_BYTES = 2**22
MAX_JSON_BYTES = 2**31
"""Larger files are refused: they are read whole."""

SIGNATURES: Mapping[str, tuple[frozenset[str], ...]] = {
    "XVNLI": (frozenset({"gold_label", "sentence2"}),),
    "GQA or xGQA": (frozenset({"question", "imageId"}), frozenset({"sent", "img_id"})),
    "MaRVL": (frozenset({"left_img", "right_img"}),),
    "NLVR2": (frozenset({"sentence", "identifier"}),),
    "Flickr30k or xFlickr&CO": (frozenset({"sentences", "img_path"}),),
    "WIT": (frozenset({"wit_ix", "caption_reference_description"}),),
    "captions of a folder": (
        frozenset({"image", "captions"}),
        frozenset({"image", "translations"}),
    ),
}
"""Task → fields, one set of which all of its rows have."""


@dataclasses.dataclass(frozen=True, slots=True)
class Line:
    """A text of a row, before its pictures are looked for.

    Attributes:
      identity, text, label: as in `Example`. In retrieval, `identity` is None: a caption has none,
        and is named by its picture and its place among the captions of it.
      pictures: the images it is about.
      split, language: where the row says them; None: those of the file.
    """

    text: str
    pictures: tuple[Wanted, ...]
    identity: str | None = None
    label: int | None = None
    split: str | None = None
    language: str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Task:
    """How a task is written down.

    Attributes:
      rows: its name in SIGNATURES.
      read: turns a row, given `file:line` and the file, into its lines; raises BadRecord.
      classes: as in `TaskData`.
      language, split: of files whose names do not say it.
      captions_file: the rows stand in `captions.jsonl`, and say their split and languages.
    """

    rows: str
    read: Callable[[dict, str, AnnotationFile], Sequence[Line]]
    classes: tuple[str, ...] = ()
    language: str | None = None
    split: str | None = None
    captions_file: bool = False


class Gathered:
    """The examples of all files of a task, and what was left out.

    Args:
      wanted: whether examples of a split and language are to be kept.
      skips: gathers the rows that cannot be used; its limit holds for each file.

    Attributes:
      examples: (split, language) → its examples.
      names: (split, language) → names of the pictures that its rows ask for.
      left_out: (split, language) → rows that are no examples; None where a file does not tell it, so
        that the row may be of any.
      notes: lines on what was left out.
    """

    def __init__(
        self,
        task: Task,
        images: ImageFinder,
        wanted: Callable[[str, str], bool],
        skips: Skips | None = None,
    ):
        self._task, self._images, self._wanted, self._skips = task, images, wanted, skips
        self.examples: dict[tuple[str, str], list[Example]] = collections.defaultdict(list)
        self.names: dict[tuple[str, str], dict[str, None]] = collections.defaultdict(dict)
        self.notes: list[str] = []
        self.left_out: collections.Counter[tuple[str | None, str | None]] = collections.Counter()
        self._pictureless: collections.Counter[tuple[str, str]] = collections.Counter()
        self._seen: dict[tuple[str, str, str], str] = {}
        self._captions: collections.Counter[tuple[str, str, str]] = collections.Counter()

    def add_file(self, file: AnnotationFile) -> None:
        """Reads a file.

        Raises:
          DataError: unreadable, rows of another task, or more bad rows than `skips` allows.
        """
        bad = Skips((self._skips or Skips()).limit)
        count = 0
        checked = False
        for where, row in rows_of(file.path):
            count += 1
            try:
                if isinstance(row, BadRecord):
                    raise row
                if not checked:
                    checked = True
                    check_task(row, where, self._task.rows)
                self._add_row(row, where, file)
            except BadRecord as error:
                bad.add(where, str(error))
                self.left_out[file.split, file.language] += 1
        if bad.reasons:
            first = next(iter(bad.reasons.values()))
            self.notes.append(
                f"{file.path}: {len(bad.reasons)} of {count} rows cannot be used; first: {first}"
            )
        if not count:
            self.notes.append(f"{file.path}: no rows")
        bad.hand_over(self._skips, count, str(file.path))

    def check_images(self, allow_missing: bool) -> None:
        """Notes the rows whose images are missing.

        Raises:
          DataError: see `ImageFinder.check`, for each split and language.
        """
        self.left_out.update(self._pictureless)
        for key, names in self.names.items():
            what = f"{key[0]} in {key[1]}"
            warning = self._images.check(allow_missing, names, what)
            if warning:
                dropped = self._pictureless[key]
                self.notes.append(warning + (f"; {dropped} rows left out" if dropped else ""))

    def _add_row(self, row: dict, where: str, file: AnnotationFile) -> None:
        """Adds all lines of a row or, if one of them is bad, none."""
        lines = []
        for line in self._task.read(row, where, file):
            key = (line.split or file.split, line.language or file.language)
            check_text(line.text, f"{where}: text")
            if self._wanted(*key):
                pictures = tuple(self._images.find(wanted, where) for wanted in line.pictures)
                lines.append((key, line, pictures))
        for key, line, pictures in lines:
            if line.identity is not None:
                self._check_new((*key, line.identity), where)
            self.names[key].update((wanted.name, None) for wanted in line.pictures)
            if None in pictures:
                self._pictureless[key] += 1
                continue
            identity = line.identity or self._caption_identity((*key, line.pictures[0].name))
            text = line.text.strip()
            self.examples[key].append(Example(where, identity, text, pictures, line.label))

    def _check_new(self, identity: tuple[str, str, str], where: str) -> None:
        other = self._seen.setdefault(identity, where)
        if other != where:
            raise BadRecord(
                f"{where}: {shown(identity[2])} was on {other} already; remove one of them"
            )

    def _caption_identity(self, picture: tuple[str, str, str]) -> str:
        self._captions[picture] += 1
        return f"{picture[2]}#{self._captions[picture] - 1}"


def rows_of(path: pathlib.Path) -> Iterator[tuple[str, dict | BadRecord]]:
    """Yields file and line of each row, and its fields or why it cannot be used.

    Of a `.json` file, the items of a list or the values of an object are the rows; of an object
    the key is added as `question_id`.

    Raises:
      DataError: the file cannot be read.
    """
    if path.name.endswith(".json"):
        yield from _rows_of_json(path)
        return
    for place, line in placed_lines(path, MAX_LINE_BYTES):
        where = str(place)
        try:
            row = parsed_object(line, where)
        except BadRecord as error:
            row = error
        if row is not None:
            yield where, row


def _rows_of_json(path: pathlib.Path) -> Iterator[tuple[str, dict | BadRecord]]:
    content = load_json(path)
    if isinstance(content, dict):
        rows = ((f"{path}[{key!r}]", key, row) for key, row in content.items())
    elif isinstance(content, list):
        rows = ((f"{path}[{number}]", None, row) for number, row in enumerate(content))
    else:
        raise DataError(f"{path}: {shown(content)} is no list or object of rows; download it again")
    for where, key, row in rows:
        if not isinstance(row, dict):
            yield where, BadRecord(f"{where}: {shown(row)} is not a row; write {{...}}")
        else:
            yield where, row if key is None else {**row, "question_id": key}


def load_json(path: pathlib.Path) -> object:
    """The content of a JSON file.

    Raises:
      DataError: missing, too large, not JSON in UTF-8, NaN, or a key twice in one object.
    """

    def no_key_twice(pairs: list[tuple[str, object]]) -> dict:
        fields = dict(pairs)
        if len(fields) < len(pairs):
            [(key, _)] = collections.Counter(key for key, _ in pairs).most_common(1)
            raise ValueError(f"key {key[:100]!r} stands twice in one object; remove one")
        return fields

    def no_constant(name: str) -> None:
        raise ValueError(f"{name} is not a number")

    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise ValueError(f"larger than {MAX_JSON_BYTES} bytes")
        text = path.read_text(encoding="utf-8-sig")
        return json.loads(text, object_pairs_hook=no_key_twice, parse_constant=no_constant)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not usable JSON ({error}); download it again") from error


def check_task(row: dict, where: str, task: str) -> None:
    """Raises DataError where a row has the fields of another task than this of SIGNATURES."""
    if any(fields <= row.keys() for fields in SIGNATURES[task]):
        return
    for other, signatures in SIGNATURES.items():
        if any(fields <= row.keys() for fields in signatures):
            raise DataError(
                f"{where}: looks like {other}, while {task} is expected; check folder and task"
            )


def text_field(row: dict, name: str, where: str) -> str:
    """Raises BadRecord unless the field holds a text with words."""
    if name not in row:
        raise BadRecord(f"{where}: field {name} is missing; download the file again")
    check_text(row[name], f"{where}: field {name}")
    return row[name]


def identity_field(row: dict, name: str, where: str) -> str:
    """A text or a whole number, as a text; raises BadRecord for all else."""
    if type(row.get(name)) is int:
        return str(row[name])
    return text_field(row, name, where)


def check_row_language(row: dict, file: AnnotationFile, where: str) -> None:
    """Raises BadRecord where a row says another language than its file's name does."""
    if row.get("language", file.language) != file.language:
        raise BadRecord(
            f"{where}: language {shown(row['language'])} in a file of {file.language}; rename the "
            "file or move the row"
        )


def truth(label: object, where: str) -> int:
    """1 for true and 0 for false, also as the texts `True` and `False`; else raises BadRecord."""
    if type(label) is bool:
        return int(label)
    if label in ("True", "False"):
        return int(label == "True")
    raise BadRecord(f"{where}: label {shown(label)} is neither true nor false; correct it")
