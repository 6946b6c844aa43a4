"""Regions of a scene as a detector gives them: boxes and features, with a detector's errors."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from pydantic import Field

from rc3_jax.scenes.scene import (
    COLOURS,
    PLACES,
    SHAPES,
    SIZES,
    Box,
    Scene,
    SceneObject,
    one_of,
    random_object,
)
from rc3_jax.settings import Settings

MOST_DISTRACTORS = 2
_BOX_JITTER = 0.08  # of the box's own sides
_FEATURE_NOISE = 0.15  # its standard deviation; that of the features themselves is 1


class DetectorSettings(Settings):
    """Errors of the detector of generated scenes, as rates; 0 turns each off.

    The defaults are about half of what bottom-up attention (Anderson et al. 2018) shows on
    photographs, so that a model of some minutes still learns to read regions. No box of it fits
    about 13 % of Flickr30k's phrases (upper bound of BAN, Kim et al. 2018). On ten photographs of
    COCO 35 % of its 36 boxes overlap another one by more than half, and its ten surest classes of a
    photograph have a mean probability of 0.69.
    """

    missed: float = Field(0.05, ge=0, le=1)
    """Share of the objects that have no region."""
    doubled: float = Field(0.1, ge=0, le=1)
    """Share of the objects found that have two regions."""
    colour_confused: float = Field(0.05, ge=0, le=1)
    """Share of the objects' regions whose features show another colour."""
    shape_confused: float = Field(0.05, ge=0, le=1)
    """Share of the objects' regions whose features show another shape."""
    lookalikes: float = Field(0.25, ge=0, le=1)
    """Share of the regions around nothing that look like an object."""


DETECTOR = DetectorSettings()


def feature_projection(feature_size: int) -> dict[str, np.ndarray]:
    """Maps each colour, shape, size and "background" to a standard normal float32 `[feature_size]`.

    It stands in for a trained detector, so it is the same whatever a run's seed.
    """
    names = (*COLOURS, *SHAPES, *SIZES, "background")
    rng = np.random.Generator(np.random.Philox(0))
    vectors = rng.standard_normal((len(names), feature_size)).astype(np.float32)
    return dict(zip(names, vectors, strict=True))


def object_feature(item: SceneObject, projection: Mapping[str, np.ndarray]) -> np.ndarray:
    """What a detector's features show of an object, float32 `[feature_size]`, without noise."""
    seen = (name for name in ("colour", "shape", "size") if name != item.hidden)
    return sum(projection[getattr(item, name)] for name in seen) / np.sqrt(3)


def random_regions(
    rng: np.random.Generator,
    errors: np.random.Generator,
    scene: Scene,
    projection: Mapping[str, np.ndarray],
    detector: DetectorSettings,
) -> tuple[np.ndarray, np.ndarray]:
    """What a detector finds: the objects, and up to two boxes around nothing; at least one region.

    Args:
      rng: draws what has nothing to do with errors; another stream than `errors`, so that the
        regions of a detector without errors do not depend on it.
      projection: as `feature_projection` returns it.

    Returns:
      Jittered boxes, float32 `[regions, 4]`, x1, y1, x2, y2 as fractions of width and height,
      and their features, float32 `[regions, feature_size]`, shuffled.
    """
    boxes, features = [], []
    for item in _found(errors, scene, detector):
        boxes.append(_jittered(rng, item.box))
        features.append(object_feature(item, projection))
    distractors = int(rng.integers(MOST_DISTRACTORS + 1))
    for _ in range(distractors if boxes else max(distractors, 1)):
        sides = rng.uniform(0.15, 0.45, size=2)
        corner = rng.uniform(0, 1 - sides)
        boxes.append(np.concatenate([corner, corner + sides]))
        features.append(projection["background"])
        if errors.random() < detector.lookalikes:
            item = random_object(errors, one_of(errors, PLACES))
            boxes[-1] = _jittered(errors, item.box)
            features[-1] = object_feature(item, projection)
    order = rng.permutation(len(boxes))
    noisy = np.array(features) + _FEATURE_NOISE * rng.standard_normal(np.shape(features))
    return np.clip(boxes, 0, 1)[order].astype(np.float32), noisy[order].astype(np.float32)


def _found(
    errors: np.random.Generator, scene: Scene, detector: DetectorSettings
) -> list[SceneObject]:
    """The object that each region of an object shows."""
    found = []
    for item in scene.objects:
        missed, doubled = errors.random(2) < (detector.missed, detector.doubled)
        for _ in range(0 if missed else 1 + doubled):
            shown = item
            if errors.random() < detector.colour_confused:
                shown = dataclasses.replace(shown, colour=_other(errors, COLOURS, item.colour))
            if errors.random() < detector.shape_confused:
                shown = dataclasses.replace(shown, shape=_other(errors, SHAPES, item.shape))
            found.append(shown)
    return found


def _other(rng: np.random.Generator, values: Sequence[str], value: str) -> str:
    return one_of(rng, [other for other in values if other != value])


def _jittered(rng: np.random.Generator, box: Box) -> np.ndarray:
    x1, y1, x2, y2 = box
    sides = np.array((x2 - x1, y2 - y1) * 2)
    return box + sides * rng.uniform(-_BOX_JITTER, _BOX_JITTER, size=4)
