"""Retrieval in two stages at scale: vectors choose candidates, the matching head re-ranks them.

The evaluation of CCLM and ALBEF (CCLM.md section 5), for any number of images and texts. Matching
scores are not kept: a first sweep scores the right pairs, a second one the wrong candidates, and
counts those that score no less. Of what grows with texts times candidates only the candidates'
numbers are stored.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Integer

from rc3_jax.evaluation.pair_encoder import PairEncoder, RetrievalData
from rc3_jax.evaluation.retrieval import CUTOFFS, recalls_of_ranks
from rc3_jax.evaluation.streaming import NEVER, ranks, top_k


class Ranks(NamedTuple):
    """Places of the best right item, int32, from 1; `NEVER` of what is not found."""

    image_to_text: Int[np.ndarray, " described"]
    text_to_image: Int[np.ndarray, " texts"]


class Result(NamedTuple):
    """What a search found.

    Attributes:
      images: identities of the images with a text, row for row with `image_to_text`.
      by_vectors: ranks by the vectors.
      by_matching: ranks after re-ranking; those by the vectors where nothing was re-ranked.
      pairs: how many pairs of an image and a text went through the fusion encoder.
    """

    images: Integer[np.ndarray, " described"]
    by_vectors: Ranks
    by_matching: Ranks
    pairs: int


def rank_recalls(found: Ranks, cutoffs: Sequence[int] = CUTOFFS) -> dict[str, float]:
    """`TR@1` ... of texts for an image, and `IR@1` ... of images for a text."""
    recalls = {}
    for name, places in (("TR", found.image_to_text), ("IR", found.text_to_image)):
        shares = recalls_of_ranks(places - 1, cutoffs)
        recalls |= {f"{name}@{k}": share for k, share in shares.items()}
    return recalls


def retrieve(
    encoder: PairEncoder,
    params,
    data: RetrievalData,
    k: int | None = 128,
    tile: int = 1024,
) -> Result:
    """Ranks all texts for each image that has one, and all images for each text.

    After re-ranking the k candidates of a query stand first, by their matching scores, and behind
    them the other items, as their vectors order them. A wrong item that ties with the best right
    one comes before it, and so does one whose score is not a number; a right item whose score is
    none is not found. Where no right item is among the candidates, the rank is that by the vectors:
    such queries' candidates are not scored.

    Args:
      encoder: one encoder serves any number of searches and parameters.
      k: of the texts for an image and of the images for a text; 0 leaves out the second stage,
        None scores all pairs, the protocol of cross-encoders (IGLUE).
      tile: see `top_k`.

    Raises:
      ValueError: if there are no texts or no images, k is negative or tile is below 1.
    """
    if k is not None and k < 0:
        raise ValueError(f"{k=} must not be negative")
    if not len(data.ids) or not len(data.image_ids):
        raise ValueError(f"{len(data.ids)} texts and {len(data.image_ids)} images: none to rank")
    data, owners = _merged(data)
    params, mesh = encoder.place(params), encoder.mesh
    texts = encoder.text_vectors(params, data.ids)
    images = encoder.image_vectors(params, len(data.image_ids), data.rows)
    numbers = np.arange(len(images))
    by_vectors = by_matching = Ranks(
        ranks(images, texts, numbers, owners, mesh, tile),
        ranks(texts, images, owners, numbers, mesh, tile),
    )

    def near(queries, items):
        takes_all = k is None or k >= len(items)
        return None if takes_all else top_k(queries, items, k, mesh, tile).items

    scored = 0
    if k != 0:
        nearest = near(images, texts), near(texts, images)
        score = functools.partial(encoder.scores, params, data)
        by_matching, scored = _rerank(score, owners, nearest, by_vectors)
    described = np.unique(owners[owners >= 0])
    by_vectors, by_matching = (
        found._replace(image_to_text=found.image_to_text[described])
        for found in (by_vectors, by_matching)
    )
    return Result(data.image_ids[described], by_vectors, by_matching, scored)


def _merged(data: RetrievalData) -> tuple[RetrievalData, Int[np.ndarray, " texts"]]:
    """The data with each image once, and the row of each text's image, -1 where there is none."""
    identities, places = np.unique(data.image_ids, return_index=True)
    owners = np.searchsorted(identities, data.image_of_text).clip(max=len(identities) - 1)
    owners = np.where(identities[owners] == data.image_of_text, owners, -1)
    once = data._replace(image_ids=identities, rows=lambda chosen: data.rows(places[chosen]))
    return once, owners


def _rerank(
    score: Callable,
    owners: Int[np.ndarray, " texts"],
    nearest: tuple[Int[np.ndarray, "images k"] | None, Int[np.ndarray, "texts k"] | None],
    by_vectors: Ranks,
) -> tuple[Ranks, int]:
    """Ranks with the candidates re-ranked, and the number of pairs scored.

    Args:
      score: what to score and the stage's name, as `PairEncoder.scores` takes them.
      owners: row of the image that each text describes, -1 where there is none.
      nearest: candidates of images and of texts; None for all.
      by_vectors: of all images and texts.
    """
    images, texts = map(len, by_vectors)
    kept = _kept(owners, *nearest)
    own = np.full(texts, np.nan, np.float32)

    def right(text_rows: range, image_rows: range) -> tuple[np.ndarray, np.ndarray]:
        chosen = (owners >= image_rows.start) & (owners < image_rows.stop) & (kept[0] | kept[1])
        rows = np.flatnonzero(chosen[text_rows.start : text_rows.stop]) + text_rows.start
        return rows, owners[rows]

    for rows, _, scores in score(right, "right pairs"):
        own[rows] = scores
    of_images = _Direction(nearest[0], owners, kept[0], own, images)
    of_texts = _Direction(nearest[1], np.arange(texts), kept[1], own, texts)

    def wrong(text_rows: range, image_rows: range) -> tuple[np.ndarray, ...]:
        rows, columns = of_texts.pairs(text_rows, image_rows)
        for_texts = rows * np.int64(images) + columns
        columns, rows = of_images.pairs(image_rows, text_rows)
        for_images = rows * np.int64(images) + columns
        keys = np.union1d(for_texts, for_images)  # what both ask for is scored once
        rows, columns = np.divmod(keys, images)
        keys, rows, columns = (x[owners[rows] != columns] for x in (keys, rows, columns))
        return rows, columns, np.isin(keys, for_texts), np.isin(keys, for_images)

    scored = np.sum(kept[0] | kept[1])
    for rows, columns, for_texts, for_images, scores in score(wrong, "candidates"):
        of_texts.count(rows[for_texts], scores[for_texts])
        of_images.count(columns[for_images], scores[for_images])
        scored += len(rows)
    found = Ranks(
        of_images.ranks(by_vectors.image_to_text), of_texts.ranks(by_vectors.text_to_image)
    )
    return found, int(scored)


def _kept(
    owners: Int[np.ndarray, " texts"],
    near_texts: Int[np.ndarray, "images k"] | None,
    near_images: Int[np.ndarray, "texts k"] | None,
) -> tuple[Bool[np.ndarray, " texts"], Bool[np.ndarray, " texts"]]:
    """Whether each text is a candidate of its image, and the image one of the text."""
    of_images = of_texts = owners >= 0
    if near_texts is not None:
        rows, places = np.nonzero(owners[near_texts] == np.arange(len(near_texts))[:, None])
        of_images = np.zeros(len(owners), bool)
        of_images[near_texts[rows, places]] = True
    if near_images is not None:
        of_texts = np.any(near_images == owners[:, None], axis=1)
    return of_images, of_texts


class _Direction:
    """Counts the wrong candidates that come before the best right one of each query.

    Args:
      near: candidates of each query; None for all items.
      query_of_text, kept, own: of each text's right pair its query, whether it is among the
        candidates, and its score.
      queries: how many there are.
    """

    def __init__(
        self,
        near: Int[np.ndarray, "queries k"] | None,
        query_of_text: Int[np.ndarray, " texts"],
        kept: Bool[np.ndarray, " texts"],
        own: Float[np.ndarray, " texts"],
        queries: int,
    ):
        self._near, self._before = near, np.zeros(queries, np.int32)
        self._held, self._best = np.zeros(queries, bool), np.full(queries, np.nan, np.float32)
        self._held[query_of_text[kept]] = True
        np.fmax.at(self._best, query_of_text[kept], own[kept])  # passes over what is no number

    def pairs(self, queries: range, items: range) -> tuple[np.ndarray, np.ndarray]:
        """Queries and items of the candidates in a block, where they can change a rank."""
        asks = ~np.isnan(self._best[queries.start : queries.stop])
        if self._near is None:
            rows = np.flatnonzero(asks) + queries.start
            return np.repeat(rows, len(items)), np.tile(np.array(items), len(rows))
        near = self._near[queries.start : queries.stop]
        inside = (near >= items.start) & (near < items.stop) & asks[:, None]
        rows, places = np.nonzero(inside)
        return rows + queries.start, near[rows, places]

    def count(self, queries: np.ndarray, scores: np.ndarray) -> None:
        """Takes in the scores of wrong candidates, one query for each."""
        before = queries[~(scores < self._best[queries])]
        self._before += np.bincount(before, minlength=len(self._before)).astype(np.int32)

    def ranks(self, by_vectors: Int[np.ndarray, " queries"]) -> Int[np.ndarray, " queries"]:
        """Final ranks; those by the vectors where no candidate is right."""
        matched = np.where(np.isnan(self._best), NEVER, 1 + self._before)
        return np.where(self._held, matched, by_vectors).astype(np.int32)
