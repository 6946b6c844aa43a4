"""Generated multilingual scenes: coloured shapes on a light ground, with captions and regions.

Everything is a function of (seed, kind, split, index), so a source needs no files, takes no
memory and gives the same records in any order, on any machine.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import operator
import zlib
from collections.abc import Mapping, Sequence
from typing import get_args

import numpy as np

from rc3_jax.data import grammar
from rc3_jax.data.record import Element, Kind, Record
from rc3_jax.data.shapes import paint
from rc3_jax.data.text import row_languages

Fact = tuple[int, str]
"""Position of an object in its scene, and the name of one of its attributes."""

KINDS = get_args(Kind)
CANVAS_SIZE = 64  # pixels

_SIDES = {"small": (0.17, 0.22), "large": (0.36, 0.42)}  # of a canvas whose side is 1
_MARGIN = 1 / 64  # between an object and the border of its quadrant
_KEPT_IN_STRICT_TEXT = 0.85
_KEPT_IN_WEAK_TEXT = 0.7
_BOX_JITTER = 0.08  # of the box's own sides
_DISTRACTORS = 2  # at most
_SCENE, _FACTS, _FRAMES, _REGIONS, _ELEMENTS = range(5)  # independent random streams of one record
_SEEN_IN_CROPS = ("shape", "colour")  # attributes that stay true whatever a crop keeps


@dataclasses.dataclass(frozen=True)
class SceneObject:
    """One drawn shape; `box` is its tight x1, y1, x2, y2 as fractions of width and height."""

    shape: str
    colour: str
    size: str
    place: str
    box: tuple[float, float, float, float]

    def mention(self, attributes: Sequence[str] = grammar.ATTRIBUTES) -> grammar.Mention:
        """A mention of this object that names the given attributes."""
        return grammar.Mention(**{name: getattr(self, name) for name in attributes})


@dataclasses.dataclass(frozen=True)
class Scene:
    """Two to four objects in distinct quadrants; `background` is an RGB colour of 0 to 255."""

    objects: tuple[SceneObject, ...]
    background: tuple[int, int, int]

    def facts(self) -> frozenset[Fact]:
        """All that a caption can say about the scene."""
        return frozenset(itertools.product(range(len(self.objects)), grammar.ATTRIBUTES))

    def mentions(self, facts: frozenset[Fact]) -> list[grammar.Mention]:
        """One mention for each object that the facts are about, in the scene's order."""
        return [
            item.mention(named)
            for i, item in enumerate(self.objects)
            if (named := [a for a in grammar.ATTRIBUTES if (i, a) in facts])
        ]


def random_scene(rng: np.random.Generator) -> Scene:
    """Draws the objects' attributes uniformly, and their sides and positions with jitter."""
    places = rng.permutation(grammar.PLACES)[: rng.integers(2, 5)]
    objects = tuple(_random_object(rng, place) for place in places.tolist())
    return Scene(objects, background=tuple(rng.integers(222, 256, size=3).tolist()))


def _random_object(rng: np.random.Generator, place: str) -> SceneObject:
    drawn = ("shape", "colour", "size")
    shape, colour, size = (str(rng.choice(grammar.VALUES[name])) for name in drawn)
    side = rng.uniform(*_SIDES[size])
    corner = rng.uniform(_MARGIN, 0.5 - _MARGIN - side, size=2)
    corner += 0.5 * np.array(["right" in place, "bottom" in place])
    box = tuple(np.concatenate([corner, corner + side]).tolist())
    return SceneObject(shape, colour, size, place, box)


def draw(scene: Scene, size: int = CANVAS_SIZE) -> np.ndarray:
    """Draws a scene with antialiasing, uint8 `[size, size, 3]`."""
    image = np.full((size, size, 3), scene.background, np.float32)
    for item in scene.objects:
        paint(image, item.shape, item.colour, item.box)
    return np.rint(image).astype(np.uint8)


def feature_projection(feature_size: int) -> dict[str, np.ndarray]:
    """Maps each colour, shape, size and "background" to a fixed float32 `[feature_size]`.

    It stands in for a trained detector, so it is the same whatever a run's seed. Entries are
    standard normal.
    """
    names = (*grammar.COLOURS, *grammar.SHAPES, *grammar.SIZES, "background")
    rng = np.random.Generator(np.random.Philox(0))
    vectors = rng.standard_normal((len(names), feature_size)).astype(np.float32)
    return dict(zip(names, vectors, strict=True))


def random_regions(
    rng: np.random.Generator, scene: Scene, projection: Mapping[str, np.ndarray], noise: float
) -> tuple[np.ndarray, np.ndarray]:
    """What a detector might find: every object and up to two distractors, in random order.

    Args:
      projection: as `feature_projection` gives it.
      noise: standard deviation of the noise; that of the features themselves is 1.
    Returns:
      Jittered boxes, float32 `[regions, 4]`, x1, y1, x2, y2 as fractions of width and height,
      and their features, float32 `[regions, feature_size]`.
    """
    boxes, features = [], []
    for item in scene.objects:
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
    noisy = np.array(features) + noise * rng.standard_normal(np.shape(features))
    return np.clip(boxes, 0, 1)[order].astype(np.float32), noisy[order].astype(np.float32)


def random_facts(
    rng: np.random.Generator, scene: Scene, mentioned: int, keep: float
) -> frozenset[Fact]:
    """Chooses what to say: `mentioned` objects, each attribute kept with probability `keep`.

    At least one attribute of a mentioned object is kept. An object whose mention would fit
    another mentioned object as well is given its place, so that no caption reads "a star
    and a red star".
    """
    kept = {}
    for i in sorted(rng.permutation(len(scene.objects))[:mentioned].tolist()):
        lots = rng.random(len(grammar.ATTRIBUTES))
        attributes = np.flatnonzero((lots < keep) | (lots == lots.min()))
        kept[i] = {grammar.ATTRIBUTES[a] for a in attributes}
    values = {i: {getattr(scene.objects[i], a) for a in named} for i, named in kept.items()}
    for i, j in itertools.permutations(kept, 2):
        if values[i] <= values[j]:
            kept[i].add("place")
    return frozenset((i, a) for i, named in kept.items() for a in named)


def relevance(facts: frozenset[Fact], others: frozenset[Fact]) -> float:
    """Jaccard overlap of two non-empty sets of facts, in [0, 1]."""
    return len(facts & others) / len(facts | others)


class SceneSource:
    """A `Source` of generated records (METHOD.md sections 0 and 4).

    The record at an index, by kind:
      strict: two of the strict languages say the same about every object.
      weak: two languages, at least one of them weak if there are weak languages, each say
        what they choose about the objects they choose; `relevance` is the overlap.
      parallel: English and another language say the same about a scene that is not shown.
      retrieval: every language says everything about every object.
      captioned: every language says the same about every object.
      region: the same; and of each object as an element, its colour and shape.
    Records with an image have regions too, those of kind region elements instead. Different
    kinds, splits and seeds are different scenes. The language pairs take turns, so that all are
    equally frequent.

    Args:
      kind: one of KINDS.
      split: any name, such as "train" or "test".
      size: number of records; a smaller source is the beginning of a larger one.
      seed: at least 0.
      strict_languages, weak_languages: disjoint, from `grammar.LANGUAGES`.
      feature_size: length of a region's feature vector.
      feature_noise: standard deviation of the noise on it, where that of the signal is 1.
    Raises:
      ValueError: on an argument out of these bounds, or too few languages for the kind.
    """

    def __init__(
        self,
        kind: Kind,
        split: str,
        size: int,
        seed: int,
        strict_languages: Sequence[str] = ("en", "de", "fr"),
        weak_languages: Sequence[str] = ("cs", "zh", "ja"),
        feature_size: int = 64,
        feature_noise: float = 0.15,
    ):
        if size < 1:
            raise ValueError(f"size is {size}; ask for 1 record or more, or leave this source out")
        if seed < 0 or feature_size < 1 or feature_noise < 0:
            raise ValueError(
                f"seed={seed}, feature_size={feature_size}, feature_noise={feature_noise}: "
                "make feature_size at least 1 and the others at least 0"
            )
        self._languages = _record_languages(kind, strict_languages, weak_languages)
        self._kind, self._split, self._size, self._seed = kind, split, size, seed
        self._projection = feature_projection(feature_size)
        self._feature_noise = feature_noise
        self._groups_each = 1 + len(grammar.PLACES) if kind == "region" else 1
        self.groups = size * self._groups_each
        turns = len(self._languages)
        self.pairs = {
            pair: range(turn, size, turns)
            for turn, languages in enumerate(self._languages[:size])
            for pair in row_languages(kind, dict.fromkeys(languages, ("one text",)))
        }

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> Record:
        scene, facts = self.scene(index), self.facts(index)
        texts = self._texts(index, scene, facts)
        where = f"scenes/{self._kind}:{index}"
        if self._kind == "parallel":
            return Record(where, index, texts)
        image, group = functools.partial(draw, scene), index * self._groups_each
        if self._kind == "region":
            return Record(where, group, texts, image, elements=self._elements(index, scene))
        rng = self._rng(index, _REGIONS)
        boxes, features = random_regions(rng, scene, self._projection, self._feature_noise)
        overlap = relevance(*facts.values()) if self._kind == "weak" else None
        return Record(where, group, texts, image, boxes, features, overlap)

    def scene(self, index: int) -> Scene:
        """The scene behind a record."""
        return random_scene(self._rng(index, _SCENE))

    def facts(self, index: int) -> dict[str, frozenset[Fact]]:
        """What the text of each language of a record says about its scene."""
        scene, rng = self.scene(index), self._rng(index, _FACTS)
        languages = self._languages[index % len(self._languages)]
        objects = len(scene.objects)
        if self._kind == "weak":
            counts = {language: int(rng.integers(1, objects + 1)) for language in languages}
            return {c: random_facts(rng, scene, n, _KEPT_IN_WEAK_TEXT) for c, n in counts.items()}
        if self._kind == "retrieval":
            return dict.fromkeys(languages, scene.facts())
        return dict.fromkeys(languages, random_facts(rng, scene, objects, _KEPT_IN_STRICT_TEXT))

    def _elements(self, index: int, scene: Scene) -> tuple[Element, ...]:
        rng = self._rng(index, _ELEMENTS)
        (languages,) = self._languages
        elements = []
        for item in scene.objects:
            frames = {c: int(rng.integers(grammar.frame_count(c))) for c in languages}
            mention = [item.mention(_SEEN_IN_CROPS)]
            texts = {c: (grammar.caption(c, mention, frame),) for c, frame in frames.items()}
            elements.append(Element(item.box, texts))
        return tuple(elements)

    def _texts(
        self, index: int, scene: Scene, facts: Mapping[str, frozenset[Fact]]
    ) -> dict[str, tuple[str, ...]]:
        rng = self._rng(index, _FRAMES)
        texts = {}
        for language, said in facts.items():
            frame = int(rng.integers(grammar.frame_count(language)))
            texts[language] = (grammar.caption(language, scene.mentions(said), frame),)
        return texts

    def _rng(self, index: int, stream: int) -> np.random.Generator:
        index = operator.index(index)
        if not 0 <= index < self._size:
            raise IndexError(f"record {index} of a scene source of {self._size}")
        key = (KINDS.index(self._kind), zlib.crc32(self._split.encode()), index, stream)
        sequence = np.random.SeedSequence(self._seed, spawn_key=key)
        return np.random.Generator(np.random.Philox(sequence))


def _record_languages(
    kind: str, strict: Sequence[str], weak: Sequence[str]
) -> list[tuple[str, ...]]:
    """The languages of a record, one entry for each turn that records take."""
    every = (*strict, *weak)
    for language in every:
        grammar.frame_count(language)  # raises if there is no grammar for it
    if len(set(every)) < len(every):
        twice = ", ".join(sorted({code for code in every if every.count(code) > 1}))
        raise ValueError(f"languages named twice: {twice}; name each once, as strict or as weak")
    if kind == "strict":
        turns = list(itertools.combinations(strict, 2))
        remedy = "name at least two strict_languages, such as en and de"
    elif kind == "weak":
        pairs = itertools.combinations(every, 2)
        turns = [pair for pair in pairs if not weak or set(pair) & set(weak)]
        remedy = "name at least two languages, such as en as strict and cs as weak"
    elif kind == "parallel":
        turns = [("en", language) for language in every if language != "en"]
        remedy = "name a language other than English, whose translation it is to be"
    elif kind in ("retrieval", "captioned", "region"):
        turns = [every] if every else []
        remedy = "name at least one language"
    else:
        raise ValueError(f"unknown kind {kind!r} of records; choose from: {', '.join(KINDS)}")
    if not turns:
        raise ValueError(f"too few languages for {kind} records; {remedy}")
    return turns
