"""Parallel text: one plain text file (or gzip) a language, line n translating line n."""

from __future__ import annotations

import itertools
import pathlib
from collections.abc import Mapping

from rc3_jax.data.record import BadRecord, DataError, Record, Skips, check_language
from rc3_jax.data.sources.lines import numbered_lines


class ParallelSource:
    """Sentences and their translations (a `Source` of kind parallel).

    A row joins the group of the first earlier row that has a sentence in common with it: where a
    sentence is translated several times, these translations must not be each other's negatives.
    """

    def __init__(
        self,
        files: Mapping[str, pathlib.Path | str],
        skips: Skips | None = None,
        max_characters: int = 2000,
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
        self._languages = tuple(files)
        self._rows: list[tuple[str, int, tuple[str, ...]]] = []
        self.groups = 0
        group_of: dict[tuple[str, str], int] = {}
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
                texts = tuple(_checked(line, at, max_characters) for at, line in row)
            except BadRecord as error:
                bad.add(where, str(error))
                continue
            sentences = list(zip(files, texts, strict=True))
            group = next((group_of[s] for s in sentences if s in group_of), self.groups)
            self.groups = max(self.groups, group + 1)
            for sentence in sentences:
                group_of.setdefault(sentence, group)
            self._rows.append((where, group, texts))
        if len(set(lengths.values())) > 1:
            counts = ", ".join(f"{files[lang]} has {n} lines" for lang, n in lengths.items())
            raise DataError(f"parallel text: {counts}; line n of each must translate line n")
        bad.hand_over(skips, len(self._rows) + len(bad.reasons), name)
        if not self._rows:
            raise DataError(f"parallel text {name}: the files are empty; download them again")
        pairs = itertools.combinations(sorted(files), 2)
        self.pairs = dict.fromkeys(pairs, range(len(self._rows)))

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Record:
        where, group, texts = self._rows[index]
        in_language = zip(self._languages, texts, strict=True)
        return Record(where, group, {language: (text,) for language, text in in_language})


def _checked(line: str | BadRecord, where: str, max_characters: int) -> str:
    if isinstance(line, BadRecord):
        raise line
    text = line.strip()
    if not text:
        raise BadRecord(f"{where}: empty line; remove it from the files of all languages")
    if len(text) > max_characters:
        raise BadRecord(f"{where}: {len(text)} characters, the limit is {max_characters}; split it")
    return text
