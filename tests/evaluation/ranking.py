"""References for rankings: exact similarities, sorting, and two stages in whole matrices.

`rescore` is the evaluation of CCLM and ALBEF (CCLM.md section 5) as it is published: of each query
only the k items with the most similar vectors go through the fusion encoder.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from rc3_jax.evaluation.ranking import CUTOFFS, NEVER, ranks_of_right
from rc3_jax.models.base import PairModel

UNSCORED = -100.0
"""The score of a pair that the matching head did not see; its logits are well above."""

Matcher = Callable[[Int[np.ndarray, " pairs"], Int[np.ndarray, " pairs"]], Float[np.ndarray, "..."]]
"""Rows of images and rows of texts, pair by pair, to the logits of class 1."""


def exact_scores(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Similarities of rounded vectors in whole numbers, which add up exactly."""
    left, right = (np.round(np.nan_to_num(v).astype(np.float64) * 2**26) for v in (x, y))
    scores = (left.astype(np.int64) @ right.astype(np.int64).T).astype(np.float64)
    return np.where(np.isnan(x).any(axis=1)[:, None] | np.isnan(y).any(axis=1), np.nan, scores)


def sorted_ranks(scores, query_groups, item_groups) -> list[int]:
    """Puts all items in order, one query after the other."""
    found = []
    for row, group in zip(scores, query_groups, strict=True):
        right = [s for s, g in zip(row, item_groups, strict=True) if g == group and not np.isnan(s)]
        wrong = [s for s, g in zip(row, item_groups, strict=True) if g != group]
        before = [s for s in wrong if np.isnan(s) or (right and s >= max(right))]
        found.append(1 + len(before) if right else NEVER)
    return found


class Scores(NamedTuple):
    """Both directions; higher is better."""

    image_to_text: Float[np.ndarray, "images texts"]
    text_to_image: Float[np.ndarray, "texts images"]


def both_ways(similarity: Float[np.ndarray, "images texts"]) -> Scores:
    """The scores of the first stage alone."""
    similarity = np.asarray(similarity)
    return Scores(similarity, similarity.T)


def rescore(similarity: Float[np.ndarray, "images texts"], k: int, match: Matcher) -> Scores:
    """Matching logits of each query's k most similar items, `UNSCORED` for all others.

    Args:
      similarity: of the vectors; of equal ones the earlier item counts as more similar.
      k: of the texts for an image and of the images for a text; all where there are fewer.
    """
    found = Scores(*(np.full(part.shape, UNSCORED, np.float32) for part in both_ways(similarity)))
    images, texts = _most_similar(similarity, k)
    found.image_to_text[images, texts] = match(images, texts)
    texts, images = _most_similar(np.transpose(similarity), k)
    found.text_to_image[texts, images] = match(images, texts)
    return found


def _most_similar(similarity, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Queries and items of the pairs to score, k for each query."""
    items = np.argsort(-np.asarray(similarity), axis=1, kind="stable")[:, :k]
    return np.repeat(np.arange(len(items)), items.shape[1]), items.ravel()


def matcher(
    model: PairModel,
    params,
    images: tuple[Float[Array, "images tokens width"], Bool[Array, "images tokens"]],
    texts: tuple[Float[Array, "texts length width"], Bool[Array, "texts length"]],
    batch_size: int = 256,
) -> Matcher:
    """Scores pairs of encoded images and texts, `batch_size` at a time.

    Args:
      images: tokens and mask of `encode_visual`.
      texts: states of `encode_text`, and which of them are no padding.
    """

    def scores(model, images, texts, image_rows, text_rows):
        tokens, mask = jax.tree.map(lambda x: x[image_rows], images)
        states, known = jax.tree.map(lambda x: x[text_rows], texts)
        return model.match(model.fusion(states, known, tokens, mask))[:, 1]

    @jax.jit
    def call(params, *arguments):
        return model.apply({"params": params}, *arguments, method=scores)

    def match(image_rows: np.ndarray, text_rows: np.ndarray) -> np.ndarray:
        padding = (0, -len(image_rows) % batch_size)
        chunks = [np.pad(rows, padding).reshape(-1, batch_size) for rows in (image_rows, text_rows)]
        found = [call(params, images, texts, *rows) for rows in zip(*chunks, strict=True)]
        return np.concatenate(found)[: len(image_rows)]

    return match


def retrieval_recalls(scores: Scores, image_of_text: Int[np.ndarray, " texts"]) -> dict[str, float]:
    """`TR@1` ... of texts for an image, `IR@1` ... of images for a text, and their means.

    Args:
      image_of_text: row of the image that each text describes.

    Returns:
      With `TR` and `IR` the means over the cutoffs, and `mean` that of both.
    """
    right = np.arange(len(scores.image_to_text))[:, None] == image_of_text
    found = {}
    for name, values, is_right in zip(("TR", "IR"), scores, (right, right.T), strict=True):
        places = ranks_of_right(values, is_right)
        by_cutoff = {f"{name}@{k}": float(np.mean(places <= k)) for k in CUTOFFS}
        found |= by_cutoff | {name: float(np.mean(list(by_cutoff.values())))}
    return found | {"mean": (found["TR"] + found["IR"]) / 2}
