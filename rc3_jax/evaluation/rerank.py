"""Retrieval in two stages: vectors choose candidates, the matching head re-ranks them.

The evaluation of CCLM and ALBEF (CCLM.md section 5). Memory grows with queries times candidates, by
some 50 bytes a candidate.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Int, Integer

from rc3_jax.evaluation.pair_encoder import PairEncoder, RetrievalData
from rc3_jax.evaluation.ranking import Ranks, nearest, ranks_both_ways, ranks_of_right


class Retrieved(NamedTuple):
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


def retrieve(encoder: PairEncoder, params, data: RetrievalData, k: int | None = 128) -> Retrieved:
    """Ranks all texts for each image that has one, and all images for each text.

    After re-ranking the k candidates of a query stand first, by their matching scores, and behind
    them the other items, as their vectors order them. Ties and NaN count as in `ranks_of_right`.
    Where no right item is among the candidates, the rank is that by the vectors: such queries'
    candidates are not scored.

    Args:
      encoder: one encoder serves any number of searches and parameters.
      k: of the texts for an image and of the images for a text; 0 leaves out the second stage,
        None scores all pairs, the protocol of cross-encoders (IGLUE).

    Raises:
      ValueError: if there are no texts or no images, or k is negative.
    """
    if k is not None and k < 0:
        raise ValueError(f"{k=} must not be negative")
    if not len(data.ids) or not len(data.image_ids):
        raise ValueError(f"{len(data.ids)} texts and {len(data.image_ids)} images: none to rank")
    data, owners = _unique_images(data)
    params = encoder.place(params)
    texts = encoder.text_vectors(params, data.ids)
    images = encoder.image_vectors(params, len(data.image_ids), data.rows)
    by_vectors = by_matching = ranks_both_ways(images, texts, owners)
    scored = 0
    if k != 0:
        k = max(len(texts), len(images)) if k is None else k
        candidates = (
            nearest(images, texts, k) * np.int64(len(images)) + np.arange(len(images))[:, None],
            np.arange(len(texts))[:, None] * np.int64(len(images)) + nearest(texts, images, k),
        )
        by_matching, scored = _rerank(encoder, params, data, owners, candidates, by_vectors)
    described = np.unique(owners[owners >= 0])
    by_vectors, by_matching = (
        found._replace(image_to_text=found.image_to_text[described])
        for found in (by_vectors, by_matching)
    )
    return Retrieved(data.image_ids[described], by_vectors, by_matching, scored)


def _unique_images(data: RetrievalData) -> tuple[RetrievalData, Int[np.ndarray, " texts"]]:
    """The data with each image once, and the row of each text's image, -1 where there is none."""
    identities, places = np.unique(data.image_ids, return_index=True)
    owners = np.searchsorted(identities, data.image_of_text).clip(max=len(identities) - 1)
    owners = np.where(identities[owners] == data.image_of_text, owners, -1)
    once = data._replace(image_ids=identities, rows=lambda chosen: data.rows(places[chosen]))
    return once, owners


def _rerank(
    encoder: PairEncoder,
    params,
    data: RetrievalData,
    owners: Int[np.ndarray, " texts"],
    candidates: tuple[Int[np.ndarray, "images k"], Int[np.ndarray, "texts k"]],
    by_vectors: Ranks,
) -> tuple[Ranks, int]:
    """Ranks with the candidates re-ranked, and the number of pairs scored.

    Args:
      candidates: of images and of texts, each pair as the number `text * images + image`.
    """
    count = len(data.image_ids)
    right = [owners[keys // count] == keys % count for keys in candidates]
    asked = [keys[one.any(axis=1)] for keys, one in zip(candidates, right, strict=True)]
    pairs = np.unique(np.concatenate([keys.ravel() for keys in asked]))
    scores = encoder.scores(params, data, *np.divmod(pairs, count))  # what both ask for, once
    reranked = []
    for keys, one, before in zip(asked, right, by_vectors, strict=True):
        after, rows = before.copy(), one.any(axis=1)
        after[rows] = ranks_of_right(scores[np.searchsorted(pairs, keys)], one[rows])
        reranked.append(after)
    return Ranks(*reranked), len(pairs)
