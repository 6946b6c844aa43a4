"""Miniature tasks: truth of their texts, identities, pictures, regions, and bad arguments."""

import collections
import functools
import itertools
import pickle
import re

import numpy as np
import pytest

from rc3_jax.data import grammar
from rc3_jax.data.grammar import LANGUAGES
from rc3_jax.data.scenes import KINDS, SceneSource
from rc3_jax.data.shapes import COLOURS
from rc3_jax.downstream.miniatures import (
    CLASSES,
    FEW_SHOT,
    SHOTS,
    SIZES,
    View,
    draw_view,
    item,
    miniature,
)
from tests.data.caption_words import said

TASKS = tuple(CLASSES)
CHECKED = 300  # items a split
SMALL = {"train": 20, "dev": 9, "test": 12}


@functools.cache
def small(task):
    return miniature(task, SMALL)


@functools.cache
def large(task):
    return miniature(task, {"train": 1, "dev": 1, "test": 900})


def words(objects):
    """Every object of a scene as the set of the words that are true of it."""
    return [{o.shape, o.colour, o.size, o.place} for o in objects]


def told(text):
    """The values in a question or statement in English, where plurals end in -s or -es."""
    values = itertools.chain(*grammar.VALUES.values())
    return {value for value in values if re.search(rf"\b{value}(e?s)?\b", text)}


@pytest.mark.parametrize("task", TASKS)
def test_splits_and_languages(task):
    data = small(task)
    assert data.classes == CLASSES[task]
    few = {f"train_{shots}": shots for shots in (1, 5, 10, 20, 25, 48)}
    assert set(data.splits) == {"train", "dev", "test", *few}
    for split, size in SMALL.items():
        assert tuple(data.splits[split]) == (LANGUAGES if split == "test" else ("en",))
        assert {len(examples) for examples in data.splits[split].values()} == {size}
    for split, size in few.items():
        assert tuple(data.splits[split]) == ("de", "fr", "cs", "zh", "ja")
        assert {len(examples) for examples in data.splits[split].values()} == {size}
        for language, examples in data.splits[split].items():
            assert examples == data.splits["train_48"][language][:size]
    assert max(SHOTS) == 48 and min(SIZES.values()) >= 100


@pytest.mark.parametrize("task", TASKS)
def test_test_items_are_the_same_in_every_language(task):
    splits = small(task).splits
    for split in ("test", "train_48"):
        for same in zip(*splits[split].values(), strict=True):
            assert len({example.identity for example in same}) == 1
            assert len({example.label for example in same}) == 1
            assert all(example.pictures is same[0].pictures for example in same)
            assert len({example.text for example in same}) >= 5  # shared by no two alphabets
        identities = [example.identity for example in same_language(splits[split])]
        assert len(set(identities)) == len(identities)


def same_language(split):
    return next(iter(split.values()))


@pytest.mark.parametrize("task", TASKS)
def test_task_is_a_function_of_its_seed_and_not_of_its_size(task):
    one, other = small(task), miniature(task, {**SMALL, "test": 5})
    for split, by_language in other.splits.items():
        for language, examples in by_language.items():
            for example, same in zip(examples, one.splits[split][language], strict=False):
                assert (example.text, example.label) == (same.text, same.label)
                assert (example.identity, example.where) == (same.identity, same.where)
                for picture, twin in zip(example.pictures, same.pictures, strict=True):
                    assert picture.name == twin.name
                    np.testing.assert_array_equal(picture.boxes, twin.boxes)
                    np.testing.assert_array_equal(picture.features, twin.features)
                    assert picture.image.args == twin.image.args
    texts = [example.text for example in one.splits["test"]["en"]]
    assert texts != [e.text for e in miniature(task, SMALL, seed=1).splits["test"]["en"]]


def test_scenes_of_splits_tasks_seeds_and_pre_training_are_disjoint():
    sets = [
        {view.scene for i in range(48) for view in item(task, split, i, seed).views}
        for task in TASKS
        for split in (*SIZES, FEW_SHOT)
        for seed in (0, 1)
    ]
    for kind, split in itertools.product(KINDS, ("train", "validation", "test", "held_out")):
        source = SceneSource(kind, split, 48, 0)
        sets.append({source.scene(i) for i in range(48)})
    assert len(set.union(*sets)) == sum(map(len, sets))


@pytest.mark.parametrize("task", TASKS)
def test_names_are_those_of_pictures(task):
    named = {}
    for by_language in small(task).splits.values():
        for example in itertools.chain(*by_language.values()):
            for picture in example.pictures:
                assert named.setdefault(picture.name, picture).image.args == picture.image.args
    assert len({picture.image.args for picture in named.values()}) == len(named)


@pytest.mark.parametrize(
    ("task", "pictures"), [("xvnli", 4), ("xgqa", 12), ("marvl", 24), ("xflickrco", 12), ("wit", 8)]
)
def test_examples_share_pictures_where_the_task_does(task, pictures):
    examples = small(task).splits["test"]["en"]
    assert {len(example.pictures) for example in examples} == {2 if task == "marvl" else 1}
    assert len({p.name for example in examples for p in example.pictures}) == pictures


@pytest.mark.parametrize("task", TASKS)
def test_pictures_can_be_pickled_and_drawn(task):
    for example in small(task).splits["test"]["ja"]:
        for picture in pickle.loads(pickle.dumps(example)).pictures:
            image = picture.image()
            assert image.dtype == np.uint8 and image.shape == (64, 64, 3)
            assert picture.boxes.dtype == picture.features.dtype == np.float32
            assert picture.boxes.shape == (len(picture.features), 4)
            assert picture.features.shape == (len(picture.boxes), 64)
            assert (0 <= picture.boxes).all() and (picture.boxes <= 1).all()


@pytest.mark.parametrize("task", TASKS)
def test_picture_shows_what_is_not_covered_and_has_regions_for_it(task):
    examples = small(task).splits["test"]["en"]
    for index, example in enumerate(examples):
        for picture, view in zip(example.pictures, item(task, "test", index).views, strict=True):
            seen = [o for o in view.scene.objects if o.place != view.covered]
            assert list(view.seen().objects) == seen
            assert len(seen) <= len(picture.boxes) <= len(seen) + 2
            image = picture.image()
            for thing in view.scene.objects:
                x, y = (int(32 * (thing.box[i] + thing.box[i + 2])) for i in (0, 1))
                shown = COLOURS[thing.colour] if thing in seen else (128, 128, 128)
                assert tuple(image[y, x]) == shown


@pytest.mark.parametrize("place", grammar.PLACES)
@pytest.mark.parametrize("size", [63, 64])
def test_screen_hides_its_quadrant_and_nothing_else(place, size):
    scene = next(
        scene
        for scene in (item("xgqa", "train", i).views[0].scene for i in range(99))
        if len(scene.objects) == 4
    )
    open_picture, picture = draw_view(View(0, scene), size), draw_view(View(0, scene, place), size)
    changed = (open_picture != picture).any(-1)
    first = np.arange(size) < size / 2  # pixels that reach into the upper or left half
    down, right = "bottom" in place, "right" in place
    quadrant = np.outer(first[::-1] if down else first, first[::-1] if right else first)
    np.testing.assert_array_equal(changed, quadrant)


@pytest.mark.parametrize("language", LANGUAGES)
def test_xvnli_labels_can_be_read_off_the_texts(language):
    data = large("xvnli")
    for index, example in enumerate(data.splits["test"][language][:CHECKED]):
        (view,) = item("xvnli", "test", index).views
        (claim,) = said(language, example.text)
        (place,) = claim & set(grammar.PLACES)
        assert len(claim) >= 2
        right = "entailment" if any(claim <= o for o in words(view.scene.objects)) else ""
        right = "neutral" if place == view.covered else right or "contradiction"
        assert data.classes[example.label] == right
        if right == "contradiction":  # by one word
            (there,) = (o for o in words(view.scene.objects) if place in o)
            assert len(claim - there) == 1


def test_xgqa_answers_can_be_read_off_the_questions():
    data, seen = large("xgqa"), collections.Counter()
    for index, example in enumerate(data.splits["test"]["en"][:CHECKED]):
        (view,) = item("xgqa", "test", index).views
        named = told(example.text)
        assert named
        found = [o for o in view.scene.objects if named <= {o.shape, o.colour, o.size, o.place}]
        opening = " ".join(example.text.split()[:2])
        seen[opening] += 1
        answers = {
            "What colour": [o.colour for o in found],
            "What is": [o.shape for o in found],
            "Where is": [o.place for o in found],
            "How many": [str(len(found))],
            "Is there": ["yes" if found else "no"],
        }[opening]
        assert answers == [data.classes[example.label]]
    assert set(seen.values()) == {CHECKED // 5}


def test_marvl_labels_can_be_read_off_the_statements():
    data, seen = large("marvl"), set()
    for index, example in enumerate(data.splits["test"]["en"][:CHECKED]):
        counts = []
        for view in item("marvl", "test", index).views:
            counts.append(sum(told(example.text) <= o for o in words(view.scene.objects)))
        left, right = counts
        opening = " ".join(example.text.split()[:3])
        seen.add(opening)
        right_label = {
            "Both pictures show": min(counts) > 0,
            "Neither picture shows": sum(counts) == 0,
            "Only the left": left > 0 == right,
            "Only the right": right > 0 == left,
        }[opening]
        assert data.classes[example.label] == str(right_label).lower()
    assert len(seen) == 4


@pytest.mark.parametrize("task", ["xflickrco", "wit"])
@pytest.mark.parametrize("language", LANGUAGES)
def test_captions_are_true_and_in_xflickrco_complete(task, language):
    for index, example in enumerate(small(task).splits["test"][language]):
        (view,) = item(task, "test", index).views
        objects, claims = words(view.scene.objects), said(language, example.text)
        assert all(any(claim <= o for o in objects) for claim in claims)
        assert example.label is None
        if task == "xflickrco":
            assert sorted(map(sorted, claims)) == sorted(map(sorted, objects))


def test_full_captions_tell_pictures_apart():
    examples = large("xflickrco").splits["test"]["en"]
    full = [frozenset(said("en", example.text)) for example in examples]
    assert len(set(full)) == len(full)


def test_wit_captions_differ_between_languages_and_within_a_picture():
    examples = small("wit").splits["test"]
    claims = {c: [frozenset(said(c, e.text)) for e in examples[c]] for c in LANGUAGES}
    for one, other in itertools.combinations(LANGUAGES, 2):
        assert sum(a != b for a, b in zip(claims[one], claims[other], strict=True)) >= 6
    names = [example.pictures[0].name for example in examples["fr"]]
    assert collections.Counter(names) == {f"test/{n}": 1 + (n % 2 == 0) for n in range(8)}


def test_features_are_as_asked():
    data = miniature("wit", SMALL, feature_size=5, feature_noise=0.0)
    for example, default in zip(
        data.splits["dev"]["en"], small("wit").splits["dev"]["en"], strict=True
    ):
        assert example.pictures[0].features.shape[1] == 5
        assert example.text == default.text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(task="vqa"), "unknown task 'vqa'; choose from: xvnli, xgqa, marvl"),
        (dict(task="wit", sizes={"train_1": 3}), "no size can be given for train_1; choose from"),
        (dict(task="wit", sizes={"dev": 0}), "make sizes and feature_size at least 1"),
        (dict(task="wit", seed=-1), "seed=-1"),
        (dict(task="wit", feature_size=0), "feature_size=0"),
        (dict(task="wit", feature_noise=-0.1), "feature_noise=-0.1"),
    ],
)
def test_bad_arguments_are_named_with_a_remedy(arguments, message):
    with pytest.raises(ValueError, match=message):
        miniature(**arguments)
