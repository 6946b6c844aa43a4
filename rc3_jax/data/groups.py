"""Which records are about the same thing, whichever sources they come from.

Records of one group are never each other's negatives (METHOD.md section 0). Within a source, a
group is an image or a sentence. `link_groups` joins those of all sources: the same image is one
group, and so are records of parallel text that have a text in common, be it through others. These
join the first image that has one of their texts. Texts do not join images: 4,740 of 7,153
photographs with 18 captions each would be one group, through sentences such as "A man is running".
Rows with an equal text are told apart where losses are computed, see `text_numbers`.
"""

from __future__ import annotations

import array
import hashlib
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

_BETWEEN_WORDS = re.compile(
    r"[\s!\"#%&'()*,\-./:;?@\[\\\]_{}¡§«¶·»¿\u060c\u061b\u061f\u06d4\u0964\u0965\u2010-\u205e"
    r"\u3001-\u3003\u3008-\u3011\u3014-\u301f]+"
)
"""White space and punctuation, after NFKC; not symbols, nor the marks that are a part of letters."""


class GroupKeys(NamedTuple):
    """What the groups of a source are about: int64 `[n, 2]` arrays of (group, key).

    Attributes:
      images: keys of images.
      sentences: keys of parallel text.
      captions: keys of the texts of images.
    """

    images: np.ndarray
    sentences: np.ndarray
    captions: np.ndarray


class KeyLists:
    """Collects the (group, key) of a source."""

    def __init__(self) -> None:
        self._lists = tuple(array.array("q") for _ in GroupKeys._fields)

    def add(
        self,
        group: int,
        image: int | None = None,
        sentences: Iterable[str] = (),
        captions: Iterable[str] = (),
    ) -> None:
        """Notes what a group is about; texts as records have them."""
        images, of_sentences, of_captions = self._lists
        if image is not None:
            images.extend((group, image))
        for text in sentences:
            of_sentences.extend((group, text_key(text)))
        for text in captions:
            of_captions.extend((group, text_key(text)))

    def keys(self) -> GroupKeys:
        """All that was noted."""
        return GroupKeys(*(np.frombuffer(of, np.int64).reshape(-1, 2) for of in self._lists))


def image_key(identity: str | bytes) -> int:
    """A number of 64 bits for the real path, or for the content, of an image."""
    content = identity.encode("utf-8", "surrogateescape") if isinstance(identity, str) else identity
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big", signed=True)


def text_key(text: str) -> int:
    """A number of 64 bits for a text, whatever its case, punctuation and spaces."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return image_key(_BETWEEN_WORDS.sub(" ", folded).strip() or folded)


def link_groups(parts: Sequence[tuple[GroupKeys, int]], count: int) -> np.ndarray:
    """The groups of all sources of a run, from those of each source.

    Args:
      parts: keys of each source, and the offset of its groups among all.
      count: groups of all sources.

    Returns:
      int32 `[count]`: for each group a number that it shares with those it belongs with alone.
    """
    images, sentences, captions = (_moved(parts, name) for name in GroupKeys._fields)
    linked = _linked(np.concatenate([images, sentences]), count)
    captions = captions[np.argsort(captions[:, 1], kind="stable")]
    if not len(captions):
        return linked
    places = np.searchsorted(captions[:, 1], sentences[:, 1]).clip(max=len(captions) - 1)
    found = captions[places, 1] == sentences[:, 1]
    target = np.arange(count, dtype=np.int32)
    joins, joined = linked[sentences[found, 0]], linked[captions[places[found], 0]]
    target[joins[::-1]] = joined[::-1]  # the first text that an image has decides
    return target[linked]


def _moved(parts: Sequence[tuple[GroupKeys, int]], name: str) -> np.ndarray:
    """The (group, key) of all sources, with the groups of the whole run."""
    moved = [getattr(keys, name) + [offset, 0] for keys, offset in parts]
    return np.concatenate(moved) if moved else np.zeros((0, 2), np.int64)


def _linked(pairs: np.ndarray, count: int) -> np.ndarray:
    """int32 `[count]`: the smallest number of each one's connected component."""
    keys, places = np.unique(pairs[:, 1], return_inverse=True)
    nodes = count + len(keys)
    edges = (pairs[:, 0], count + places)
    graph = coo_matrix((np.ones(len(pairs), bool), edges), shape=(nodes, nodes))
    number, label = connected_components(graph, directed=False)
    first = np.full(number, nodes)
    np.minimum.at(first, label[:count], np.arange(count))
    return first[label[:count]].astype(np.int32)
