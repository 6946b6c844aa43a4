"""The five tasks in miniature, generated from scenes: everything is a function of (task, seed,
split, index), so they need no files.

  xvnli: a grey screen covers one quadrant of the picture, and a hypothesis says what stands in
    some quadrant. Of an open one it is true (entailment) or has one attribute changed
    (contradiction); what is behind the screen is undecided (neutral). Quadrants and attributes
    are drawn alike for every class, so the text alone tells nothing; every picture has one
    hypothesis of each class, so neither does the picture alone. Hypotheses do not claim that
    something can be seen: of the screened quadrant that would be false.
  xgqa: colour, shape or place of the one object that a question mentions, how many there are of
    some sort, or whether there is one. Answers are English in every language and, within each
    kind of question, equally frequent.
  marvl: both pictures, neither or only that of one side show an object of some shape or colour.
    Label and statement are independent of each other.
  xflickrco: retrieval with full descriptions, one for each picture.
  wit: retrieval with partial descriptions, of which every other picture has two. Each language
    says what it chooses to.

Scenes have random streams apart from those of pre-training, of the other splits and of the
other tasks.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from rc3_jax.data import grammar
from rc3_jax.data.grammar import LANGUAGES, Mention
from rc3_jax.data.scenes import (
    CANVAS_SIZE,
    Scene,
    SceneObject,
    draw,
    feature_projection,
    random_facts,
    random_regions,
    random_scene,
)
from rc3_jax.downstream.examples import Example, Picture, TaskData
from rc3_jax.downstream.questions import (
    ANSWERS,
    PLAIN_FRAMES,
    QUESTIONS,
    STATEMENTS,
    VERDICTS,
    Caption,
    Hypothesis,
    Question,
    Statement,
    matches,
    matching,
)

CLASSES: Mapping[str, tuple[str, ...]] = {
    "xvnli": VERDICTS,
    "xgqa": ANSWERS,
    "marvl": ("false", "true"),
    "xflickrco": (),
    "wit": (),
}
SIZES: Mapping[str, int] = {"train": 3000, "dev": 300, "test": 300}
SHOTS = (1, 5, 10, 20, 25, 48)
FEW_SHOT = "few-shot"  # of which the splits train_1 to train_48 are beginnings

_Choice = TypeVar("_Choice")
_Streams = Callable[[int, int], np.random.Generator]  # of a split: by stream and number

_KEY = 1000  # first word of the streams' keys; sources of scenes have the number of their kind
_SCENE, _TEXT, _REGIONS = range(3)  # independent random streams
_SORT = ("shape", "colour")  # what statements, and questions of number, speak of
_NAMED = ("shape", "colour", "size")  # what hypotheses say of a place
_KEPT_IN_HYPOTHESIS = 0.7
_KEPT_IN_WEAK_TEXT = 0.7
_MOST_OF_SORT = 2  # objects of one sort in one of two pictures
_SCREEN = 128  # grey


@dataclasses.dataclass(frozen=True)
class View:
    """A scene as a picture shows it.

    Attributes:
      number: of the picture within its split.
      scene: everything that is there.
      covered: place of the quadrant behind the screen, or None.
    """

    number: int
    scene: Scene
    covered: str | None = None

    def seen(self) -> Scene:
        """The scene without what is behind the screen."""
        seen = tuple(item for item in self.scene.objects if item.place != self.covered)
        return dataclasses.replace(self.scene, objects=seen)


@dataclasses.dataclass(frozen=True)
class Item:
    """An example apart from its language; `label` as in `Example`."""

    views: tuple[View, ...]
    said: Caption | Hypothesis | Question | Statement
    label: int | None = None


def draw_view(view: View, size: int = CANVAS_SIZE) -> np.ndarray:
    """Draws a view, uint8 `[size, size, 3]`."""
    image = draw(view.scene, size)
    if view.covered:
        low, high = slice(0, -(-size // 2)), slice(size // 2, size)
        rows = high if "bottom" in view.covered else low
        columns = high if "right" in view.covered else low
        image[rows, columns] = _SCREEN
    return image


def miniature(
    task: str,
    sizes: Mapping[str, int] | None = None,
    seed: int = 0,
    feature_size: int = 64,
    feature_noise: float = 0.15,
) -> TaskData:
    """Generates a task.

    Its splits: train and dev, in English; test, the same items in every language of
    `grammar.LANGUAGES`; and train_1 to train_48, that many items in every language but English.

    Args:
      task: a key of CLASSES.
      sizes: split → number of its examples, for those of SIZES that are to differ.
      seed: at least 0.
      feature_size: length of a region's feature vector.
      feature_noise: standard deviation of the noise on it, where that of the signal is 1.
    Raises:
      ValueError: on an argument out of these bounds.
    """
    sizes = {**SIZES, **(sizes or {})}
    if task not in CLASSES:
        raise ValueError(f"unknown task {task!r}; choose from: {', '.join(CLASSES)}")
    if unknown := ", ".join(sizes.keys() - SIZES.keys()):
        raise ValueError(f"no size can be given for {unknown}; choose from: {', '.join(SIZES)}")
    if min(sizes.values()) < 1 or seed < 0 or feature_size < 1 or feature_noise < 0:
        raise ValueError(
            f"sizes={sizes}, seed={seed}, feature_size={feature_size}, "
            f"feature_noise={feature_noise}: make sizes and feature_size at least 1 and the "
            "others at least 0"
        )
    projection = feature_projection(feature_size)
    splits = {}
    for split, size in (*sizes.items(), (FEW_SHOT, max(SHOTS))):
        languages = {"test": LANGUAGES, FEW_SHOT: LANGUAGES[1:]}.get(split, LANGUAGES[:1])
        splits[split] = _examples(task, split, size, languages, seed, projection, feature_noise)
    few = splits.pop(FEW_SHOT)
    for shots in SHOTS:
        splits[f"train_{shots}"] = {language: items[:shots] for language, items in few.items()}
    return TaskData(CLASSES[task], splits)


def item(task: str, split: str, index: int, seed: int = 0) -> Item:
    """What is behind the example at an index of a split; FEW_SHOT for train_1 and so on."""
    return _GENERATORS[task](functools.partial(_rng, seed, task, split), index)


def _examples(
    task: str,
    split: str,
    size: int,
    languages: Sequence[str],
    seed: int,
    projection: Mapping[str, np.ndarray],
    noise: float,
) -> dict[str, tuple[Example, ...]]:
    pictures: dict[int, Picture] = {}
    examples: dict[str, list[Example]] = {language: [] for language in languages}
    for index in range(size):
        behind = item(task, split, index, seed)
        for view in behind.views:
            if view.number not in pictures:
                rng = _rng(seed, task, split, _REGIONS, view.number)
                regions = random_regions(rng, view.seen(), projection, noise)
                image = functools.partial(draw_view, view)
                pictures[view.number] = Picture(f"{split}/{view.number}", image, *regions)
        shown = tuple(pictures[view.number] for view in behind.views)
        for language, so_far in examples.items():
            where = f"miniatures/{task}/{split}/{language}:{index}"
            text = behind.said.text(language)
            so_far.append(Example(where, str(index), text, shown, behind.label))
    return {language: tuple(all_of_it) for language, all_of_it in examples.items()}


def _rng(seed: int, task: str, split: str, stream: int, number: int) -> np.random.Generator:
    key = (_KEY, zlib.crc32(f"{task}/{split}".encode()), stream, number)
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=key)))


def _xvnli(streams: _Streams, index: int) -> Item:
    number, turn = divmod(index, len(VERDICTS))
    rng = streams(_SCENE, number)
    view = View(number, random_scene(rng), covered=_one_of(rng, grammar.PLACES))
    label = int(rng.permutation(len(VERDICTS))[turn])
    return Item((view,), _random_hypothesis(streams(_TEXT, index), view, VERDICTS[label]), label)


def _random_hypothesis(rng: np.random.Generator, view: View, verdict: str) -> Hypothesis:
    chosen = _one_of(rng, view.seen().objects)
    values = {name: getattr(chosen, name) for name in _NAMED}
    place = chosen.place
    lots = rng.random(len(_NAMED))
    kept = [_NAMED[i] for i in np.flatnonzero((lots < _KEPT_IN_HYPOTHESIS) | (lots == lots.min()))]
    if verdict == "neutral":
        place = view.covered
        values = {name: _one_of(rng, grammar.VALUES[name]) for name in _NAMED}
    if verdict == "contradiction":
        wrong = _one_of(rng, kept)
        values[wrong] = _one_of(rng, [v for v in grammar.VALUES[wrong] if v != values[wrong]])
    mention = Mention(**{name: values[name] for name in kept}, place=place)
    return Hypothesis(mention, frame=_one_of(rng, PLAIN_FRAMES))


def _xgqa(streams: _Streams, index: int) -> Item:
    rng = streams(_SCENE, index)
    kind = QUESTIONS[index % len(QUESTIONS)]
    if kind in ("count", "exists"):
        mention = _random_mention(rng, _SORT[:1], _SORT[1:], _SORT)
        most = len(grammar.PLACES) if kind == "count" else 1
        scene = _scene_with(rng, mention, int(rng.integers(most + 1)))
    else:
        scene, mention = _scene_and_reference(rng, kind)
    question = Question(kind, mention)
    return Item((View(index, scene),), question, ANSWERS.index(question.answer(scene)))


def _marvl(streams: _Streams, index: int) -> Item:
    rng = streams(_SCENE, index)
    statement = Statement(_one_of(rng, STATEMENTS), _random_mention(rng, _SORT[:1], _SORT[1:]))
    label = int(rng.integers(2))
    counts = itertools.product(range(_MOST_OF_SORT + 1), repeat=2)
    fitting = [both for both in counts if statement.holds_of(*both) == label]
    scenes = [_scene_with(rng, statement.mention, wanted) for wanted in _one_of(rng, fitting)]
    return Item((View(2 * index, scenes[0]), View(2 * index + 1, scenes[1])), statement, label)


def _xflickrco(streams: _Streams, index: int) -> Item:
    rng = streams(_SCENE, index)
    scene = random_scene(rng)
    while len(scene.objects) < 3:  # full captions of two objects are too often the same
        scene = random_scene(rng)
    mentions = tuple(scene.mentions(scene.facts()))
    caption = Caption(dict.fromkeys(LANGUAGES, mentions), _random_frame(streams(_TEXT, index)))
    return Item((View(index, scene),), caption)


def _wit(streams: _Streams, index: int) -> Item:
    pair, turn = divmod(index, 3)  # two captions of one picture, one of the next
    number = 2 * pair + (turn == 2)
    scene = random_scene(streams(_SCENE, number))
    rng = streams(_TEXT, index)
    mentions = {}
    for language in LANGUAGES:
        count = int(rng.integers(1, len(scene.objects) + 1))
        facts = random_facts(rng, scene, count, _KEPT_IN_WEAK_TEXT)
        mentions[language] = tuple(scene.mentions(facts))
    return Item((View(number, scene),), Caption(mentions, _random_frame(rng)))


_GENERATORS = {
    "xvnli": _xvnli,
    "xgqa": _xgqa,
    "marvl": _marvl,
    "xflickrco": _xflickrco,
    "wit": _wit,
}


def _one_of(rng: np.random.Generator, choices: Sequence[_Choice]) -> _Choice:
    return choices[int(rng.integers(len(choices)))]


def _random_frame(rng: np.random.Generator) -> int:
    return int(rng.integers(min(map(grammar.frame_count, LANGUAGES))))


def _random_mention(rng: np.random.Generator, *choices: Sequence[str]) -> Mention:
    """Of one of several sets of attributes."""
    named = _one_of(rng, choices)
    return Mention(**{name: _one_of(rng, grammar.VALUES[name]) for name in named})


def _scene_with(rng: np.random.Generator, mention: Mention, wanted: int) -> Scene:
    """A scene where exactly `wanted` objects are of a sort; of the others, many nearly are."""
    scene = random_scene(rng)
    while len(scene.objects) < wanted:
        scene = random_scene(rng)
    named = {name: getattr(mention, name) for name in _SORT if getattr(mention, name)}
    objects = []
    for number, start in enumerate(scene.objects):
        if number < wanted:
            objects.append(dataclasses.replace(start, **named))
        else:
            objects.append(_of_another_sort(rng, mention, named, start))
    return dataclasses.replace(scene, objects=tuple(objects))


def _of_another_sort(
    rng: np.random.Generator, mention: Mention, named: Mapping[str, str], start: SceneObject
) -> SceneObject:
    if len(named) > 1 and rng.random() < 0.5:
        kept = _one_of(rng, tuple(named))
        start = dataclasses.replace(start, **{kept: named[kept]})
    while matches(mention, start):
        values = {name: _one_of(rng, grammar.VALUES[name]) for name in _SORT}
        start = dataclasses.replace(start, **values)
    return start


def _scene_and_reference(rng: np.random.Generator, asked: str) -> tuple[Scene, Mention]:
    """A scene, and a mention of one of its objects alone that leaves out what is asked."""
    others = [name for name in grammar.ATTRIBUTES if name != asked]
    subsets = [s for n in range(1, 1 + len(others)) for s in itertools.combinations(others, n)]
    while True:
        scene = random_scene(rng)
        chosen = _one_of(rng, scene.objects)
        mentions = [chosen.mention(subset) for subset in subsets]
        alone = [mention for mention in mentions if len(matching(mention, scene)) == 1]
        if alone:
            return scene, _one_of(rng, alone)
