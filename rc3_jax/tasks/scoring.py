"""Scores of classes, and statistics over languages and seeds (NumPy).

As in IGLUE (Bugliarello et al. 2022), rows without a right class stay in the denominator. Retrieval
is scored by `rank_recalls`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int

NO_CLASS = -1
"""The prediction where all scores are NaN; it is never right."""


def best_classes(scores: Float[np.ndarray, "rows classes"]) -> Int[np.ndarray, " rows"]:
    """The class with the highest score, the first of equals; NaN never wins."""
    scores = np.asarray(scores)
    known = ~np.isnan(scores)
    best = np.argmax(np.where(known, scores, -np.inf), axis=1)
    # Where all numbers are -inf, the first class may be NaN.
    best = np.where(known[np.arange(len(best)), best], best, np.argmax(known, axis=1))
    return np.where(known.any(axis=1), best, NO_CLASS)


def accuracy(predictions: Sequence[int] | np.ndarray, labels: Sequence[int | None]) -> float:
    """Share of rows whose predicted class is the label; None and negative labels are no class.

    Raises:
      ValueError: there are no rows, or not one prediction for each label.
    """
    return float(np.mean(_right(predictions, labels)))


def expected_calibration_error(
    probabilities: Float[np.ndarray, "rows classes"],
    labels: Sequence[int | None],
    bins: int = 15,
) -> float:
    """Mean distance between confidence and accuracy over bins of equal width (Guo et al. 2017).

    Confidence is the probability of the predicted class. Rows without a right class count as wrong.

    Raises:
      ValueError: a probability is outside [0, 1] or NaN.
    """
    probabilities = np.asarray(probabilities, np.float64)
    if not np.all((probabilities >= 0) & (probabilities <= 1 + 1e-6)):
        raise ValueError("probabilities must be numbers in [0, 1]; apply softmax or sigmoid first")
    right = _right(best_classes(probabilities), labels)
    confidence = probabilities.max(axis=1)
    # A bin holds its upper edge; the first one zero too.
    places = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gaps = np.bincount(places, weights=confidence - right, minlength=bins)
    return float(np.abs(gaps).sum() / len(right))


def rank_variance(ranks: Mapping[str, Mapping[str, float]]) -> float | None:
    """Variance across languages of the rank of the same image, mean over images (CCRK, Nie et al.,
    KDD 2024).

    Args:
      ranks: language → image → its rank. Images that a language lacks take no part.

    Returns:
      None for fewer than two languages, or without an image that all of them have.
    """
    shared = sorted(set.intersection(*(set(by_image) for by_image in ranks.values())))
    if len(ranks) < 2 or not shared:
        return None
    table = np.array([[by_image[image] for image in shared] for by_image in ranks.values()])
    return float(np.mean(np.var(table, axis=0)))


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """The mean, and its standard error, NaN for one value."""
    error = np.std(values, ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return float(np.mean(values)), float(error)


def _right(predictions: Sequence[int] | np.ndarray, labels: Sequence[int | None]) -> np.ndarray:
    """Whether each prediction is right, bool `[rows]`."""
    if len(predictions) != len(labels) or not labels:
        raise ValueError(f"{len(predictions)} predictions for {len(labels)} labels")
    known = np.array([NO_CLASS if label is None else label for label in labels])
    return (np.asarray(predictions) == known) & (known >= 0)
