"""Images with all their texts, as files list them, and the records of one kind among them."""

from __future__ import annotations

import array
import collections
import dataclasses
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from rc3_jax.data.groups import GroupKeys, KeyLists
from rc3_jax.data.kinds import (
    RETRIEVAL,
    LanguagePair,
    Texts,
    row_languages,
    texts_of_kind,
    wanted,
)
from rc3_jax.data.record import ImageLike, Kinds, Record


@dataclasses.dataclass(frozen=True, slots=True)
class ImageRow:
    """All that a file says about one image; records of several kinds are made from it.

    Attributes:
      image_key: see `groups.image_key`.
      translations: language → texts; all translate one another.
      captions: language → texts about the image, written independently.
      load_regions: returns boxes and features of a detector; called when a record is asked for.
      The others: as in `Record`.
    """

    where: str
    image_key: int
    image: ImageLike
    translations: Texts
    captions: Texts
    boxes: np.ndarray | None = None
    load_regions: Callable[[], tuple[np.ndarray, np.ndarray]] | None = None

    def texts(self, kind: str) -> Texts | None:
        """See `texts_of_kind`."""
        return texts_of_kind(kind, self.translations, self.captions)


class ImageTextSource:
    """The records of one kind that rows offer (a `Source`). Sources may share their rows.

    Groups are images, numbered alike for all kinds made from the same rows. A record may raise
    BadRecord when it is asked for, if its region file cannot be used.
    """

    def __init__(self, rows: Sequence[ImageRow], kind: str):
        self._kind = kind
        self._every, self._rows = rows, [row for row in rows if row.texts(kind)]
        self._group_of = {key: n for n, key in enumerate(dict.fromkeys(r.image_key for r in rows))}
        self.groups = len(self._group_of)
        found: dict[LanguagePair, array.array[int]] = collections.defaultdict(
            lambda: array.array("i")
        )
        for number, row in enumerate(self._rows):
            for pair in row_languages(kind, row.texts(kind) or {}):
                found[pair].append(number)
        self.pairs = {pair: np.frombuffer(numbers, np.int32) for pair, numbers in found.items()}

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Record:
        row = self._rows[index]
        boxes, features = row.load_regions() if row.load_regions else (row.boxes, None)
        group, texts = self._group_of[row.image_key], row.texts(self._kind) or {}
        return Record(row.where, group, texts, row.image, boxes, features)

    def keys(self) -> GroupKeys:
        """Images by their paths or contents, with all their texts, of every kind."""
        lists = KeyLists()
        for row in self._every:
            texts = itertools.chain(*row.translations.values(), *row.captions.values())
            lists.add(self._group_of[row.image_key], row.image_key, captions=texts)
        return lists.keys()


def image_text_kinds(rows: Sequence[ImageRow], kinds: Iterable[str]) -> Kinds:
    """Those of the kinds that some row offers."""
    kinds = tuple(kinds)
    offered = [row for row in rows if any(map(row.texts, kinds))]
    sources = {kind: ImageTextSource(offered, kind) for kind in kinds}
    return {kind: (source, 0) for kind, source in sources.items() if len(source)}


def heldout_kinds(rows: Sequence[ImageRow]) -> Kinds:
    """Records for retrieval, and those on which the dependence of texts is measured."""
    return image_text_kinds(rows, (RETRIEVAL, "strict", "weak"))


def split_kinds(
    read: Callable[[Any], Sequence[ImageRow]], source: Any, batch_mix: Any
) -> tuple[Kinds, Kinds]:
    """The kinds in a source's `train_split` and `heldout_split`, given what reads a split."""
    kinds = ("strict", "weak", *wanted(("captioned",), batch_mix))
    train = image_text_kinds(read(source.train_split), kinds)
    return train, heldout_kinds(read(source.heldout_split))
