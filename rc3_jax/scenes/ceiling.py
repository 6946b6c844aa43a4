"""How well an ideal matcher retrieves: what texts or regions leave open, no model can find.

Scores are expected values with ties broken at random. The ranks of a model count what ties with
the right answer as ranked before it (`evaluation/ranking.py`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from rc3_jax.evaluation.ranking import CUTOFFS
from rc3_jax.scenes.detector import MOST_DISTRACTORS, DetectorSettings, object_feature
from rc3_jax.scenes.scene import (
    COLOURS,
    PLACES,
    SHAPES,
    SIZES,
    Mention,
    Scene,
    SceneObject,
    satisfied,
)
from rc3_jax.scenes.source import SceneRecords
from rc3_jax.scenes.tasks import captions

_KINDS = list(itertools.product(COLOURS, SHAPES, SIZES))
_NOTHING = len(_KINDS)  # stands for an empty quadrant, and for a region around nothing


def recalls(
    scores: Float[np.ndarray, "queries items"],
    right: Bool[np.ndarray, "queries items"],
    cutoffs: Sequence[int] = CUTOFFS,
) -> dict[int, float]:
    """Expected share of queries with a right item among the first k, by k.

    A query without a right item is never answered.
    """
    best = np.where(right, scores, -np.inf).max(axis=1, keepdims=True)
    before = np.sum(scores > best, axis=1)
    tied = np.sum(scores == best, axis=1)
    wrong = tied - np.sum((scores == best) & right, axis=1)
    counts = list(zip(before.tolist(), tied.tolist(), wrong.tolist(), strict=True))

    def found(k: int, before: int, tied: int, wrong: int) -> float:
        left = min(max(k - before, 0), tied)
        return 1 - math.comb(wrong, left) / math.comb(tied, left)

    return {k: float(np.mean([found(k, *count) for count in counts])) for k in cutoffs}


def recalls_both_ways(
    scores: Float[np.ndarray, "texts images"], owners: Int[np.ndarray, " texts"]
) -> dict[str, float]:
    """`IR@1` ... `TR@10` of scores, by the place of each text's image."""
    right = np.asarray(owners)[:, None] == np.arange(scores.shape[1])
    both = {"IR": recalls(scores, right), "TR": recalls(scores.T, right.T)}
    return {f"{name}@{k}": value for name, found in both.items() for k, value in found.items()}


def caption_ceiling(
    texts: Sequence[Sequence[Mention]], owners: Sequence[int], scenes: Sequence[Scene]
) -> dict[str, float]:
    """`IR@1` ... `TR@10` of a matcher that knows which scenes satisfy a text, and nothing else.

    Its score is the chance that a scene is the text's own: those that satisfy it share it evenly.

    Args:
      texts: what each text mentions.
      owners: place of the scene that each text is about.
    """
    true = satisfied(texts, scenes)
    return recalls_both_ways(true / true.sum(axis=1, keepdims=True), np.array(owners))


def miniature_ceilings(
    task: str, count: int, split: str = "test", seed: int = 0
) -> dict[str, dict[str, float]]:
    """`caption_ceiling` of a miniature of retrieval, by language.

    Args:
      count: number of examples of the split.
    """
    shown, owners, said = captions(task, split, count, seed)
    return {code: caption_ceiling(texts, owners, shown) for code, texts in said.items()}


def region_ceiling(records: SceneRecords) -> dict[str, float]:
    """`IR@1` ... `TR@10` of full captions, with regions alone: Bayes' rule for the detector's rates.

    The matcher reads quadrant, colour, shape and size off each region and knows how scenes and
    errors are drawn. It does not use the exact corners of a box. Its score is P(regions | text) /
    P(regions).

    Args:
      records: all of kind "retrieval".
    """
    states = np.full((len(records), len(PLACES)), _NOTHING)
    for row in range(len(records)):
        for item in records.scene(row).objects:
            kind = _KINDS.index((item.colour, item.shape, item.size))
            states[row, PLACES.index(item.place)] = kind
    looks, scores = kind_looks(records.projection), np.empty((len(records), len(records)))
    for column in range(len(records)):
        record = records[column]
        assert record.boxes is not None and record.features is not None
        seen = read_regions(record.boxes, record.features, looks)
        of_text, of_any = np.zeros(len(records)), 0.0
        for weight, chances in _explanations(seen, records.detector):
            of_text += weight * np.prod(chances[np.arange(len(PLACES)), states], axis=1)
            of_any += weight * _of_any_scene(chances)
        scores[:, column] = of_text / of_any
    return recalls_both_ways(scores, np.arange(len(records)))


def kind_looks(projection: Mapping[str, np.ndarray]) -> Float[np.ndarray, "kinds size"]:
    """The features of each of _KINDS, without noise, and of nothing."""
    objects = [SceneObject(s, c, z, PLACES[0], (0.0, 0.0, 1.0, 1.0)) for c, s, z in _KINDS]
    return np.array([*(object_feature(o, projection) for o in objects), projection["background"]])


def read_regions(
    boxes: Float[np.ndarray, "regions 4"],
    features: Float[np.ndarray, "regions size"],
    looks: Float[np.ndarray, "kinds size"],
) -> list[tuple[int, int]]:
    """Numbers of the quadrant of each region in PLACES, and of what its features are nearest to.

    Args:
      looks: as `kind_looks` returns them.
    """
    nearest = np.square(features[:, None] - looks).sum(axis=2).argmin(axis=1)
    right, down = boxes[:, [0, 2]].mean(axis=1) > 0.5, boxes[:, [1, 3]].mean(axis=1) > 0.5
    return list(zip((right + 2 * down).tolist(), nearest.tolist(), strict=True))


def _explanations(
    seen: Sequence[tuple[int, int]], detector: DetectorSettings
) -> Iterator[tuple[float, Float[np.ndarray, "places states"]]]:
    """Every way in which regions can come about, by which of them are lookalikes.

    Args:
      seen: quadrant and number in _KINDS of each region.

    Yields:
      Probability of the distractors; for each quadrant, and each kind of object or nothing in it,
      probability of the other regions.
    """
    shown = [region for region in seen if region[1] != _NOTHING]
    backgrounds = len(seen) - len(shown)
    as_seen = _confusions(detector)
    one = (1 - detector.missed) * (1 - detector.doubled)
    two = (1 - detector.missed) * detector.doubled
    for count in range(MOST_DISTRACTORS - backgrounds + 1):
        distractors = count + backgrounds
        weight = _distractors(distractors, found=len(shown) > count)
        weight *= math.factorial(distractors) * (1 - detector.lookalikes) ** backgrounds
        weight *= (detector.lookalikes / (len(PLACES) * len(_KINDS))) ** count
        for chosen in itertools.combinations(range(len(shown)), count):
            chances = np.zeros((len(PLACES), len(_KINDS) + 1))
            for place in range(len(PLACES)):
                rest = [kind for i, (q, kind) in enumerate(shown) if q == place and i not in chosen]
                if not rest:
                    chances[place] = detector.missed
                    chances[place, _NOTHING] = 1.0
                elif len(rest) == 1:
                    chances[place, :_NOTHING] = one * as_seen[:, rest[0]]
                elif len(rest) == 2:
                    chances[place, :_NOTHING] = 2 * two * np.prod(as_seen[:, rest], axis=1)
            yield weight, chances


def _distractors(count: int, found: bool) -> float:
    """Probability of a number of regions around nothing; there is one at least if nothing is found."""
    if not found:
        return {0: 0, 1: 2}.get(count, 1) / (MOST_DISTRACTORS + 1)
    return 1 / (MOST_DISTRACTORS + 1)


def _confusions(detector: DetectorSettings) -> Float[np.ndarray, "kinds kinds"]:
    """Probability that a region of an object of one kind looks like another."""
    rates = detector.colour_confused, detector.shape_confused
    colour, shape = (
        np.where(np.eye(len(values)), 1 - rate, rate / (len(values) - 1))
        for values, rate in zip((COLOURS, SHAPES), rates, strict=True)
    )
    return np.kron(np.kron(colour, shape), np.eye(len(SIZES)))


def _of_any_scene(chances: Float[np.ndarray, "places states"]) -> float:
    """The probability of regions over all scenes: two to four quadrants have an object."""
    filled, empty = chances[:, :_NOTHING].mean(axis=1), chances[:, _NOTHING]
    total, numbers = 0.0, range(2, len(PLACES) + 1)
    for count in numbers:
        for chosen in itertools.combinations(range(len(PLACES)), count):
            is_filled = np.isin(np.arange(len(PLACES)), chosen)
            share = len(numbers) * math.comb(len(PLACES), count)
            total += np.prod(np.where(is_filled, filled, empty)) / share
    return float(total)
