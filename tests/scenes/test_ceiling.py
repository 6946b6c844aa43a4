"""Ceilings against brute force, simulation, and the numbers that the documentation states."""

import collections
import itertools
import math

import numpy as np
import pytest

from rc3_jax.data.record import Skips
from rc3_jax.scenes import ceiling
from rc3_jax.scenes.detector import DetectorSettings, feature_projection, random_regions
from rc3_jax.scenes.languages import LANGUAGES
from rc3_jax.scenes.scene import PLACES, Mention, Scene, SceneObject
from rc3_jax.scenes.source import SceneRecords, ScenesSource
from rc3_jax.scenes.tasks import captions, miniature
from tests.scenes import golden
from tests.scenes.test_detector import WITHOUT_ERRORS
from tests.tiny import load_config

ERRORS = DetectorSettings(
    missed=0.3, doubled=0.3, colour_confused=0.2, shape_confused=0.3, lookalikes=0.5
)


def scene_of(*objects):
    boxes = {"top left": (0.1, 0.1, 0.3, 0.3), "bottom right": (0.6, 0.6, 0.8, 0.8)}
    return Scene(tuple(SceneObject(*item, boxes.get(item[3])) for item in objects), (230,) * 3)


def words_of(objects):
    """The words that are true of each object."""
    return [{o.shape, o.colour, o.size, o.place} for o in objects]


def fits(claims, words):
    """Whether each claim is true of an object of its own."""
    orders = itertools.permutations(words, len(claims))
    return any(all(map(frozenset.issubset, claims, order)) for order in orders)


def test_recalls_are_those_of_ties_broken_in_every_order():
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 3, size=(40, 5)).astype(float)
    right = rng.random((40, 5)) < 0.4
    found = ceiling.recalls(scores, right, cutoffs=(1, 2, 5))
    for k in found:
        expected = []
        for row, truth in zip(scores, right, strict=True):
            orders = list(itertools.permutations(range(5)))
            ranked = [sorted(order, key=lambda i: -row[i])[:k] for order in orders]
            expected.append(np.mean([truth[chosen].any() for chosen in ranked]))
        assert found[k] == pytest.approx(np.mean(expected))


@pytest.mark.parametrize(
    ("mentions", "is_true"),
    [
        (["red star"], True),
        (["small star top left", "red circle"], True),
        (["star", "red shape"], True),
        (["red star", "small star"], False),  # one star alone
        (["star", "circle", "red shape"], False),
        (["star bottom right"], False),
    ],
)
def test_text_is_true_when_each_mention_has_an_object_of_its_own(mentions, is_true):
    star = "star", "red", "small", "top left"
    scene = scene_of(star, ("circle", "red", "large", "bottom right"))
    assert scene.satisfies(list(map(golden.mention, mentions))) == is_true


def test_source_tells_which_scenes_satisfy_a_text():
    records, shared = SceneRecords("weak", "heldout", 99, 0), []
    rows = range(10, 74)
    scenes = [records.scene(index).objects for index in rows]
    words = list(map(words_of, scenes))
    for place, found in enumerate(records.satisfied(rows)):
        record = records[rows[place]]
        assert found.keys() == record.texts.keys()
        for code, is_true in found.items():
            assert is_true.dtype == bool and is_true[place]
            shared.append(is_true.sum() > 1)
            claims = golden.said(code, *record.texts[code])
            assert is_true.tolist() == [fits(claims, objects) for objects in words]
    assert 0.35 < np.mean(shared) < 0.55  # of weak texts are true of another picture of 64


def test_ceiling_of_wit_is_that_of_counting_the_pictures_a_caption_fits():
    count, shown = 120, {}
    examples = miniature("wit", {"test": count}).splits["test"]
    for example in examples["en"]:
        (picture,) = example.pictures
        shown[picture.name] = picture.image.args[0].objects
    words = list(map(words_of, shown.values()))
    found = ceiling.miniature_ceilings("wit", count)
    assert found.keys() == LANGUAGES.keys()
    for code in ("en", "ja"):
        shares = []
        for example in examples[code]:
            claims = golden.said(code, example.text)
            assert fits(claims, words[list(shown).index(example.pictures[0].name)])
            shares.append(1 / sum(fits(claims, objects) for objects in words))
        assert found[code]["IR@1"] == pytest.approx(np.mean(shares))


@pytest.mark.slow
def test_ceilings_of_the_miniatures_are_those_documented():
    found = ceiling.miniature_ceilings("wit", 300)
    means = {name: np.mean([found[code][name] for code in found]) for name in ("IR@1", "TR@1")}
    assert found["ja"]["IR@1"] == pytest.approx(0.555, abs=5e-4)
    assert means == pytest.approx({"IR@1": 0.564, "TR@1": 0.801}, abs=5e-4)
    assert ceiling.miniature_ceilings("xflickrco", 300)["en"]["TR@1"] == 1


def test_captions_are_of_the_pictures_of_the_miniature():
    behind, examples = captions("wit", "test", 30), miniature("wit", {"test": 30}).splits["test"]
    for number, example in enumerate(examples["en"]):
        assert behind.shown[behind.owners[number]] == example.pictures[0].image.args[0]
        claims = [set(mention.named().values()) for mention in behind.said["en"][number]]
        assert sorted(map(sorted, claims)) == sorted(map(sorted, golden.said("en", example.text)))


def test_ideal_matcher_prefers_the_text_that_fits_fewer_pictures():
    star = "star", "red", "small", "top left"
    scenes = [scene_of(star), scene_of(star, ("circle", "red", "large", "bottom right"))]
    texts = [[Mention("star")], [Mention("star"), Mention("circle")]]
    found = ceiling.caption_ceiling(texts, [0, 1], scenes)
    assert (found["IR@1"], found["TR@1"]) == (0.75, 1)


@pytest.mark.slow
def test_explanations_are_as_probable_as_their_regions_are_frequent():
    """The matcher's P(regions | scene) against 20,000 detections of one scene."""
    places, kinds = (0, 3), (("red", "star", "small"), ("blue", "cross", "large"))
    numbers = [ceiling._KINDS.index(kind) for kind in kinds]
    objects = [
        (shape, *rest, PLACES[p]) for p, (c, shape, z) in zip(places, kinds) for rest in [(c, z)]
    ]
    scene, projection, draws = scene_of(*objects), feature_projection(16), 20_000
    looks = ceiling.kind_looks(projection)
    rng, errors, counts = np.random.default_rng(0), np.random.default_rng(1), collections.Counter()
    for _ in range(draws):
        boxes, features = random_regions(rng, errors, scene, projection, ERRORS)
        counts[tuple(sorted(ceiling.read_regions(boxes, features, looks)))] += 1
    states = np.full(len(PLACES), len(ceiling._KINDS))
    states[list(places)] = numbers
    frequent = [
        (seen, count)
        for seen, count in counts.most_common(40)
        if all(kind != len(ceiling._KINDS) for _, kind in seen)
    ]
    assert len(frequent) >= 8
    for seen, count in frequent:
        chance = sum(
            weight * np.prod(chances[np.arange(len(PLACES)), states])
            for weight, chances in ceiling._explanations(seen, ERRORS)
        )
        chance /= math.prod(math.factorial(n) for n in collections.Counter(seen).values())
        assert abs(count - draws * chance) < 4.5 * np.sqrt(draws * chance)


def test_regions_without_errors_tell_scenes_apart_and_bad_ones_do_not():
    perfect = ceiling.region_ceiling(SceneRecords("retrieval", "x", 60, 0, detector=WITHOUT_ERRORS))
    assert set(perfect.values()) == {1}
    blind = DetectorSettings(missed=1.0, lookalikes=0.0)
    found = ceiling.region_ceiling(SceneRecords("retrieval", "x", 60, 0, detector=blind))
    assert found["IR@1"] == pytest.approx(1 / 60) and found["TR@10"] == pytest.approx(10 / 60)


def test_the_ceiling_of_the_demo_is_the_documented_one():
    config = load_config("rc3_demo")
    source = ScenesSource.parse(config.data.sources.scenes)
    held, _ = source.open(config, Skips())[1]["retrieval"]
    found = ceiling.region_ceiling(held)
    assert len(held) == 256
    assert (found["IR@1"], found["TR@1"]) == pytest.approx((0.977, 0.971), abs=5e-4)
    assert max(len(held[index].boxes) for index in range(256)) <= config.model.roi.regions
