"""Which records are about the same thing, whichever sources they come from.

Records of one group are never each other's negatives (METHOD.md section 0). Within a source, a
group is an image or a sentence. `link_groups` joins those of all sources: the same image is one
group, and so are records of parallel text that have a text in common, be it through others.
Texts do not join images: 4,740 of 7,153 photographs with 18 captions each would be one group,
through sentences such as "A man is running". The translated texts of an image therefore have a
number of their own, that of their sentence, which counts where texts are compared. Rows with
another equal text are told apart where losses are computed, see `text_numbers`.
"""

from __future__ import annotations

import array
import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

_BETWEEN_WORDS = re.compile(
    r"[\s!\"#%&'()*,\-./:;?@\[\\\]_{}¡§«¶·»¿\u060c\u061b\u061f\u06d4\u0964\u0965\u2010-\u205e"
    r"\u3001-\u3003\u3008-\u3011\u3014-\u301f]+"
)
"""White space and punctuation, after NFKC; not symbols, nor the marks that are a part of letters."""

_ASCII_AS_SPACES = bytes(
    32 if code < 128 and _BETWEEN_WORDS.match(chr(code)) else code for code in range(256)
)
_OTHERS = re.compile(f"[{''.join(filter(_BETWEEN_WORDS.match, map(chr, range(128, 0x3020))))}]")


class GroupKeys(NamedTuple):
    """What the groups of a source are about: int64 `[n, 2]` arrays of (group, key).

    Attributes:
      images: keys of images.
      sentences: keys of texts that translate one another, of parallel text or of an image.
    """

    images: np.ndarray
    sentences: np.ndarray


class Links(NamedTuple):
    """What the groups of all sources of a run belong to, int32 `[groups]` each.

    Numbers are equal for groups that belong together, and for these alone.

    Attributes:
      groups: the image; for parallel text the sentence, as far as such text alone tells.
      sentences: the sentence that the translated texts are.
    """

    groups: np.ndarray
    sentences: np.ndarray


class KeyLists:
    """Collects the (group, key) of a source."""

    def __init__(self) -> None:
        self._columns = tuple((array.array("i"), array.array("q")) for _ in GroupKeys._fields)

    def add(
        self,
        group: int,
        image: int | None = None,
        sentences: Iterable[str] = (),
    ) -> None:
        """Notes what a group is about; texts as records have them."""
        found = () if image is None else (image,), [*map(text_key, sentences)]
        for (groups, keys), new in zip(self._columns, found, strict=True):
            groups.extend([group] * len(new))
            keys.extend(new)

    def keys(self) -> GroupKeys:
        """All that was noted."""
        return GroupKeys(
            *(
                np.stack([np.frombuffer(groups, np.int32), np.frombuffer(keys, np.int64)], axis=1)
                for groups, keys in self._columns
            )
        )


def image_key(identity: os.PathLike[str] | str | bytes) -> int:
    """A number of 64 bits for the real path, or for the bytes, of an image file.

    As those of texts, these numbers are other ones in each process.
    """
    return hash(identity if isinstance(identity, bytes) else os.fspath(identity))


def text_key(text: str) -> int:
    """A number of 64 bits for a text, whatever its case, punctuation and spaces.

    Processes have other numbers (Python's `hash`), and the same groups.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    if folded.isascii() or not _OTHERS.search(folded):  # faster than a regular expression
        words = b" ".join(folded.encode().translate(_ASCII_AS_SPACES).split())
    else:
        words = _BETWEEN_WORDS.sub(" ", folded).strip().encode()
    return hash(words or folded.encode())


def link_groups(parts: Sequence[tuple[GroupKeys, int]], count: int) -> Links:
    """What the groups of all sources of a run belong to, from the keys of each source.

    Args:
      parts: keys of each source, and the offset of its groups among all.
      count: groups of all sources.
    """
    images, sentences = _moved(parts, "images"), _moved(parts, "sentences")
    linked = _linked(sentences, count)
    if not len(images):
        return Links(linked, linked)
    parallel = sentences[~np.isin(sentences[:, 0], images[:, 0])]
    return Links(_linked(np.concatenate([images, parallel]), count), linked)


def _moved(parts: Sequence[tuple[GroupKeys, int]], name: str) -> np.ndarray:
    """The (group, key) of all sources, with the groups of the whole run."""
    moved = [getattr(keys, name) + [offset, 0] for keys, offset in parts]
    return np.concatenate(moved) if moved else np.zeros((0, 2), np.int64)


def _linked(pairs: np.ndarray, count: int) -> np.ndarray:
    """int32 `[count]`: the smallest number of each one's connected component."""
    keys, places = np.unique(pairs[:, 1], return_inverse=True)
    nodes = count + len(keys)
    edges = (pairs[:, 0], count + places)
    from scipy.sparse import coo_matrix  # slow to import
    from scipy.sparse.csgraph import connected_components

    graph = coo_matrix((np.ones(len(pairs), bool), edges), shape=(nodes, nodes))
    number, label = connected_components(graph, directed=False)
    first = np.full(number, nodes)
    np.minimum.at(first, label[:count], np.arange(count))
    return first[label[:count]].astype(np.int32)
