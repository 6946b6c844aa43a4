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
from typing import NamedTuple

import numpy as np

from rc3_jax.scenes import scene as scenes
from rc3_jax.scenes.detector import DETECTOR, DetectorSettings, feature_projection, random_regions
from rc3_jax.scenes.draw import draw
from rc3_jax.scenes.languages import LANGUAGES
from rc3_jax.scenes.languages.base import QUESTIONS, STATEMENTS
from rc3_jax.scenes.scene import (
    ATTRIBUTES,
    Mention,
    Scene,
    SceneObject,
    one_of,
    random_scene,
)
from rc3_jax.scenes.wordings import (
    SORT,
    Asked,
    is_withheld,
    other_plain_frame,
    random_frame,
    random_mention,
    withheld_frame,
)
from rc3_jax.tasks.base import Example, Picture, TaskData

VERDICTS = ("contradiction", "neutral", "entailment")
COUNTS = tuple(map(str, range(len(scenes.PLACES) + 1)))
ANSWERS = ("no", "yes", *COUNTS, *scenes.COLOURS, *scenes.SHAPES, *scenes.PLACES)
SHOTS = (1, 5, 10, 20, 25, 48)


class _Item(NamedTuple):
    """An example."""

    shown: dict[int, Scene]  # number of each picture → its scene
    text: Callable[[str], str]  # of a language
    label: int | None = None
    mentions: Mapping[str, Sequence[Mention]] = {}  # of captions: language → what its text says


_KEY = 1000  # first word of the streams' keys; sources of scenes have the number of their kind
_SCENE, _TEXT, _REGIONS, _ERRORS = range(4)  # independent random streams
_KEPT = 0.7  # of what captions of wit could say
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
    task: str,
    sizes: Mapping[str, int],
    seed: int = 0,
    feature_size: int = 64,
    detector: DetectorSettings = DETECTOR,
) -> TaskData:
    """Generates one of MINIATURES with the splits of `split_languages`.

    Pre-training, other splits and other tasks have other scenes.

    Args:
      sizes: numbers of examples of train, dev and test.
      feature_size: length of a region's feature vector.
      detector: the errors of the regions.
    """
    classes, generate = MINIATURES[task]
    projection = feature_projection(feature_size)

    def examples(name: str, count: int, languages: Sequence[str]) -> dict[str, list[Example]]:
        split = _Split(task, name, seed)
        pictures: dict[int, Picture] = {}
        found: dict[str, list[Example]] = {code: [] for code in languages}
        for index in range(count):
            shown, text, label, _ = generate(split, index)
            for number in shown.keys() - pictures.keys():
                scene, rngs = shown[number], (split(_REGIONS, number), split(_ERRORS, number))
                regions = random_regions(*rngs, scene, projection, detector)
                image = functools.partial(draw, scene)
                pictures[number] = Picture(f"{name}/{number}", image, *regions)
            pair = tuple(pictures[number] for number in shown)
            for code in languages:
                where = f"miniatures/{task}/{name}/{code}:{index}"
                found[code].append(Example(where, str(index), text(code), pair, label))
        return found

    languages = split_languages()
    splits = {name: examples(name, n, languages[name]) for name, n in sizes.items()}
    few = examples("few-shot", max(SHOTS), languages["train_1"])
    for shots in SHOTS:
        splits[f"train_{shots}"] = {code: listed[:shots] for code, listed in few.items()}
    return TaskData(classes, splits)


class Captions(NamedTuple):
    """What lies behind a split of a miniature of retrieval."""

    shown: list[Scene]  # of each picture
    owners: list[int]  # of each example, its picture's place in `shown`
    said: dict[str, list[Sequence[Mention]]]  # language → what each example says


def captions(task: str, split: str, count: int, seed: int = 0) -> Captions:
    """The scenes and facts of the examples that `miniature` returns for the same arguments."""
    generate = MINIATURES[task][1]
    items = [generate(_Split(task, split, seed), index) for index in range(count)]
    shown = {number: scene for item in items for number, scene in item.shown.items()}
    places = {number: place for place, number in enumerate(shown)}
    owners = [places[number] for item in items for number in item.shown]
    said = {code: [item.mentions[code] for item in items] for code in LANGUAGES}
    return Captions(list(shown.values()), owners, said)


@dataclasses.dataclass(frozen=True)
class _Split:
    """The random streams of a split, by stream and number, and how it may say things.

    Test alone says what `wordings` withholds, so that no sentence of it was met before.
    """

    task: str
    name: str
    seed: int

    def __call__(self, stream: int, number: int) -> np.random.Generator:
        split_key = zlib.crc32(f"{self.task}/{self.name}".encode())
        return scenes.random_stream(self.seed, _KEY, split_key, stream, number)

    @property
    def is_test(self) -> bool:
        return self.name == "test"

    def may_ask(self, kind: str, mention: Mention) -> bool:
        return is_withheld(Asked(kind, mention)) == self.is_test

    def frame(self, rng: np.random.Generator, mentions: Sequence[Mention]) -> int:
        return withheld_frame(mentions) if self.is_test else random_frame(rng, mentions)

    def random_mention(
        self, rng: np.random.Generator, kind: str, *choices: Sequence[str]
    ) -> Mention:
        """Names one of several sets of attributes in what may be asked."""
        while not self.may_ask(kind, mention := random_mention(rng, *choices)):
            pass
        return mention


def _xvnli(split: _Split, index: int) -> _Item:
    number, turn = divmod(index, len(VERDICTS))
    rng = split(_SCENE, number)
    scene = random_scene(rng)
    panes = [(item, one_of(rng, SORT)) for item in scene.objects]
    hidden = tuple(dataclasses.replace(item, hidden=name) for item, name in panes)
    label = int(rng.permutation(len(VERDICTS))[turn])
    rng = split(_TEXT, index)
    chosen, unseen = one_of(rng, panes)
    (seen,) = set(SORT) - {unseen}
    named = unseen if VERDICTS[label] == "neutral" else seen
    is_sized, wrong = rng.random() < 0.5, None
    if VERDICTS[label] == "contradiction":
        wrong = one_of(rng, (named, "size")) if is_sized else named
        if wrong == "size":  # then it does not matter whether the other attribute can be seen
            named = one_of(rng, SORT)
    values = {"size": chosen.size} if is_sized else {}
    values[named] = one_of(rng, ATTRIBUTES[named]) if named == unseen else getattr(chosen, named)
    if wrong:
        values[wrong] = one_of(rng, [v for v in ATTRIBUTES[wrong] if v != values[wrong]])
    mention = Mention(**values, place=chosen.place)
    withheld = withheld_frame([mention])  # a plain frame, since what a pane hides cannot be seen
    frame = withheld if split.is_test else other_plain_frame(withheld)
    shown = {number: dataclasses.replace(scene, objects=hidden)}
    return _Item(shown, lambda code: LANGUAGES[code].caption([mention], frame), label)


def _xgqa(split: _Split, index: int) -> _Item:
    rng = split(_SCENE, index)
    kind = QUESTIONS[index % len(QUESTIONS)]
    if kind in ("count", "exists"):
        mention = split.random_mention(rng, kind, SORT[:1], SORT[1:], SORT)
        answers = COUNTS if kind == "count" else ("no", "yes")
        number = int(rng.integers(len(answers)))
        scene, answer = _scene_with(rng, mention, number), answers[number]
    else:
        scene, mention, answer = _scene_and_reference(split, rng, kind)
    label = ANSWERS.index(answer)
    return _Item({index: scene}, lambda code: LANGUAGES[code].ask(kind, mention), label)


def _marvl(split: _Split, index: int) -> _Item:
    rng = split(_SCENE, index)
    kind = one_of(rng, STATEMENTS)
    mention = split.random_mention(rng, kind, SORT[:1], SORT[1:])
    label = int(rng.integers(2))
    counts = itertools.product(range(_MOST_OF_SORT + 1), repeat=2)
    fitting = [(l, r) for l, r in counts if (_TRUE[l > 0, r > 0] == kind) == label]
    left, right = (_scene_with(rng, mention, count) for count in one_of(rng, fitting))
    shown = {2 * index: left, 2 * index + 1: right}
    return _Item(shown, lambda code: LANGUAGES[code].ask(kind, mention), label)


def _xflickrco(split: _Split, index: int) -> _Item:
    rng = split(_SCENE, index)
    scene = random_scene(rng)
    while len(scene.objects) < 3:  # full captions of two objects are too often the same
        scene = random_scene(rng)
    mentions = scene.mentions(scene.facts())
    frame = split.frame(split(_TEXT, index), mentions)
    return _captions({index: scene}, dict.fromkeys(LANGUAGES, (mentions, frame)))


def _wit(split: _Split, index: int) -> _Item:
    pair, turn = divmod(index, 3)  # two captions of one picture, one of the next
    number = 2 * pair + (turn == 2)
    scene = random_scene(split(_SCENE, number))
    rng = split(_TEXT, index)
    said = {}
    for code in LANGUAGES:
        count = int(rng.integers(1, len(scene.objects) + 1))
        mentions = scene.mentions(scenes.random_facts(rng, scene, count, _KEPT))
        said[code] = mentions, split.frame(rng, mentions)
    return _captions({number: scene}, said)


def _captions(shown: dict[int, Scene], said: Mapping[str, tuple[Sequence[Mention], int]]) -> _Item:
    """An example of retrieval: language → what it says, and its frame."""

    def text(code: str) -> str:
        return LANGUAGES[code].caption(*said[code])

    return _Item(shown, text, mentions={code: mentions for code, (mentions, _) in said.items()})


MINIATURES = {
    "xvnli": (VERDICTS, _xvnli),
    "xgqa": (ANSWERS, _xgqa),
    "marvl": (("false", "true"), _marvl),
    "xflickrco": ((), _xflickrco),
    "wit": ((), _wit),
}
"""Task → its classes, and what generates an example."""


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
        kept = one_of(rng, tuple(named))
        item = dataclasses.replace(item, **{kept: named[kept]})
    while mention.fits(item):
        values = Mention(**{name: one_of(rng, ATTRIBUTES[name]) for name in SORT})
        item = dataclasses.replace(item, **values.named())
    return item


def _scene_and_reference(
    split: _Split, rng: np.random.Generator, asked: str
) -> tuple[Scene, Mention, str]:
    """A scene, a mention of one object alone that leaves out what is asked, and the answer."""
    others = [name for name in ATTRIBUTES if name != asked]
    subsets = [s for n in range(1, 1 + len(others)) for s in itertools.combinations(others, n)]
    while True:
        scene = random_scene(rng)
        chosen = one_of(rng, scene.objects)
        mentions = [chosen.mention(subset) for subset in subsets]
        alone = [m for m in mentions if sum(map(m.fits, scene.objects)) == 1]
        alone = [m for m in alone if split.may_ask(asked, m)]
        if alone:
            return scene, one_of(rng, alone), getattr(chosen, asked)
