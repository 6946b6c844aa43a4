"""Scores of downstream tasks, and what sums them up over languages and seeds (NumPy).

What counts is as in IGLUE (Bugliarello et al. 2022): rows without a right class stay in the
denominator, and averages over languages leave English out. Retrieval is scored by `rank_recalls`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int

NO_CLASS = -1
"""The prediction where no score is a number. It is never right."""


def best_classes(scores: Float[np.ndarray, "rows classes"]) -> Int[np.ndarray, " rows"]:
    """The class with the highest score, the first of equals; what is not a number never wins."""
    scores = np.asarray(scores)
    known = ~np.isnan(scores)
    best = np.argmax(np.where(known, scores, -np.inf), axis=1)
    # Where all numbers are -inf, the first class may be one that is not a number.
    best = np.where(known[np.arange(len(best)), best], best, np.argmax(known, axis=1))
    return np.where(known.any(axis=1), best, NO_CLASS)


def accuracy(predictions: Sequence[int] | np.ndarray, labels: Sequence[int | None]) -> float:
    """Share of rows whose predicted class is the label; None and below 0 are labels of no class.

    Raises:
      ValueError: none, or not one prediction for each label.
    """
    return float(np.mean(_right(predictions, labels)))


def expected_calibration_error(
    probabilities: Float[np.ndarray, "rows classes"],
    labels: Sequence[int | None],
    bins: int = 15,
) -> float:
    """Mean distance of confidence and accuracy over bins of equal width (Guo et al. 2017).

    Confidence is the probability of the predicted class. Rows without a right class count as
    wrong, as in `accuracy`: to be sure of one of them is an error of calibration.

    Raises:
      ValueError: not probabilities: outside of [0, 1], or not a number.
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


def rank_variance(ranks: Mapping[str, Mapping[str, float]]) -> float:
    """Variance across languages of the rank of the same image, mean over images.

    How unequally languages find an image: the mean rank variance of CCRK (Nie et al., KDD 2024),
    the mean squared distance from an image's mean rank.

    Args:
      ranks: language → image → its rank. Images that a language lacks take no part.

    Raises:
      ValueError: fewer than two languages, or no image that all of them have.
    """
    if len(ranks) < 2:
        raise ValueError("ranks of at least two languages are needed")
    shared = sorted(set.intersection(*(set(by_image) for by_image in ranks.values())))
    if not shared:
        raise ValueError(f"no image has a rank in all of {', '.join(ranks)}")
    table = np.array([[by_image[image] for image in shared] for by_image in ranks.values()])
    return float(np.mean(np.var(table, axis=0)))


def average_without_english(scores: Mapping[str, float], english: str = "en") -> float:
    """Mean over the other languages.

    Raises:
      ValueError: if there is none.
    """
    others = [score for language, score in scores.items() if language != english]
    if not others:
        raise ValueError("no language but English to average over")
    return float(np.mean(others))


def zero_shot_gap(scores: Mapping[str, float], english: str = "en") -> dict[str, float]:
    """Language → by how much its score is below the English one.

    Raises:
      ValueError: if there is no score for English.
    """
    if english not in scores:
        raise ValueError(f"no score for {english!r}, only for {', '.join(scores)}")
    return {
        language: float(scores[english] - score)
        for language, score in scores.items()
        if language != english
    }


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean over seeds and its standard error, which of one value is not a number.

    Raises:
      ValueError: if there is no value.
    """
    if not len(values):
        raise ValueError("no value to average over")
    error = np.std(values, ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return float(np.mean(values)), float(error)


def _right(predictions, labels: Sequence[int | None]) -> np.ndarray:
    """Bool `[rows]`."""
    predictions = np.asarray(predictions)
    _check_count(len(predictions), len(labels))
    known = np.array([NO_CLASS if label is None else label for label in labels])
    return (predictions == known) & (known >= 0)


def _check_count(predictions: int, labels: int) -> None:
    if predictions != labels or not labels:
        raise ValueError(f"{predictions} predictions for {labels} labels")
