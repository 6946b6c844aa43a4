"""What every data source hands out: records, and how unusable ones are counted."""

from __future__ import annotations

import collections
import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, Protocol

import langcodes
import numpy as np

Kind = Literal["strict", "weak", "parallel", "retrieval", "captioned", "region"]
"""`strict`: an image, texts that translate one another. `weak`: an image, texts about it.
`parallel`: texts that translate one another, no image. `retrieval`: an image and, for
evaluation, every text that describes it. `captioned`: an image and texts, of which a row takes
one. `region`: an image with texts about parts of it (METHOD.md sections 0, 3 and 4)."""

ImageLike = pathlib.Path | bytes | Callable[[], np.ndarray | bytes]
"""A file, an encoded image, or a function that draws one (uint8 `[height, width, 3]`) or
fetches one (encoded)."""

LanguagePair = tuple[str, ...]
"""The languages of a row's texts. Two codes, sorted; the same one twice for two texts of one
language; one code for a row of one text; none where each text draws a language of its own."""


class DataError(ValueError):
    """Input on which a run cannot go on; the message names the file and the remedy."""


class BadRecord(DataError):
    """One record that cannot be used; it is skipped and counted."""


@dataclasses.dataclass(frozen=True, slots=True)
class Element:
    """A part of an image that texts speak of.

    Attributes:
      box: x1, y1, x2, y2 as fractions of the image's width and height, in [0, 1], with area.
      texts: language code → its captions; at least one language.
      attributes: language code → what may be put before a caption of this language.
    """

    box: tuple[float, float, float, float]
    texts: Mapping[str, tuple[str, ...]]
    attributes: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Record:
    """One row of a source, before anything random happens to it.

    Attributes:
      where: file and line (or record) for error messages, such as `captions.jsonl:17`.
      group: identity of the image (or sentence) within its source. Rows of one group are
        never each other's negatives. Of a region record: that of the whole image, which the
        next `len(elements)` numbers follow, one for each element.
      texts: language code → its texts. Strict and parallel records have one text a
        language, all translations of one another; weak records may have several.
      image: the picture; None for parallel text.
      boxes: float32 `[regions, 4]`, x1, y1, x2, y2 as fractions of width and height.
      features: float32 `[regions, feature_size]` of a detector, row for row with `boxes`.
      relevance: true overlap in meaning of a weak record's texts, in [0, 1], where a source
        knows it. For measuring only.
      elements: of a region record, whose `texts` are about the whole image and may be absent;
        empty in others.
    """

    where: str
    group: int
    texts: Mapping[str, tuple[str, ...]]
    image: ImageLike | None = None
    boxes: np.ndarray | None = None
    features: np.ndarray | None = None
    relevance: float | None = None
    elements: tuple[Element, ...] = ()


class Source(Protocol):
    """Random access to the records of one kind.

    Attributes:
      groups: every record's `group` is in `[0, groups)`, and so are those of its elements.
      pairs: languages of a row → numbers of the records that offer them.
    """

    groups: int
    pairs: Mapping[LanguagePair, Sequence[int]]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...


def check_language(code: str, where: str) -> None:
    """Raises BadRecord unless `code` is a BCP 47 language tag such as `en` or `zh-Hant`.

    Other spellings of a tag (`EN`, `eng`, `zh_CN`) are refused too: they would silently make two
    languages out of one.
    """
    if not isinstance(code, str) or not langcodes.tag_is_valid(code):
        raise BadRecord(
            f"{where}: unknown language code {code!r}; use an ISO 639 code such as en, de or zh"
        )
    standard = langcodes.standardize_tag(code)
    if code != standard:
        raise BadRecord(f"{where}: language code {code!r} is not in standard form; use {standard}")


class Skips:
    """Counts unusable records, and stops the run when they are more than `limit` of all."""

    def __init__(self, limit: float = 0.01):
        self.limit = limit
        self.reasons: collections.OrderedDict[str, str] = collections.OrderedDict()

    def add(self, where: str, reason: str) -> None:
        """Notes that the record at `where` is not used; a record counts once."""
        self.reasons.setdefault(where, reason)

    def check(self, total: int, what: str) -> None:
        """Raises DataError when more than `limit` of `total` records were skipped."""
        if len(self.reasons) > self.limit * total:
            shown = "\n  ".join(list(self.reasons.values())[:5])
            raise DataError(
                f"{what}: {len(self.reasons)} of {total} records cannot be used, more than "
                f"{self.limit:.0%}. Mend or remove them. The first:\n  {shown}"
            )

    def hand_over(self, other: Skips | None, total: int, what: str) -> None:
        """Adds its reasons to those of `other`, then checks its own.

        A source counts by itself, so that skips of one source do not count against another.
        """
        if other is not None:
            for where, reason in self.reasons.items():
                other.add(where, reason)
        self.check(total, what)

    def write(self, path: pathlib.Path) -> None:
        """Writes one JSON line a skipped record, so that nothing is lost silently."""
        lines = [json.dumps({"where": w, "reason": r}) for w, r in self.reasons.items()]
        path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
