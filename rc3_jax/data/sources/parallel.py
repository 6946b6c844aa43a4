"""Parallel text: one plain text file (or gzip) a language, line n translating line n."""

from __future__ import annotations

import itertools
import pathlib
from collections.abc import Mapping, Sequence

from rc3_jax.data.record import (
    BadRecord,
    DataError,
    LanguagePair,
    Record,
    Skips,
    check_language,
)
from rc3_jax.data.sources.lines import numbered_lines

MAX_CHARACTERS = 2000
"""Of a sentence."""


class Sentences:
    """Sentences and their translations (a `Source` of kind parallel).

    A row joins the group of the first earlier row that has a sentence in common with it: where a
    sentence is translated several times, these translations must not be each other's negatives.
    """

    def __init__(self, languages: Sequence[str]):
        """Two languages or more, or twice the same one where it is not known which they are."""
        self._languages = tuple(languages)
        self._rows: list[tuple[str, int, tuple[str, ...]]] = []
        self._group_of: dict[tuple[str, str], int] = {}
        self.groups = 0

    def add(self, where: str, texts: Sequence[str]) -> None:
        """Adds a row, a text for each of the languages."""
        sentences = list(zip(self._languages, texts, strict=True))
        known = (self._group_of[s] for s in sentences if s in self._group_of)
        group = next(known, self.groups)
        self.groups = max(self.groups, group + 1)
        for sentence in sentences:
            self._group_of.setdefault(sentence, group)
        self._rows.append((where, group, tuple(texts)))

    def close(self) -> None:
        """Ends the adding of rows, and frees what only that needs."""
        self._group_of.clear()

    @property
    def pairs(self) -> dict[LanguagePair, range]:
        """As in `Source`."""
        pairs = itertools.combinations(sorted(self._languages), 2)
        return dict.fromkeys(pairs, range(len(self._rows)))

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Record:
        where, group, in_row = self._rows[index]
        texts: dict[str, tuple[str, ...]] = {}
        for language, text in zip(self._languages, in_row, strict=True):
            texts[language] = (*texts.get(language, ()), text)
        return Record(where, group, texts)


class ParallelSource(Sentences):
    """Sentences of line-aligned files."""

    def __init__(
        self,
        files: Mapping[str, pathlib.Path | str],
        skips: Skips | None = None,
        max_characters: int = MAX_CHARACTERS,
    ):
        """Reads the files.

        Args:
          files: language code → path.
          skips: gathers the rows that cannot be used: a line that is empty, longer than
            `max_characters`, or not UTF-8.

        Raises:
          DataError: less than two languages, files missing or of unequal length, no row, or
            more bad ones than `skips` allows.
        """
        name = ", ".join(map(str, files.values()))
        if len(files) < 2:
            raise DataError(f"parallel text {dict(files)}: give files of at least two languages")
        for language in files:
            check_language(language, f"parallel text {name}")
        super().__init__(tuple(files))
        lengths = dict.fromkeys(files, 0)
        bad = Skips((skips or Skips()).limit)
        columns = [numbered_lines(pathlib.Path(file)) for file in files.values()]
        for row in itertools.zip_longest(*columns):
            for language, line in zip(files, row, strict=True):
                lengths[language] += line is not None
            if None in row:
                continue  # only the lines of the longer files are still counted
            where = row[0][0]
            try:
                self.add(where, [checked_sentence(line, at, max_characters) for at, line in row])
            except BadRecord as error:
                bad.add(where, str(error))
        self.close()
        if len(set(lengths.values())) > 1:
            counts = ", ".join(f"{files[lang]} has {n} lines" for lang, n in lengths.items())
            raise DataError(f"parallel text: {counts}; line n of each must translate line n")
        bad.hand_over(skips, len(self._rows) + len(bad.reasons), name)
        if not self._rows:
            raise DataError(f"parallel text {name}: the files are empty; download them again")


def checked_sentence(
    line: str | BadRecord, where: str, max_characters: int = MAX_CHARACTERS
) -> str:
    """The sentence on a line, stripped; raises BadRecord where it is empty or too long."""
    if isinstance(line, BadRecord):
        raise line
    text = line.strip()
    if not text:
        raise BadRecord(f"{where}: empty line; remove it from the files of all languages")
    if len(text) > max_characters:
        raise BadRecord(f"{where}: {len(text)} characters, the limit is {max_characters}; split it")
    return text
