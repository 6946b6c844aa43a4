"""What `retrieve` does, in whole matrices: contrastive vectors choose, the matching head ranks.

The evaluation of CCLM and ALBEF (CCLM.md section 5) as it is published: of each query only the k
items with the most similar vectors go through the fusion encoder.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from rc3_jax.evaluation.retrieval import CUTOFFS, ranks_of_right, recalls_of_ranks
from rc3_jax.models.pair import PairModel

UNSCORED = -100.0
"""The score of a pair that the matching head did not see; its logits are well above."""

Matcher = Callable[[Int[np.ndarray, " pairs"], Int[np.ndarray, " pairs"]], Float[np.ndarray, "..."]]
"""Rows of images and rows of texts, pair by pair, to the logits of class 1."""


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
    similarity = np.asarray(similarity)
    images, texts = _most_similar(similarity, k)
    image_to_text = np.full(similarity.shape, UNSCORED, np.float32)
    image_to_text[images, texts] = match(images, texts)
    texts, images = _most_similar(similarity.T, k)
    text_to_image = np.full(similarity.T.shape, UNSCORED, np.float32)
    text_to_image[texts, images] = match(images, texts)
    return Scores(image_to_text, text_to_image)


def _most_similar(
    similarity: Float[np.ndarray, "queries items"], k: int
) -> tuple[Int[np.ndarray, " pairs"], Int[np.ndarray, " pairs"]]:
    """Queries and items of the pairs to score, k for each query."""
    items = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
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


def recalls(
    scores: Float[np.ndarray, "queries items"],
    right: Bool[np.ndarray, "queries items"],
    cutoffs: Sequence[int] = CUTOFFS,
) -> dict[int, float]:
    """Share of queries with a right item among the k of the highest scores.

    Wrong items that tie with the best right one count as ranked before it, and so does what is not
    a number: an item that was not scored is never found.
    """
    return recalls_of_ranks(ranks_of_right(scores, right), cutoffs)


def retrieval_recalls(
    scores: Scores, image_of_text: Int[np.ndarray, " texts"], cutoffs: Sequence[int] = CUTOFFS
) -> dict[str, float]:
    """`TR@1` ... of texts for an image, `IR@1` ... of images for a text, and their means.

    Args:
      image_of_text: row of the image that each text describes.

    Returns:
      With `TR` and `IR` the means over the cutoffs, and `mean` that of both.
    """
    right = np.arange(len(scores.image_to_text))[:, None] == image_of_text
    found = {}
    for name, values, is_right in (
        ("TR", scores.image_to_text, right),
        ("IR", scores.text_to_image, right.T),
    ):
        by_cutoff = recalls(values, is_right, cutoffs)
        found |= {f"{name}@{k}": value for k, value in by_cutoff.items()}
        found[name] = float(np.mean(list(by_cutoff.values())))
    return found | {"mean": (found["TR"] + found["IR"]) / 2}
