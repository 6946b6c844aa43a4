"""Miniature tasks: truth of their texts, balance, identities and pictures."""

import collections
import dataclasses
import functools
import hashlib
import itertools
import pickle
import re

import numpy as np
import pytest

from rc3_jax.scenes.languages import LANGUAGES
from rc3_jax.scenes.scene import ATTRIBUTES, COLOURS, PLACES, SIZES
from rc3_jax.scenes.source import KINDS, SceneRecords
from rc3_jax.scenes.tasks import MINIATURES, SHOTS, miniature, split_languages
from tests.scenes import golden

SMALL = {"train": 20, "dev": 9, "test": 12}
every_task = pytest.mark.parametrize("task", MINIATURES)


@functools.cache
def small(task, seed=0):
    return miniature(task, SMALL, seed)


@functools.cache
def large(task):
    return miniature(task, {"train": 1800, "dev": 1, "test": 900})


def scene_of(picture):
    return picture.image.args[0]


def objects_of(picture):
    """Every object of a picture, hidden ones too, as the set of the words that are true of it."""
    return [{o.shape, o.colour, o.size, o.place} for o in scene_of(picture).objects]


def told(text):
    """The values in a question or statement in English, where plurals end in -s or -es."""
    return {value for value in golden.VALUES if re.search(rf"\b{value}(e?s)?\b", text)}


@every_task
def test_splits_have_their_sizes_and_languages(task):
    data, languages = small(task), split_languages()
    assert {split: tuple(found) for split, found in data.splits.items()} == languages
    assert languages["train"] == languages["dev"] == ("en",)
    assert languages["test"] == tuple(LANGUAGES) == ("en", *languages["train_1"])
    sizes = SMALL | {f"train_{shots}": shots for shots in SHOTS}
    for split, found in data.splits.items():
        assert {len(examples) for examples in found.values()} == {sizes[split]}
    for shots in SHOTS:
        for code, examples in data.splits[f"train_{shots}"].items():
            assert examples == data.splits["train_48"][code][:shots]


@every_task
def test_test_items_are_the_same_in_every_language(task):
    for split in ("test", "train_48"):
        items = list(zip(*small(task).splits[split].values(), strict=True))
        for same in items:
            assert len({(e.identity, e.label) for e in same}) == 1
            assert all(example.pictures is same[0].pictures for example in same)
            assert len({example.text for example in same}) >= 5  # shared by no two alphabets
        assert len({same[0].identity for same in items}) == len(items)


# In the order of MINIATURES.
RECORDED = ["87ca88a2", "34b7a67e", "afb11901", "812db473", "d949b544"]


@pytest.mark.parametrize(("task", "recorded"), list(zip(MINIATURES, RECORDED, strict=True)))
def test_texts_and_pictures_are_those_recorded(task, recorded, monkeypatch):
    six = {code: LANGUAGES[code] for code in ("en", "de", "fr", "cs", "zh", "ja")}
    monkeypatch.setattr("rc3_jax.scenes.tasks.LANGUAGES", six)
    digest = hashlib.sha256()
    for example in miniature(task, SMALL).examples():
        names = [picture.name for picture in example.pictures]
        row = [example.where, example.identity, example.text, example.label, names]
        digest.update(repr(row).encode())
        for picture in example.pictures:
            digest.update(picture.image().tobytes())
    assert digest.hexdigest()[:8] == recorded


@every_task
def test_fewer_examples_are_the_beginning(task):
    few = miniature(task, {"train": 1, "dev": 9, "test": 5}).splits["test"]
    for code, examples in few.items():
        expected = small(task).splits["test"][code][:5]
        assert list(map(pickle.dumps, examples)) == list(map(pickle.dumps, expected))


def test_scenes_of_splits_tasks_seeds_and_pre_training_are_disjoint():
    sets = []
    for task, seed in itertools.product(MINIATURES, (0, 1)):
        splits = small(task, seed).splits
        for split in ("train", "dev", "test", "train_48"):
            examples = next(iter(splits[split].values()))
            sets.append({scene_of(picture) for e in examples for picture in e.pictures})
    for kind, split in itertools.product(KINDS, ("train", "dev", "test", "heldout")):
        sets.append({SceneRecords(kind, split, 48, 0).scene(i) for i in range(48)})
    assert len(set.union(*sets)) == sum(map(len, sets))


@pytest.mark.parametrize(
    ("task", "count"), [("xvnli", 4), ("xgqa", 12), ("marvl", 24), ("xflickrco", 12), ("wit", 8)]
)
def test_pictures_have_names_and_are_shared_where_the_task_does(task, count):
    examples = small(task).splits["test"]["en"]
    assert {len(example.pictures) for example in examples} == {2 if task == "marvl" else 1}
    assert len({p.name for example in examples for p in example.pictures}) == count
    pictures = [p for e in small(task).examples() for p in e.pictures]
    scenes = {(picture.name, scene_of(picture)) for picture in pictures}
    assert len(scenes) == len({name for name, _ in scenes}) == len({s for _, s in scenes})


@every_task
def test_regions_are_of_what_can_be_seen(task):
    for picture in small(task).pictures().values():
        hidden = {item.hidden for item in scene_of(picture).objects}
        assert hidden <= ({"colour", "shape"} if task == "xvnli" else {None})
        most = 2 * len(scene_of(picture).objects) + 2
        assert 1 <= len(picture.boxes) == len(picture.features) <= most
    few = miniature(task, SMALL, feature_size=5).pictures()
    assert {picture.features.shape[1] for picture in few.values()} == {5}


def possible(item):
    """What an object may be, by what can be seen of it."""
    values = ATTRIBUTES[item.hidden]
    worlds = [dataclasses.replace(item, **{item.hidden: value}) for value in values]
    return [{world.shape, world.colour, world.size} for world in worlds]


@pytest.mark.parametrize("code", golden.CODES)
def test_xvnli_labels_are_what_all_the_scenes_that_look_alike_say(code):
    data = large("xvnli")
    for example in data.splits["test"][code]:
        (claim,) = golden.said(code, example.text)
        (place,) = claim & set(PLACES)
        (item,) = (o for o in scene_of(*example.pictures).objects if o.place == place)
        truths = {claim - {place} <= world for world in possible(item)}
        expected = {(True,): "entailment", (False,): "contradiction"}
        assert data.classes[example.label] == expected.get(tuple(truths), "neutral")
        assert claim - {place} - set(SIZES)


def best_rule(code, read):
    """Share of the test that the best rule gets right which sees only what `read` returns."""
    counts = collections.defaultdict(collections.Counter)
    for example in large("xvnli").splits["test"][code]:
        (claim,) = golden.said(code, example.text)
        (place,) = claim & set(PLACES)
        there = [o for o in scene_of(*example.pictures).objects if o.place == place]
        counts[read(claim - {place}, there, place)][example.label] += 1
    hits = sum(max(labels.values()) for labels in counts.values())
    return hits / sum(labels.total() for labels in counts.values())


@pytest.mark.parametrize(
    ("read", "most"),
    [
        (lambda claim, there, place: bool(there), 0.34),
        (lambda claim, there, place: (there[0].hidden if there else None, place), 0.39),
        (lambda claim, there, place: there[0].size if there else None, 0.36),
        (lambda claim, there, place: (len(claim), bool(claim & set(COLOURS))), 0.38),
        (lambda claim, there, place: frozenset(claim & {*SIZES, *COLOURS}), 0.42),
    ],
    ids=["something there", "pane there", "size there", "kind of claim", "words of the claim"],
)
def test_half_of_an_xvnli_item_does_not_give_the_class_away(read, most):
    """Best rules are chosen on the test itself, so they lie above chance by some sampling error."""
    assert best_rule("en", read) <= most


def test_pane_and_kind_of_claim_together_tell_much_about_neutral():
    """All of neutral and half of the rest: what is undecided is read off text and picture."""

    def read(claim, there, place):
        return there[0].hidden, bool(claim & set(COLOURS))

    assert best_rule("en", read) == pytest.approx(2 / 3, abs=0.03)


def assert_equally_frequent(counts, classes):
    """Checks that a kind of text has so many classes, alike but for sampling error."""
    expected = sum(counts.values()) / classes
    deviation = np.sqrt(expected * (1 - 1 / classes))
    assert len(counts) == classes
    assert all(abs(count - expected) < 4 * deviation for count in counts.values())


def test_xgqa_answers_can_be_read_off_the_questions_and_are_equally_frequent():
    data, seen = large("xgqa"), collections.defaultdict(collections.Counter)
    for example in data.splits["test"]["en"]:
        objects, named = scene_of(example.pictures[0]).objects, told(example.text)
        found = [o for o in objects if named <= {o.shape, o.colour, o.size, o.place}]
        asked = " ".join(example.text.split()[:2])
        answers = {
            "What colour": [o.colour for o in found],
            "What is": [o.shape for o in found],
            "Where is": [o.place for o in found],
            "How many": [str(len(found))],
            "Is there": ["yes" if found else "no"],
        }[asked]
        assert named and answers == [data.classes[example.label]]
        seen[asked][example.label] += 1
    assert {sum(counts.values()) for counts in seen.values()} == {900 // 5}
    choices = {"What colour": 6, "What is": 5, "Where is": 4, "How many": 5, "Is there": 2}
    for asked, classes in choices.items():
        assert_equally_frequent(seen[asked], classes)


def test_marvl_labels_can_be_read_off_the_statements_and_are_equally_frequent():
    data, seen = large("marvl"), collections.defaultdict(collections.Counter)
    for example in data.splits["test"]["en"]:
        told_of = told(example.text)
        left, right = (sum(told_of <= o for o in objects_of(p)) for p in example.pictures)
        stated = " ".join(example.text.split()[:3])
        right_label = {
            "Both pictures show": left > 0 < right,
            "Neither picture shows": left == 0 == right,
            "Only the left": left > 0 == right,
            "Only the right": right > 0 == left,
        }[stated]
        assert data.classes[example.label] == str(right_label).lower()
        seen[stated][example.label] += 1
    assert len(seen) == 4
    for counts in seen.values():
        assert_equally_frequent(counts, 2)


@pytest.mark.parametrize("task", ["xflickrco", "wit"])
@pytest.mark.parametrize("code", golden.CODES)
def test_captions_are_true_and_in_xflickrco_complete(task, code):
    for example in small(task).splits["test"][code]:
        objects, claims = objects_of(*example.pictures), golden.said(code, example.text)
        assert all(any(claim <= o for o in objects) for claim in claims)
        assert example.label is None
        if task == "xflickrco":
            assert sorted(map(sorted, claims)) == sorted(map(sorted, objects))


def test_full_captions_tell_pictures_apart():
    texts = [example.text for example in large("xflickrco").splits["test"]["en"]]
    assert len({frozenset(golden.said("en", text)) for text in texts}) == len(texts)


def test_every_picture_of_xvnli_has_a_hypothesis_of_every_class():
    by_picture = collections.defaultdict(list)
    for example in large("xvnli").splits["test"]["en"]:
        by_picture[example.pictures[0].name].append(example.label)
    assert set(map(tuple, by_picture.values())) == set(itertools.permutations(range(3)))


def bag(text):
    """Words and pairs of neighbouring words."""
    words = re.findall(r"\w+", text.lower())
    return {*words, *map(" ".join, itertools.pairwise(words))}


def naive_bayes(train, test):
    """Accuracy on `test` of a classifier of bags of words that has learnt from `train`."""
    vocabulary = sorted(set().union(*(bag(example.text) for example in train)))
    bags = [[bag(example.text) for example in examples] for examples in (train, test)]
    known, asked = (np.array([[w in b for w in vocabulary] for b in found]) for found in bags)
    truths, classes = np.array([e.label for e in train]), sorted({e.label for e in train})
    chance = np.array(
        [(known[truths == c].sum(0) + 1) / ((truths == c).sum() + 2) for c in classes]
    )
    scores = asked @ np.log(chance).T + ~asked @ np.log1p(-chance).T
    scores += np.log([(truths == c).mean() for c in classes])
    return np.mean(np.array(classes)[scores.argmax(1)] == [e.label for e in test])


# Chance is 1/3, 1/2 and, as the kind of question is known, the mean of 1/6, 1/5, 1/4, 1/5, 1/2.
@pytest.mark.parametrize(("task", "most"), [("xvnli", 0.39), ("marvl", 0.55), ("xgqa", 0.32)])
def test_text_alone_is_near_chance(task, most):
    splits = large(task).splits
    assert naive_bayes(splits["train"]["en"], splits["test"]["en"]) <= most
