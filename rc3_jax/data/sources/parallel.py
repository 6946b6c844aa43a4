"""Parallel text: one plain text file (or gzip) a language, line n translating line n."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

from pydantic import Field

from rc3_jax.data.groups import GroupKeys, KeyLists, link_groups
from rc3_jax.data.jsonl import Language
from rc3_jax.data.kinds import LanguagePair
from rc3_jax.data.lines import Lines, Place, read_lines
from rc3_jax.data.record import BadRecord, DataError, Kinds, Record, Skips
from rc3_jax.data.text import usable_text
from rc3_jax.settings import Settings

SentenceTexts = tuple[str, ...]
SentenceRow = tuple[str, SentenceTexts]
"""Place and texts."""


class ParallelSource(Settings):
    """Line-aligned text files."""

    type: Literal["parallel"] = "parallel"
    files: dict[Language, str] = Field(min_length=2)
    """Language → file."""

    def open(self, config: Any, skips: Skips) -> tuple[Kinds, Kinds]:
        """Returns the kind to train on; nothing is held out."""
        return {"parallel": (read_parallel(self.files, skips), 0)}, {}


class Sentences:
    """Sentences and their translations (a `Source` of kind parallel).

    Rows that have a sentence in common, be it through others, are one group: where a sentence is
    translated several times, these translations must not be each other's negatives.

    Args:
      languages: two or more, or twice the same one where it is not known which they are.
      rows: the texts of each row, one for each of the languages.
      read: what reads place and texts of a row again; may raise BadRecord.
    """

    def __init__(
        self, languages: Sequence[str], rows: Iterable[SentenceTexts], read: Sequence[SentenceRow]
    ):
        self._languages, self._read = tuple(languages), read
        self._keys = KeyLists()
        for group, texts in enumerate(rows):
            self._keys.add(group, sentences=texts)
        self.groups = len(read)
        self._group_of = link_groups([(self.keys(), 0)], self.groups).sentences
        pairs = itertools.combinations(sorted(self._languages), 2)
        self.pairs: dict[LanguagePair, range] = dict.fromkeys(pairs, range(self.groups))

    def __getstate__(self) -> dict[str, Any]:
        """All but the texts' keys, which no other process needs."""
        return self.__dict__ | {"_keys": KeyLists()}

    def keys(self) -> GroupKeys:
        """All texts."""
        return self._keys.keys()

    def __len__(self) -> int:
        return self.groups

    def __getitem__(self, index: int) -> Record:
        where, in_row = self._read[index]
        texts: dict[str, tuple[str, ...]] = {}
        for language, text in zip(self._languages, in_row, strict=True):
            texts[language] = (*texts.get(language, ()), text)
        return Record(where, int(self._group_of[index]), texts)


def read_parallel(files: Mapping[str, str], skips: Skips) -> Sentences:
    """Reads line-aligned files, without rows of which a line is empty, too long or not UTF-8.

    Raises:
      DataError: files missing, empty or of unequal length, or more bad rows than `skips` allows.
    """
    name = ", ".join(files.values())
    lengths = dict.fromkeys(files.values(), 0)

    def rows() -> Iterator[tuple[Place, Sequence]]:
        every = (read_lines(file, again=True) for file in files.values())
        for row in itertools.zip_longest(*every):
            for file, line in zip(files.values(), row, strict=True):
                lengths[file] += line is not None
            if None not in row:  # otherwise only the lines of the longer files are still counted
                yield row[0][0], row

    read = _AlignedLines(len(files))

    def use(first: Place, row: Sequence) -> SentenceTexts:
        texts = tuple(_sentence(line, place) for place, line in row)
        for lines, (place, _) in zip(read.lines, row, strict=True):
            lines.append(place)
        return texts

    sentences = Sentences(tuple(files), skips.usable(rows(), use, name), read)
    if len(set(lengths.values())) > 1:
        counts = ", ".join(f"{file} has {n} lines" for file, n in lengths.items())
        raise DataError(f"parallel text: {counts}; line n of each must translate line n")
    if not sentences:
        raise DataError(f"parallel text {name}: the files are empty; download them again")
    return sentences


class _AlignedLines(Sequence[SentenceRow]):
    """Rows of line-aligned files, read again when they are asked for."""

    def __init__(self, count: int):
        self.lines = [Lines() for _ in range(count)]

    def __len__(self) -> int:
        return len(self.lines[0])

    def __getitem__(self, index):
        places = [of_file[index] for of_file in self.lines]
        return str(places[0]), tuple(_sentence(place.read_line(), place) for place in places)


def _sentence(line: str | BadRecord, where: object) -> str:
    if isinstance(line, BadRecord):
        raise line
    try:
        return usable_text(line)
    except ValueError as error:
        raise BadRecord(where, f"{error}, in all languages' files") from error
