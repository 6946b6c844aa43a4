"""The five tasks in miniature: scenes and texts as functions of (task, seed, split, index).

docs/tasks.md describes them. Within a task, quadrants, attributes and kinds of text are drawn alike
for every class, so that the text alone does not give the class away.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from rc3_jax.scenes import scene as scenes
from rc3_jax.scenes.draw import draw
from rc3_jax.scenes.languages import LANGUAGES
from rc3_jax.scenes.languages.base import FRAMES, PLAIN_FRAMES, QUESTIONS, STATEMENTS
from rc3_jax.scenes.scene import (
    ATTRIBUTES,
    Mention,
    Scene,
    SceneObject,
    random_names,
    random_scene,
)
from rc3_jax.tasks.base import Example, Picture, TaskData

VERDICTS = ("contradiction", "neutral", "entailment")
COUNTS = tuple(map(str, range(len(scenes.PLACES) + 1)))
ANSWERS = ("no", "yes", *COUNTS, *scenes.COLOURS, *scenes.SHAPES, *scenes.PLACES)
SHOTS = (1, 5, 10, 20, 25, 48)

_Choice = TypeVar("_Choice")
_Streams = Callable[[int, int], np.random.Generator]  # of a split: by stream and number
_Item = tuple[dict[int, Scene], Callable[[str], str], int | None]
"""An example: number of each picture → its scene; language → text; label."""

_KEY = 1000  # first word of the streams' keys; sources of scenes have the number of their kind
_SCENE, _TEXT, _REGIONS = range(3)  # independent random streams
_SORT = ("shape", "colour")  # what statements, and questions of number, speak of
_NAMED = ("shape", "colour", "size")  # what hypotheses say of a place
_KEPT = 0.7  # of what hypotheses and captions of wit could say
_MOST_OF_SORT = 2  # objects of one sort in one of two pictures
# The statement that is true, by whether the left and the right picture show what it mentions.
_TRUE = {(1, 1): "both", (0, 0): "neither", (1, 0): "only left", (0, 1): "only right"}


def split_languages() -> dict[str, tuple[str, ...]]:
    """The languages of each split of a miniature.

    Train and dev are in English; test has the same items in every language; so have train_1 to
    train_48, the few shots, in every language but English.
    """
    others = tuple(code for code in LANGUAGES if code != "en")
    splits = {"train": ("en",), "dev": ("en",), "test": tuple(LANGUAGES)}
    return splits | {f"train_{shots}": others for shots in SHOTS}


def miniature(
    task: str, sizes: Mapping[str, int], seed: int = 0, feature_size: int = 64
) -> TaskData:
    """Generates one of MINIATURES with the splits of `split_languages`.

    Pre-training, other splits and other tasks have other scenes.

    Args:
      sizes: numbers of examples of train, dev and test.
      feature_size: length of a region's feature vector.
    """
    classes, generate = MINIATURES[task]
    projection = scenes.feature_projection(feature_size)

    def examples(split: str, count: int, languages: Sequence[str]) -> dict[str, list[Example]]:
        split_key = zlib.crc32(f"{task}/{split}".encode())
        streams = functools.partial(scenes.random_stream, seed, _KEY, split_key)
        pictures: dict[int, Picture] = {}
        found: dict[str, list[Example]] = {code: [] for code in languages}
        for index in range(count):
            shown, text, label = generate(streams, index)
            for number in shown.keys() - pictures.keys():
                scene, rng = shown[number], streams(_REGIONS, number)
                regions = scenes.random_regions(rng, scene, projection)
                image = functools.partial(draw, scene)
                pictures[number] = Picture(f"{split}/{number}", image, *regions)
            pair = tuple(pictures[number] for number in shown)
            for code in languages:
                where = f"miniatures/{task}/{split}/{code}:{index}"
                found[code].append(Example(where, str(index), text(code), pair, label))
        return found

    languages = split_languages()
    splits = {split: examples(split, n, languages[split]) for split, n in sizes.items()}
    few = examples("few-shot", max(SHOTS), languages["train_1"])
    for shots in SHOTS:
        splits[f"train_{shots}"] = {code: listed[:shots] for code, listed in few.items()}
    return TaskData(classes, splits)


def _xvnli(streams: _Streams, index: int) -> _Item:
    number, turn = divmod(index, len(VERDICTS))
    rng = streams(_SCENE, number)
    scene = dataclasses.replace(random_scene(rng), screen=_one_of(rng, scenes.PLACES))
    label = int(rng.permutation(len(VERDICTS))[turn])
    rng = streams(_TEXT, index)
    chosen = _one_of(rng, scene.visible())
    place: str | None = chosen.place
    values = {name: getattr(chosen, name) for name in _NAMED}
    kept = random_names(rng, _NAMED, _KEPT)
    if VERDICTS[label] == "neutral":
        place = scene.screen
        values = {name: _one_of(rng, ATTRIBUTES[name]) for name in _NAMED}
    if VERDICTS[label] == "contradiction":
        wrong = _one_of(rng, kept)
        values[wrong] = _one_of(rng, [v for v in ATTRIBUTES[wrong] if v != values[wrong]])
    mention = Mention(**{name: values[name] for name in kept}, place=place)
    frame = _one_of(rng, PLAIN_FRAMES)  # behind the screen, nothing can be seen
    return {number: scene}, lambda code: LANGUAGES[code].caption([mention], frame), label


def _xgqa(streams: _Streams, index: int) -> _Item:
    rng = streams(_SCENE, index)
    kind = QUESTIONS[index % len(QUESTIONS)]
    if kind in ("count", "exists"):
        mention = _random_mention(rng, _SORT[:1], _SORT[1:], _SORT)
        answers = COUNTS if kind == "count" else ("no", "yes")
        number = int(rng.integers(len(answers)))
        scene, answer = _scene_with(rng, mention, number), answers[number]
    else:
        scene, mention, answer = _scene_and_reference(rng, kind)
    label = ANSWERS.index(answer)
    return {index: scene}, lambda code: LANGUAGES[code].ask(kind, mention), label


def _marvl(streams: _Streams, index: int) -> _Item:
    rng = streams(_SCENE, index)
    kind = _one_of(rng, STATEMENTS)
    mention = _random_mention(rng, _SORT[:1], _SORT[1:])
    label = int(rng.integers(2))
    counts = itertools.product(range(_MOST_OF_SORT + 1), repeat=2)
    fitting = [(l, r) for l, r in counts if (_TRUE[l > 0, r > 0] == kind) == label]
    left, right = (_scene_with(rng, mention, count) for count in _one_of(rng, fitting))
    shown = {2 * index: left, 2 * index + 1: right}
    return shown, lambda code: LANGUAGES[code].ask(kind, mention), label


def _xflickrco(streams: _Streams, index: int) -> _Item:
    rng = streams(_SCENE, index)
    scene = random_scene(rng)
    while len(scene.objects) < 3:  # full captions of two objects are too often the same
        scene = random_scene(rng)
    mentions = scene.mentions(scene.facts())
    frame = int(streams(_TEXT, index).integers(FRAMES))
    return {index: scene}, lambda code: LANGUAGES[code].caption(mentions, frame), None


def _wit(streams: _Streams, index: int) -> _Item:
    pair, turn = divmod(index, 3)  # two captions of one picture, one of the next
    number = 2 * pair + (turn == 2)
    scene = random_scene(streams(_SCENE, number))
    rng = streams(_TEXT, index)
    mentions = {}
    for code in LANGUAGES:
        count = int(rng.integers(1, len(scene.objects) + 1))
        mentions[code] = scene.mentions(scenes.random_facts(rng, scene, count, _KEPT))
    frame = int(rng.integers(FRAMES))
    return {number: scene}, lambda code: LANGUAGES[code].caption(mentions[code], frame), None


MINIATURES = {
    "xvnli": (VERDICTS, _xvnli),
    "xgqa": (ANSWERS, _xgqa),
    "marvl": (("false", "true"), _marvl),
    "xflickrco": ((), _xflickrco),
    "wit": ((), _wit),
}
"""Task → its classes, and what generates an example."""


def _one_of(rng: np.random.Generator, choices: Sequence[_Choice]) -> _Choice:
    return choices[int(rng.integers(len(choices)))]


def _random_mention(rng: np.random.Generator, *choices: Sequence[str]) -> Mention:
    """Names one of several sets of attributes."""
    named = _one_of(rng, choices)
    return Mention(**{name: _one_of(rng, ATTRIBUTES[name]) for name in named})


def _scene_with(rng: np.random.Generator, mention: Mention, count: int) -> Scene:
    """A scene where exactly `count` objects fit a mention; of the others, many nearly do."""
    scene = random_scene(rng)
    while len(scene.objects) < count:
        scene = random_scene(rng)
    objects = [dataclasses.replace(item, **mention.named()) for item in scene.objects[:count]]
    objects += [_unlike(rng, mention, item) for item in scene.objects[count:]]
    return dataclasses.replace(scene, objects=tuple(objects))


def _unlike(rng: np.random.Generator, mention: Mention, item: SceneObject) -> SceneObject:
    """The object, changed until a mention does not fit it."""
    named = mention.named()
    if len(named) > 1 and rng.random() < 0.5:
        kept = _one_of(rng, tuple(named))
        item = dataclasses.replace(item, **{kept: named[kept]})
    while mention.fits(item):
        values = Mention(**{name: _one_of(rng, ATTRIBUTES[name]) for name in _SORT})
        item = dataclasses.replace(item, **values.named())
    return item


def _scene_and_reference(rng: np.random.Generator, asked: str) -> tuple[Scene, Mention, str]:
    """A scene, a mention of one object alone that leaves out what is asked, and the answer."""
    others = [name for name in ATTRIBUTES if name != asked]
    subsets = [s for n in range(1, 1 + len(others)) for s in itertools.combinations(others, n)]
    while True:
        scene = random_scene(rng)
        chosen = _one_of(rng, scene.objects)
        mentions = [chosen.mention(subset) for subset in subsets]
        alone = [m for m in mentions if sum(map(m.fits, scene.objects)) == 1]
        if alone:
            return scene, _one_of(rng, alone), getattr(chosen, asked)
