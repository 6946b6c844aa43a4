"""Scenes of coloured shapes: their objects, what a text can say of them, and their regions."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

SHAPES = ("circle", "square", "triangle", "star", "cross")
COLOURS = ("red", "green", "blue", "yellow", "black", "orange")
SIZES = ("small", "large")
PLACES = ("top left", "top right", "bottom left", "bottom right")
ATTRIBUTES = {"shape": SHAPES, "colour": COLOURS, "size": SIZES, "place": PLACES}

Facts = Mapping[int, Collection[str]]
"""What a text says: position of an object in its scene → names of the attributes it is given."""
Box = tuple[float, float, float, float]
"""x1, y1, x2, y2 as fractions of width and height."""

_SIDES = {"small": (0.17, 0.22), "large": (0.36, 0.42)}  # of a canvas whose side is 1
_MARGIN = 1 / 64  # between an object and the border of its quadrant
_BOX_JITTER = 0.08  # of the box's own sides
_DISTRACTORS = 2  # at most
_FEATURE_NOISE = 0.15  # its standard deviation; that of the features themselves is 1


class Mention(NamedTuple):
    """What a text says about one object; None is what it leaves out."""

    shape: str | None = None
    colour: str | None = None
    size: str | None = None
    place: str | None = None

    def named(self) -> dict[str, Any]:
        """The attributes that the mention names, and their values."""
        return {name: value for name, value in self._asdict().items() if value}

    def fits(self, item: SceneObject) -> bool:
        """Whether all that the mention names is true of an object."""
        return all(getattr(item, name) == value for name, value in self.named().items())


@dataclasses.dataclass(frozen=True)
class SceneObject:
    """One drawn shape and its tight box."""

    shape: str
    colour: str
    size: str
    place: str
    box: Box

    def mention(self, attributes: Iterable[str]) -> Mention:
        """A mention of this object that names the given attributes."""
        return Mention(**{name: getattr(self, name) for name in attributes})


@dataclasses.dataclass(frozen=True)
class Scene:
    """Two to four objects in distinct quadrants.

    Attributes:
      objects: those behind the screen as well.
      background: RGB of 0 to 255.
      screen: the place of the quadrant that a grey screen hides, or None.
    """

    objects: tuple[SceneObject, ...]
    background: tuple[int, int, int]
    screen: str | None = None

    def visible(self) -> tuple[SceneObject, ...]:
        """The objects that are not behind the screen."""
        return tuple(item for item in self.objects if item.place != self.screen)

    def facts(self) -> Facts:
        """All that a caption can say about the scene."""
        return dict.fromkeys(range(len(self.objects)), ATTRIBUTES.keys())

    def mentions(self, facts: Facts) -> list[Mention]:
        """One mention for each object that the facts are about."""
        return [self.objects[i].mention(names) for i, names in facts.items()]


def random_stream(seed: int, *key: int) -> np.random.Generator:
    """Random numbers that no other seed or key has."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=key)))


def random_scene(rng: np.random.Generator) -> Scene:
    """Draws the objects' attributes uniformly, and their sides and positions with jitter."""
    places = rng.permutation(PLACES)[: rng.integers(2, 5)]
    objects = []
    for place in places.tolist():
        shape, colour, size = (str(rng.choice(values)) for values in (SHAPES, COLOURS, SIZES))
        side = rng.uniform(*_SIDES[size])
        corner = rng.uniform(_MARGIN, 0.5 - _MARGIN - side, size=2)
        corner += 0.5 * np.array(["right" in place, "bottom" in place])
        x1, y1, x2, y2 = np.concatenate([corner, corner + side]).tolist()
        objects.append(SceneObject(shape, colour, size, place, (x1, y1, x2, y2)))
    red, green, blue = rng.integers(222, 256, size=3).tolist()
    return Scene(tuple(objects), (red, green, blue))


def random_facts(rng: np.random.Generator, scene: Scene, mentioned: int, keep: float) -> Facts:
    """Chooses what to say: `mentioned` objects, each attribute kept with probability `keep`.

    At least one attribute of a mentioned object is kept. An object whose mention would fit another
    mentioned object as well is given its place, so that no caption reads "a star and a red star".
    """
    names = tuple(ATTRIBUTES)
    kept: dict[int, set[str]] = {}
    for i in sorted(rng.permutation(len(scene.objects))[:mentioned].tolist()):
        kept[i] = set(random_names(rng, names, keep))
    values = {i: {getattr(scene.objects[i], name) for name in kept[i]} for i in kept}
    for i, j in itertools.permutations(kept, 2):
        if values[i] <= values[j]:
            kept[i].add("place")
    return kept


def random_names(rng: np.random.Generator, names: Sequence[str], keep: float) -> list[str]:
    """Keeps each name with probability `keep`, and one at least; in the order given."""
    lots = rng.random(len(names))
    kept = (lots < keep) | (lots == lots.min())
    return [name for name, is_kept in zip(names, kept, strict=True) if is_kept]


def relevance(facts: Facts, others: Facts) -> float:
    """Jaccard overlap of the attributes that two texts give to objects, in [0, 1]."""
    one, other = ({(i, name) for i in said for name in said[i]} for said in (facts, others))
    return len(one & other) / len(one | other)


def feature_projection(feature_size: int) -> dict[str, np.ndarray]:
    """Maps each colour, shape, size and "background" to a standard normal float32 `[feature_size]`.

    It stands in for a trained detector, so it is the same whatever a run's seed.
    """
    names = (*COLOURS, *SHAPES, *SIZES, "background")
    rng = np.random.Generator(np.random.Philox(0))
    vectors = rng.standard_normal((len(names), feature_size)).astype(np.float32)
    return dict(zip(names, vectors, strict=True))


def random_regions(
    rng: np.random.Generator, scene: Scene, projection: Mapping[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """What a detector might find: every visible object and up to two distractors, shuffled.

    Args:
      projection: as `feature_projection` returns it.

    Returns:
      Jittered boxes, float32 `[regions, 4]`, x1, y1, x2, y2 as fractions of width and height,
      and their features, float32 `[regions, feature_size]`.
    """
    boxes, features = [], []
    for item in scene.visible():
        box = np.array(item.box)
        sides = np.tile(box[2:] - box[:2], 2)
        boxes.append(box + sides * rng.uniform(-_BOX_JITTER, _BOX_JITTER, size=4))
        vectors = projection[item.colour], projection[item.shape], projection[item.size]
        features.append(sum(vectors) / np.sqrt(3))
    for _ in range(rng.integers(_DISTRACTORS + 1)):
        sides = rng.uniform(0.15, 0.45, size=2)
        corner = rng.uniform(0, 1 - sides)
        boxes.append(np.concatenate([corner, corner + sides]))
        features.append(projection["background"])
    order = rng.permutation(len(boxes))
    noisy = np.array(features) + _FEATURE_NOISE * rng.standard_normal(np.shape(features))
    return np.clip(boxes, 0, 1)[order].astype(np.float32), noisy[order].astype(np.float32)
