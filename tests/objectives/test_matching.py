"""Hard negatives: distribution, exclusions; the matching loss against plain cross-entropy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rc3_jax.objectives.matching import (
    NegativeSampling,
    has_negative,
    matching_loss,
    negative_weights,
    sample_negatives,
)
from rc3_jax.objectives.terms import Comparison, Encoded


@pytest.mark.parametrize("floor", [0.0, 0.05])
@pytest.mark.parametrize("block_size", [None, 3])
def test_negatives_follow_the_softmax_of_similarity(floor, block_size):
    rng = np.random.default_rng(0)
    anchors, candidates = (jnp.array(rng.normal(size=(6, 4)), jnp.float32) for _ in range(2))
    groups = jnp.array([0, 0, 1, 2, 3, 4])
    draws, tau, sampling = 20_000, jnp.float32(0.7), NegativeSampling(floor, block_size)
    drawn = jax.vmap(
        lambda key: sample_negatives(key, anchors, candidates, tau, groups, sampling=sampling)
    )(jax.random.split(jax.random.key(0), draws))
    logits = np.array(anchors @ candidates.T) / 0.7
    places = np.arange(6) // (block_size or 6)
    near = places[:, None] == places[None, :]
    chances = np.where(near, np.exp(logits), 0)
    chances = chances / chances.sum(axis=1, keepdims=True) + floor
    allowed = (np.array(groups)[:, None] != np.array(groups)[None, :]) & near
    weights = np.where(allowed, chances, 0)
    expected = weights / weights.sum(axis=1, keepdims=True)
    measured = np.stack([np.mean(np.array(drawn) == j, axis=0) for j in range(6)], axis=1)
    # Five standard deviations of a frequency over 20,000 draws.
    assert np.all(np.abs(measured - expected) <= 5 * np.sqrt(0.25 / draws))
    assert np.all(measured[~allowed] == 0)
    ours = np.array(negative_weights(anchors, candidates, tau, groups, sampling))
    if not floor:  # proportional
        ours /= ours.sum(axis=1, keepdims=True)
        weights = expected
    np.testing.assert_allclose(ours, weights, atol=1e-6)


@pytest.mark.parametrize("share", [0.25, 1.0])
@pytest.mark.parametrize("block_size", [None, 3])
def test_a_share_of_the_rows_draws_at_random(share, block_size):
    """Also where a row's own candidate, or one negative, has nearly all of the softmax."""
    rng = np.random.default_rng(1)
    anchors = jnp.array(rng.normal(size=(6, 4)), jnp.float32)
    groups, draws, tau = jnp.array([0, 0, 1, 2, 3, 4]), 20_000, jnp.float32(0.2)
    sampling = Encoded(None, {}, Comparison(random_negatives=share))._sampling(6)
    sampling = sampling._replace(block_size=block_size)
    drawn = jax.vmap(
        lambda key: sample_negatives(key, anchors, anchors, tau, groups, sampling=sampling)
    )(jax.random.split(jax.random.key(0), draws))
    places = np.arange(6) // (block_size or 6)
    allowed = np.array(groups)[:, None] != np.array(groups)[None, :]
    allowed &= places[:, None] == places[None, :]
    logits = np.float64(anchors) @ np.float64(anchors).T / 0.2
    hard = np.where(allowed, np.exp(logits - logits.max(axis=1, keepdims=True)), 0)
    hard /= hard.sum(axis=1, keepdims=True)
    random = allowed / allowed.sum(axis=1, keepdims=True)
    measured = np.stack([np.mean(np.array(drawn) == j, axis=0) for j in range(6)], axis=1)
    expected = (1 - share) * hard + share * random
    assert np.all(np.abs(measured - expected) <= 5 * np.sqrt(0.25 / draws))
    assert np.abs(hard - random).max() > 0.3  # it can be seen


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 2**31 - 1),
    groups=st.lists(st.integers(0, 2), min_size=5, max_size=5),
)
def test_a_row_of_the_same_group_is_never_drawn(seed, groups):
    groups = np.array(groups)
    x = jax.random.normal(jax.random.key(seed), (5, 3))
    drawn = sample_negatives(jax.random.key(seed), x, x, jnp.float32(0.01), jnp.array(groups))
    exists = has_negative(jnp.array(groups))
    for row in range(5):
        has_other = np.any(groups != groups[row])
        assert bool(exists[row]) == has_other
        if has_other:
            assert groups[drawn[row]] != groups[row]


def test_rows_of_one_device_may_lack_a_negative_that_others_have():
    groups = jnp.array([1, 1, 1, 2])
    assert has_negative(groups).tolist() == [True] * 4
    assert has_negative(groups, block_size=2).tolist() == [False, False, True, True]


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**31 - 1),
    numbers=st.lists(st.tuples(st.integers(-2, -1), st.integers(0, 2)), min_size=6, max_size=6),
    block=st.sampled_from([None, 3]),
)
def test_rows_with_a_number_in_common_are_never_drawn(seed, numbers, block):
    x = jax.random.normal(jax.random.key(seed), (6, 3))
    sampling, rows = NegativeSampling(block_size=block), jnp.array(numbers)
    drawn = sample_negatives(jax.random.key(seed), x, x, jnp.float32(0.01), rows, sampling=sampling)
    exists = has_negative(rows, block)
    for i in range(6):
        near = [j for j in range(6) if i // (block or 6) == j // (block or 6)]
        allowed = [j for j in near if not set(numbers[i]) & set(numbers[j])]
        assert bool(exists[i]) == bool(allowed)
        if allowed:
            assert int(drawn[i]) in allowed


def test_matching_loss_counts_one_positive_and_the_existing_negatives():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(3, 4, 2)).astype(np.float32)
    exists = np.array([1, 1, 0, 1], bool)
    losses, right = [], []
    for i in range(4):
        for kind, counts, label in ((0, True, 1), (1, exists[i], 0), (2, exists[i], 0)):
            if counts:
                p = np.exp(logits[kind, i]) / np.exp(logits[kind, i]).sum()
                losses.append(-np.log(p[label]))
                right.append(np.argmax(logits[kind, i]) == label)
    loss, accuracy = matching_loss(*logits, exists)
    np.testing.assert_allclose(loss, np.mean(losses), rtol=1e-6)
    np.testing.assert_allclose(accuracy, np.mean(right), rtol=1e-6)
