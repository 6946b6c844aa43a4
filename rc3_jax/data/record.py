"""What every data source hands out: records, and how unusable ones are counted."""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import langcodes
import numpy as np

from rc3_jax.data.groups import GroupKeys
from rc3_jax.data.kinds import LanguagePair, Texts

T = TypeVar("T")
R = TypeVar("R")

SAY_EVERY = 3.0
"""Seconds between two lines that say how far reading is."""

ImageLike = pathlib.Path | bytes | Callable[[], np.ndarray | pathlib.Path | bytes]
"""A file, an encoded image, or a function that draws one (uint8 `[height, width, 3]`) or
fetches one (a file, or encoded)."""


class DataError(ValueError):
    """Input on which a run cannot go on; the message names the file and the remedy."""


class BadRecord(DataError):
    """One record that cannot be used; it is skipped and counted.

    Args:
      where: file and line, or what else names the record.
      problem: what is wrong with it, and the remedy.
    """

    def __init__(self, where: object, problem: str):
        super().__init__(f"{where}: {problem}")
        self.where = str(where)
        self.problem = problem

    def __reduce__(self):
        return BadRecord, (self.where, self.problem)


@dataclasses.dataclass(frozen=True, slots=True)
class Element:
    """A part of an image that texts speak of.

    Attributes:
      box: x1, y1, x2, y2 as fractions of the image's width and height, in [0, 1], with area.
      texts: language code → its captions; at least one language.
      attributes: language code → what may be put before a caption of this language.
    """

    box: tuple[float, float, float, float]
    texts: Texts
    attributes: Texts = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Record:
    """One row of a source, before anything random happens to it.

    Attributes:
      where: file and line (or record) for error messages, such as `captions.jsonl:17`.
      group: identity of the image (or sentence) within its source; see `groups.py`.
      texts: language code → its texts. Strict and parallel records have one text a
        language, all translations of one another; weak records may have several.
      image: the picture; None for parallel text.
      boxes: float32 `[regions, 4]`, x1, y1, x2, y2 as fractions of width and height.
      features: float32 `[regions, feature_size]` of a detector, row for row with `boxes`.
      relevance: true overlap in meaning of a weak record's texts, in [0, 1], where a source
        knows it. For measuring only.
      elements: of a region record, whose `texts` are about the whole image and may be absent;
        empty in others.
      element_group: the group of the first element; those of the others follow.
    """

    where: str
    group: int
    texts: Texts
    image: ImageLike | None = None
    boxes: np.ndarray | None = None
    features: np.ndarray | None = None
    relevance: float | None = None
    elements: tuple[Element, ...] = ()
    element_group: int = 0


class Source(Protocol):
    """Random access to the records of one kind.

    Attributes:
      groups: every record's `group` is in `[0, groups)`, and so are those of its elements.
      pairs: languages of a row → numbers of the records that offer them.
    """

    @property
    def groups(self) -> int: ...

    @property
    def pairs(self) -> Mapping[LanguagePair, Sequence[int] | np.ndarray]: ...

    def keys(self) -> GroupKeys:
        """What its groups are about, by which they are joined with those of other sources.

        Kinds of one configured source whose groups are numbered alike have the same keys.
        """
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...


Kinds = dict[str, tuple[Source, int]]
"""Kind → its source, and the offset of its groups among all of one configured source."""


@functools.lru_cache(1024)
def checked_language(code: str) -> str:
    """Returns `code` if it is a BCP 47 language tag such as `en` or `zh-Hant`.

    Other spellings of a tag (`EN`, `eng`, `zh_CN`) are refused too: they would silently make two
    languages out of one.

    Raises:
      ValueError: for anything else.
    """
    if not langcodes.tag_is_valid(code):
        raise ValueError(f"unknown language code {code!r}; use an ISO 639 code such as en or zh")
    if code != (standard := langcodes.standardize_tag(code)):
        raise ValueError(f"language code {code!r} is not in standard form; use {standard}")
    return code


class Skips:
    """Counts unusable records, and stops the run when they are more than `limit` of all.

    Args:
      say: prints a line; how far reading is, every few seconds. Other processes do not have it.

    Attributes:
      reasons: place of each skipped record → why.
      left_out: kind of part → place of each record of which some are not used → how many.
      noted: how often anything was noted, records met again included.
    """

    def __init__(self, limit: float = 0.01, say: Callable[[str], None] | None = None):
        self.limit = limit
        self._say = say
        self.reasons: dict[str, str] = {}
        self.left_out: dict[str, dict[str, int]] = {}
        self.noted = 0

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_say": None}

    def add(self, error: BadRecord) -> None:
        """Notes that a record is not used; a record counts once."""
        self.noted += 1
        self.reasons.setdefault(error.where, str(error))

    def leave_out(self, where: object, what: str, count: int) -> None:
        """Notes that so many parts of a record, such as boxes, are not used."""
        if count:
            self.noted += 1
            self.left_out.setdefault(what, {})[str(where)] = count

    def check(self, total: int, what: str) -> None:
        """Raises DataError when more than `limit` of `total` records were skipped."""
        if len(self.reasons) > self.limit * total:
            shown = "\n  ".join(list(self.reasons.values())[:5])
            raise DataError(
                f"{what}: {len(self.reasons)} of {total} records cannot be used, more than "
                f"{self.limit:.0%}. Mend or remove them. The first:\n  {shown}"
            )

    def usable(
        self,
        rows: Iterable[tuple[object, T | BadRecord]],
        use: Callable[[Any, T], R | None],
        what: str,
    ) -> Iterator[R]:
        """Yields what `use` makes of each (place, row), without what raises BadRecord.

        These rows are counted by themselves, so that bad ones in one file do not count against
        another. Rows of which `use` makes None do not count.

        Raises:
          DataError: at the end, when more than `limit` of the rows cannot be used.
        """
        part = Part(self, what)
        for place, row in self.told(rows, what):
            if (made := part.use(use, place, row)) is not None:
                yield made
        part.check()

    def told(self, rows: Iterable[T], what: str) -> Iterator[T]:
        """Yields rows, and says every few seconds how many there were."""
        started = said = time.monotonic()
        for number, row in enumerate(rows, 1):
            yield row
            if self._say and (now := time.monotonic()) > said + SAY_EVERY:
                said = now
                self._say(f"{what}: {number:,} records read in {now - started:.0f} s")

    def write(self, path: pathlib.Path) -> None:
        """Writes a JSON line for each skipped record, and for each of which parts are left out."""
        # Threads that read on may add more meanwhile.
        lines = [json.dumps({"where": w, "reason": r}) for w, r in [*self.reasons.items()]]
        lines += [
            json.dumps({"where": where, "left_out": f"{count} {what}"})
            for what, counts in [*self.left_out.items()]
            for where, count in [*counts.items()]
        ]
        path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")


class Part:
    """Counts the rows of a file, or of a split in it, by themselves; see `Skips.usable`."""

    def __init__(self, skips: Skips, what: str):
        self._skips, self._what = skips, what
        self._bad, self._used = Skips(skips.limit), 0

    def use(self, use: Callable[[Any, T], R | None], place: object, row: T | BadRecord) -> R | None:
        """What `use` makes of a row; None, too, where it or reading the row raised BadRecord."""
        try:
            if isinstance(row, BadRecord):
                raise row
            made = use(place, row)
        except BadRecord as error:
            self._bad.add(error)
            return None
        self._used += made is not None
        return made

    def check(self) -> None:
        """Notes what was bad; raises DataError where that is more than the limit."""
        self._skips.reasons |= self._bad.reasons
        self._bad.check(self._used + len(self._bad.reasons), self._what)
