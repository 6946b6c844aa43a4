"""Images with all their texts, as files list them, and the records of one kind among them."""

from __future__ import annotations

import array
import dataclasses
import itertools
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np

from rc3_jax.data.groups import GroupKeys, text_key
from rc3_jax.data.image import file_content
from rc3_jax.data.kinds import (
    RETRIEVAL,
    LanguagePair,
    Texts,
    row_languages,
    texts_of_kind,
    wanted,
)
from rc3_jax.data.record import ImageLike, Kinds, Record

ImageIdentity = Literal["path", "content"]
"""What tells that images are the same."""


def identity(
    image: str | pathlib.Path, where: str, by: ImageIdentity
) -> str | pathlib.Path | bytes:
    """What `image_key` is taken of, for an image file."""
    return image if by == "path" else file_content(pathlib.Path(image), where)


@dataclasses.dataclass(frozen=True, slots=True)
class ImageRow:
    """All that a file says about one image; records of several kinds are made from it.

    Attributes:
      translations: language → texts; all translate one another.
      captions: language → texts about the image, written independently.
      The others: as in `Record`.
    """

    where: str
    image: ImageLike
    translations: Texts
    captions: Texts
    boxes: np.ndarray | None = None
    features: np.ndarray | None = None


class ImageRows(Sequence[ImageRow]):
    """Rows that may be read when they are asked for; what is needed before stands in columns.

    These are the key of each row's image and the number of its layout: which languages it has, and
    how many texts in each, as far as that decides of which kinds it is.

    Args:
      rows: the rows themselves, or what reads one; may raise BadRecord. They are added one by one.
    """

    def __init__(self, rows: Sequence[ImageRow]):
        self._rows = rows
        self._image_keys, self._layouts = array.array("q"), array.array("i")
        self._numbers: dict[tuple, int] = {}  # of layouts
        self._text_keys, self._text_counts = array.array("q"), array.array("i")  # row after row

    def add(self, key: int, translations: Texts, captions: Texts) -> None:
        """Notes what the next row is about, given the `image_key` and the texts."""
        every = [*translations.values(), *captions.values()]
        layout = tuple(translations), tuple(captions), tuple([len(texts) > 1 for texts in every])
        keys = [text_key(text) for texts in translations.values() for text in texts]
        self._image_keys.append(key)
        self._layouts.append(self._numbers.setdefault(layout, len(self._numbers)))
        self._text_keys.extend(keys)
        self._text_counts.append(len(keys))

    def __len__(self) -> int:
        return len(self._layouts)

    def __getitem__(self, index):
        return self._rows[index]

    def __getstate__(self) -> dict[str, Any]:
        """All but the keys, which no other process needs."""
        keys = {name: array.array("q") for name in ("_image_keys", "_text_keys")}
        return self.__dict__ | keys | {"_text_counts": array.array("i")}

    def texts(self, kind: str) -> list[Texts | None]:
        """For each layout, `texts_of_kind` of texts that stand for those of its rows."""

        found = []
        for translated, described, several in self._numbers:
            texts = [("one", "two") if more else ("one",) for more in several]
            split = len(translated)
            translations = dict(zip(translated, texts[:split], strict=True))
            captions = dict(zip(described, texts[split:], strict=True))
            found.append(texts_of_kind(kind, translations, captions))
        return found

    def choose(self, is_chosen: Iterable[object]) -> np.ndarray:
        """Numbers of the rows of chosen layouts, int32 in ascending order."""
        table = np.fromiter(map(bool, is_chosen), bool, len(self._numbers))
        return np.flatnonzero(table[np.frombuffer(self._layouts, np.int32)]).astype(np.int32)

    def groups(self, is_chosen: Iterable[object] | None = None) -> np.ndarray:
        """int32 `[rows]`: numbers of the images, in their order; -1 for rows of other layouts."""
        rows = np.arange(len(self)) if is_chosen is None else self.choose(is_chosen)
        keys = np.frombuffer(self._image_keys, np.int64)[rows]
        _, first, image = np.unique(keys, return_index=True, return_inverse=True)
        groups = np.full(len(self), -1, np.int32)
        groups[rows] = np.argsort(np.argsort(first))[image]
        return groups

    def keys(self, groups: np.ndarray) -> GroupKeys:
        """The images and their translations, given the groups of the rows."""
        numbers, first = np.unique(groups, return_index=True)
        is_group = numbers >= 0
        images = np.frombuffer(self._image_keys, np.int64)[first[is_group]]
        of_texts = np.repeat(groups, np.frombuffer(self._text_counts, np.int32))
        sentences = np.stack([of_texts, np.frombuffer(self._text_keys, np.int64)], axis=1)
        return GroupKeys(
            np.stack([numbers[is_group], images], axis=1, dtype=np.int64),
            sentences[of_texts >= 0],
        )


class ImageTextSource:
    """The records of one kind that rows offer (a `Source`). Sources may share their rows.

    A record may raise BadRecord when it is asked for, if its line, boxes or region file cannot be
    used.

    Args:
      groups: those of the rows, see `ImageRows.groups`; None numbers the images of all rows.
    """

    def __init__(self, rows: ImageRows, kind: str, groups: np.ndarray | None = None):
        self._rows, self._kind = rows, kind
        self._groups = rows.groups() if groups is None else groups
        self.groups = int(self._groups.max(initial=-1)) + 1
        texts = rows.texts(kind)
        self._numbers = rows.choose(texts)
        languages = [row_languages(kind, of_layout or {}) for of_layout in texts]
        self.pairs: dict[LanguagePair, np.ndarray] = {}
        for pair in dict.fromkeys(itertools.chain(*languages)):
            numbers = rows.choose(pair in offered for offered in languages)
            self.pairs[pair] = np.searchsorted(self._numbers, numbers).astype(np.int32)

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int) -> Record:
        number = int(self._numbers[index])
        row, group = self._rows[number], int(self._groups[number])
        texts = texts_of_kind(self._kind, row.translations, row.captions) or {}
        return Record(row.where, group, texts, row.image, row.boxes, row.features)

    def keys(self) -> GroupKeys:
        """Images by their paths or contents, with their translations."""
        return self._rows.keys(self._groups)


def image_text_kinds(rows: ImageRows, kinds: Iterable[str]) -> Kinds:
    """Those of the kinds that some row offers."""
    kinds = tuple(kinds)
    groups = rows.groups(map(any, zip(*map(rows.texts, kinds), strict=True)))
    sources = {kind: ImageTextSource(rows, kind, groups) for kind in kinds}
    return {kind: (source, 0) for kind, source in sources.items() if len(source)}


def heldout_kinds(rows: ImageRows) -> Kinds:
    """Records for retrieval, and those on which the dependence of texts is measured."""
    return image_text_kinds(rows, (RETRIEVAL, "strict", "weak"))


def train_kinds(rows: ImageRows, batch_mix: Any) -> Kinds:
    """Records to train on, of those kinds that a configuration may want."""
    return image_text_kinds(rows, ("strict", "weak", *wanted(("captioned",), batch_mix)))
