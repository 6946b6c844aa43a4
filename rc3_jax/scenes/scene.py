"""Scenes of coloured shapes: their objects, and what a text can say of them."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Bool

SHAPES = ("circle", "square", "triangle", "star", "cross")
COLOURS = ("red", "green", "blue", "yellow", "black", "orange")
SIZES = ("small", "large")
PLACES = ("top left", "top right", "bottom left", "bottom right")
ATTRIBUTES = {"shape": SHAPES, "colour": COLOURS, "size": SIZES, "place": PLACES}

T = TypeVar("T")
Facts = Mapping[int, Collection[str]]
"""What a text says: position of an object in its scene → names of the attributes it is given."""
Box = tuple[float, float, float, float]
"""x1, y1, x2, y2 as fractions of width and height."""

_SIDES = {"small": (0.17, 0.22), "large": (0.36, 0.42)}  # of a canvas whose side is 1
_MARGIN = 1 / 64  # between an object and the border of its quadrant


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
        named = zip(self._fields, self, strict=True)
        return all(getattr(item, name) == value for name, value in named if value)


@dataclasses.dataclass(frozen=True)
class SceneObject:
    """One drawn shape and its tight box.

    Attributes:
      hidden: "colour" or "shape" where a pane before the object hides it, else None.
    """

    shape: str
    colour: str
    size: str
    place: str
    box: Box
    hidden: str | None = None

    def mention(self, attributes: Iterable[str]) -> Mention:
        """A mention of this object that names the given attributes."""
        return Mention(**{name: getattr(self, name) for name in attributes})


@dataclasses.dataclass(frozen=True)
class Scene:
    """Two to four objects in distinct quadrants.

    Attributes:
      background: RGB of 0 to 255.
    """

    objects: tuple[SceneObject, ...]
    background: tuple[int, int, int]

    def facts(self) -> Facts:
        """All that a caption can say about the scene."""
        return dict.fromkeys(range(len(self.objects)), ATTRIBUTES.keys())

    def mentions(self, facts: Facts) -> list[Mention]:
        """One mention for each object that the facts are about."""
        return [self.objects[i].mention(names) for i, names in facts.items()]

    def satisfies(self, mentions: Sequence[Mention]) -> bool:
        """Whether a text of these mentions is true: each fits an object of its own."""
        fitting = []
        for mention in mentions:
            fitting.append([i for i, item in enumerate(self.objects) if mention.fits(item)])
            if not fitting[-1]:
                return False
        return any(len(set(chosen)) == len(chosen) for chosen in itertools.product(*fitting))


def satisfied(
    texts: Sequence[Sequence[Mention]], scenes: Sequence[Scene]
) -> Bool[np.ndarray, "texts scenes"]:
    """Which scenes make which texts true."""
    return np.array([[scene.satisfies(mentions) for scene in scenes] for mentions in texts])


def random_stream(seed: int, *key: int) -> np.random.Generator:
    """Random numbers that no other seed or key has."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=key)))


def one_of(rng: np.random.Generator, values: Sequence[T]) -> T:
    """One of the values; `rng.choice` draws the same and takes six times as long."""
    return values[int(rng.integers(len(values)))]


def random_scene(rng: np.random.Generator) -> Scene:
    """Draws the objects' attributes uniformly, and their sides and positions with jitter."""
    places = rng.permutation(PLACES)[: rng.integers(2, 5)]
    objects = tuple(random_object(rng, place) for place in places.tolist())
    red, green, blue = rng.integers(222, 256, size=3).tolist()
    return Scene(objects, (red, green, blue))


def random_object(rng: np.random.Generator, place: str) -> SceneObject:
    """Draws what stands in a quadrant."""
    shape, colour, size = (one_of(rng, values) for values in (SHAPES, COLOURS, SIZES))
    side = rng.uniform(*_SIDES[size])
    corner = rng.uniform(_MARGIN, 0.5 - _MARGIN - side, size=2)
    corner += 0.5 * np.array(["right" in place, "bottom" in place])
    x1, y1, x2, y2 = np.concatenate([corner, corner + side]).tolist()
    return SceneObject(shape, colour, size, place, (x1, y1, x2, y2))


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
