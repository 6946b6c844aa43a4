"""Classes of the miniature tasks are balanced, and texts alone do not give them away."""

import collections
import functools
import itertools
import re

import numpy as np
import pytest

from rc3_jax.downstream.examples import Example
from rc3_jax.downstream.miniatures import miniature


@functools.cache
def english(task, split):
    return miniature(task, {"train": 1800, "dev": 1, "test": 900}).splits[split]["en"]


def labels(examples):
    return np.array([example.label for example in examples])


def within_sampling_error(counts, classes):
    expected = sum(counts.values()) / classes
    deviation = np.sqrt(expected * (1 - 1 / classes))
    return len(counts) == classes and all(
        abs(count - expected) < 4 * deviation for count in counts.values()
    )


@pytest.mark.parametrize("split", ["train", "test"])
def test_every_picture_of_xvnli_has_a_hypothesis_of_every_class(split):
    by_picture = collections.defaultdict(list)
    for example in english("xvnli", split):
        by_picture[example.pictures[0].name].append(example.label)
    assert all(sorted(found) == [0, 1, 2] for found in by_picture.values())
    assert len(set(map(tuple, by_picture.values()))) == 6  # in any order


@pytest.mark.parametrize("split", ["train", "test"])
def test_statements_of_marvl_are_true_half_of_the_time_whatever_their_kind(split):
    by_kind = collections.defaultdict(collections.Counter)
    for example in english("marvl", split):
        by_kind[" ".join(example.text.split()[:3])][example.label] += 1
    assert len(by_kind) == 4
    assert all(within_sampling_error(counts, 2) for counts in by_kind.values())


@pytest.mark.parametrize("split", ["train", "test"])
def test_answers_of_xgqa_are_equally_frequent_for_every_kind_of_question(split):
    by_kind = collections.defaultdict(collections.Counter)
    for example in english("xgqa", split):
        by_kind[" ".join(example.text.split()[:2])][example.label] += 1
    choices = {"What colour": 6, "What is": 5, "Where is": 4, "How many": 5, "Is there": 2}
    assert by_kind.keys() == choices.keys()
    assert {sum(counts.values()) for counts in by_kind.values()} == {
        len(english("xgqa", split)) // 5
    }
    for kind, counts in by_kind.items():
        assert within_sampling_error(counts, choices[kind]), (kind, counts)


def bag(text):
    """Words and pairs of neighbouring words."""
    words = re.findall(r"\w+", text.lower())
    return {*words, *map(" ".join, itertools.pairwise(words))}


def bags(examples, vocabulary):
    return np.array([[word in bag(example.text) for word in vocabulary] for example in examples])


def naive_bayes(train, test):
    """Accuracy on `test` of a classifier of bags of words that has learnt from `train`."""
    vocabulary = sorted(set().union(*(bag(example.text) for example in train)))
    known, truths = bags(train, vocabulary), labels(train)
    classes = np.unique(truths)
    chance = np.stack(
        [(known[truths == c].sum(0) + 1) / ((truths == c).sum() + 2) for c in classes]
    )
    asked = bags(test, vocabulary)
    scores = asked @ np.log(chance).T + ~asked @ np.log1p(-chance).T
    scores += np.log([(truths == c).mean() for c in classes])
    return np.mean(classes[scores.argmax(1)] == labels(test))


# Chance is 1/3, 1/2 and, as the kind of question is known, the mean of 1/6, 1/5, 1/4, 1/5, 1/2.
@pytest.mark.parametrize(("task", "most"), [("xvnli", 0.39), ("marvl", 0.55), ("xgqa", 0.32)])
def test_text_alone_is_near_chance(task, most):
    accuracy = naive_bayes(english(task, "train"), english(task, "test"))
    print(f"{task}: {accuracy:.3f}")
    assert accuracy <= most


def test_the_baseline_finds_a_word_that_gives_the_class_away():
    texts = ["a star that is red", "a star of red"] * 10
    examples = [Example("", str(i), text, (), i % 2) for i, text in enumerate(texts)]
    assert naive_bayes(examples, examples) == 1
