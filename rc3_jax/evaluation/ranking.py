"""Exact ranks of right answers by the similarity of vectors, in NumPy.

A rank is exact only if equal vectors have equal scores. A float32 matrix product does not promise
that: the order of its additions depends on shapes and places, and a tie is lost by the last bit.
Here each number is rounded to a multiple of 2^-26. Products are then multiples of 2^-52, and those
of unit vectors never add up to more than 1, so float64 sums them without error in any order. A
score is within 4e-7 of that of the vectors, the same for a query and an item that change places,
and the same on every machine: each process ranks all, and all find the same.

Queries are compared a chunk at a time; the matrix of all queries and items is never stored.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Integer

CUTOFFS = (1, 5, 10)
"""The k of recall at k."""
NEVER = np.iinfo(np.int32).max
"""The rank of what is not found."""
CHUNK = 2**21
"""Scores computed at a time."""


class Ranks(NamedTuple):
    """Places of the best right item, int32, from 1; `NEVER` where there is none."""

    image_to_text: Int[np.ndarray, " images"]
    text_to_image: Int[np.ndarray, " texts"]


def ranks_of_right(
    scores: Float[np.ndarray, "queries items"], right: Bool[np.ndarray, "queries items"]
) -> Int[np.ndarray, " queries"]:
    """The place of each query's best right item, int32, from 1.

    Wrong items that tie with it count as ranked before it, and so do those whose score is NaN. A
    right item whose score is NaN is not found: neither a collapsed nor a diverged model scores.
    """
    best = np.where(right & ~np.isnan(scores), scores, -np.inf).max(axis=1, keepdims=True)
    before = np.sum(~(scores < best) & ~right, axis=1)
    return np.where(best[:, 0] == -np.inf, NEVER, 1 + before).astype(np.int32)


def ranks(
    queries: Float[np.ndarray, "queries size"],
    items: Float[np.ndarray, "items size"],
    query_groups: Integer[np.ndarray, " queries"],
    item_groups: Integer[np.ndarray, " items"],
) -> Int[np.ndarray, " queries"]:
    """`ranks_of_right` by the similarity of unit vectors; items of a query's group are right."""
    found = [
        ranks_of_right(scores, query_groups[rows, None] == item_groups)
        for rows, scores in _similarities(queries, items)
    ]
    return np.concatenate(found)


def ranks_both_ways(
    images: Float[np.ndarray, "images size"],
    texts: Float[np.ndarray, "texts size"],
    image_of_text: Int[np.ndarray, " texts"],
) -> Ranks:
    """Ranks of each image's texts among all texts and of each text's image among all images.

    Args:
      image_of_text: the row of the image that each text describes, -1 where there is none.
    """
    numbers = np.arange(len(images))
    return Ranks(
        ranks(images, texts, numbers, image_of_text), ranks(texts, images, image_of_text, numbers)
    )


def nearest(
    queries: Float[np.ndarray, "queries size"], items: Float[np.ndarray, "items size"], k: int
) -> Int[np.ndarray, "queries k"]:
    """The k most similar items of each query (all where there are fewer), in the items' order.

    Of equal ones the earlier item is taken first, and those whose score is NaN last.
    """
    k = min(k, len(items))
    found = []
    for _, scores in _similarities(queries, items):
        scores = np.nan_to_num(scores, nan=-np.inf)
        last = np.partition(scores, -k, axis=1)[:, -k, None]
        tied = scores == last
        room = k - np.sum(scores > last, axis=1, keepdims=True)
        taken = (scores > last) | (tied & (np.cumsum(tied, axis=1) <= room))
        found.append(np.nonzero(taken)[1].reshape(-1, k).astype(np.int32))
    return np.concatenate(found)


def rank_recalls(found: Ranks, cutoffs: Sequence[int] = CUTOFFS) -> dict[str, float]:
    """`TR@1` ... of texts for an image, and `IR@1` ... of images for a text."""
    return {
        f"{name}@{k}": float(np.mean(places <= k))
        for name, places in (("TR", found.image_to_text), ("IR", found.text_to_image))
        for k in cutoffs
    }


def _similarities(
    queries: np.ndarray, items: np.ndarray
) -> Iterator[tuple[slice, Float[np.ndarray, "rows items"]]]:
    """Chunks of queries with their scores against all items, float64; NaN where either has one."""
    queries, items = _rounded(queries), _rounded(items).T
    rows = max(1, CHUNK // items.shape[1])
    for start in range(0, len(queries), rows):
        yield slice(start, start + rows), queries[start : start + rows] @ items


def _rounded(vectors: np.ndarray) -> Float[np.ndarray, "rows size"]:
    vectors = np.asarray(vectors, np.float64)
    return np.where(np.isfinite(vectors), np.round(vectors * 2**26), np.nan)
