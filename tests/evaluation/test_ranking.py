"""Ranks by vectors against sorting by brute force."""

from __future__ import annotations

import tracemalloc
from unittest import mock

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rc3_jax.evaluation import ranking
from rc3_jax.evaluation.ranking import (
    NEVER,
    Ranks,
    nearest,
    rank_recalls,
    ranks,
    ranks_both_ways,
    ranks_of_right,
)
from tests.evaluation.ranking import exact_scores, sorted_ranks


def unit(rng, count: int, size: int) -> np.ndarray:
    vectors = rng.standard_normal((count, size)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def search(seed: int, queries: int, items: int, size: int):
    """Vectors that repeat, some of which hold NaN; several right items or none; 64-bit identities."""
    rng = np.random.default_rng(seed)
    pool = unit(rng, max(2, items // 3), size)
    x, y = (np.concatenate([pool, unit(rng, 3, size)]) for _ in range(2))
    x, y = x[rng.integers(len(x), size=queries)], y[rng.integers(len(y), size=items)]
    x[rng.random(queries) < 0.1] = np.nan
    y[rng.random(items) < 0.1, 0] = np.nan
    groups = [rng.integers(max(2, items // 2), size=n) * 10**12 for n in (queries, items)]
    return x, y, *groups


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**31 - 1),
    shape=st.tuples(st.integers(1, 12), st.integers(1, 14), st.integers(1, 9)),
    k=st.integers(1, 16),
    chunk=st.sampled_from([1, 30, 2**21]),
)
@example(seed=0, shape=(700, 300, 768), k=40, chunk=2**14)
def test_ranks_and_nearest_are_those_of_a_sorted_matrix(seed, shape, k, chunk):
    x, y, x_groups, y_groups = search(seed, *shape)
    scores = exact_scores(x, y)
    with mock.patch.object(ranking, "CHUNK", chunk):
        assert ranks(x, y, x_groups, y_groups).tolist() == sorted_ranks(scores, x_groups, y_groups)
        found = nearest(x, y, k)
    order = np.argsort(-np.nan_to_num(scores, nan=-np.inf), axis=1, kind="stable")
    np.testing.assert_array_equal(found, np.sort(order[:, :k], axis=1))


def test_equal_vectors_tie_wherever_they_stand():
    rng = np.random.default_rng(0)
    x, y = unit(rng, 67, 768), unit(rng, 131, 768)
    y[70:] = y[:61]
    np.testing.assert_array_equal(exact_scores(x, y)[:, 70:], exact_scores(x, y)[:, :61])
    # Each query's own item is there twice, and one of the two is wrong.
    places = ranks(y[:61], y, np.arange(61), np.arange(131))
    assert places.tolist() == [2] * 61
    error = exact_scores(x, y) / 2**52 - x.astype(np.float64) @ y.T.astype(np.float64)
    assert np.abs(error).max() < 4e-7


def test_the_matrix_of_all_scores_is_never_stored():
    rng = np.random.default_rng(0)
    x, y = unit(rng, 8000, 4), unit(rng, 10_000, 4)
    with mock.patch.object(ranking, "CHUNK", 2**18):
        tracemalloc.start()
        nearest(x, y, 5)
        ranks(x, y, np.arange(8000), np.arange(10_000))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 8000 * 10_000 * 8 / 20


def test_perfect_collapsed_and_unrelated_vectors():
    rng = np.random.default_rng(0)
    vectors, order = unit(rng, 50, 8), rng.permutation(50)
    perfect = ranks_both_ways(vectors, vectors[order], order)
    assert set(rank_recalls(perfect).values()) == {1.0}
    same = np.tile(vectors[:1], (50, 1))
    assert set(rank_recalls(ranks_both_ways(same, same, np.arange(50))).values()) == {0.0}
    places = ranks(unit(rng, 2000, 16), unit(rng, 100, 16), np.arange(2000) % 100, np.arange(100))
    for k in (1, 5, 10):
        assert np.mean(places <= k) == pytest.approx(k / 100, abs=4 * (k / 100 / 2000) ** 0.5)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("broken", ["texts", "images", "right images"])
def test_vectors_that_are_no_numbers_find_nothing(value, broken):
    texts, images, owners = unit(np.random.default_rng(0), 40, 8), None, np.arange(20)
    images, texts = texts.copy(), texts[:20].copy()
    broken_rows = {"texts": texts, "images": images, "right images": images[:20]}[broken]
    broken_rows[:, 0] = value
    assert set(ranks(texts, images, owners, np.arange(40)).tolist()) == {NEVER}


@given(
    scores=st.lists(
        st.lists(st.sampled_from([-1.0, 0.0, 0.5, np.nan]), min_size=4, max_size=4),
        min_size=6,
        max_size=6,
    ).map(np.array),
    owners=st.lists(st.integers(0, 3), min_size=6, max_size=6).map(np.array),
)
def test_recalls_are_the_shares_of_sorted_scores(scores, owners):
    """IR by a caption's rank of its image, TR by an image's rank of the best of its captions."""
    described = np.unique(owners)
    expected = {
        "IR": sorted_ranks(scores, owners, np.arange(4)),
        "TR": sorted_ranks(scores.T[described], described, owners),
    }
    right = owners[:, None] == np.arange(4)
    found = Ranks(ranks_of_right(scores.T, right.T)[described], ranks_of_right(scores, right))
    recalls = rank_recalls(found, (1, 2, 6))
    for name, places in expected.items():
        for k in (1, 2, 6):
            assert recalls[f"{name}@{k}"] == sum(place <= k for place in places) / len(places)
