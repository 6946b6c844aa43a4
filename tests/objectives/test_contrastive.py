"""InfoNCE and the soft cross-entropy against brute force in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rc3_jax.objectives.contrastive import info_nce, sigmoid_loss, soft_cross_entropy
from tests.objectives.tile_cases import unit_rows

SHAPES = st.sampled_from([(1, 3), (2, 1), (5, 4), (7, 5)])  # rows, size; each compiles


def brute_force_nce(x, y, temperature, groups, weights=None, extra_x=None, extra_y=None):
    """METHOD.md section 0, one row and one term at a time."""
    rows = len(x)
    total = 0.0
    for i in range(rows):
        same = [j for j in range(rows) if groups[j] == groups[i]]
        for anchor, others, extra in ((x[i], y, extra_x), (y[i], x, extra_y)):
            scores = [float(anchor @ other) / temperature for other in others]
            denominator = sum(np.exp(s) for s in scores)
            if extra is not None:
                denominator += np.exp(extra[i] / temperature)
            loss = np.log(denominator) - np.mean([scores[j] for j in same])
            total += loss * (1.0 if weights is None else weights[i]) / 2
    return total / rows


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=SHAPES,
    temperature=st.floats(0.05, 0.5),
    groups=st.lists(st.integers(0, 3), min_size=7, max_size=7),
    weighted=st.booleans(),
    extra=st.booleans(),
)
def test_info_nce_equals_brute_force(seed, shape, temperature, groups, weighted, extra):
    rng, rows = np.random.default_rng(seed), shape[0]
    x, y = unit_rows(rng, *shape), unit_rows(rng, *shape)
    groups = np.array(groups[:rows])
    weights = rng.uniform(0, 2, rows) if weighted else None
    columns = rng.uniform(-1, 1, (2, rows)) if extra else (None, None)
    expected = brute_force_nce(x, y, temperature, groups, weights, *columns)
    measured = info_nce(
        jnp.array(x, jnp.float32),
        jnp.array(y, jnp.float32),
        jnp.float32(temperature),
        jnp.array(groups),
        None if weights is None else jnp.array(weights, jnp.float32),
        tuple(jnp.array(c, jnp.float32) for c in columns) if extra else None,
    )
    np.testing.assert_allclose(measured, expected, rtol=2e-5, atol=2e-5)


def test_info_nce_of_distinct_rows_is_cross_entropy_with_the_diagonal():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    x, y = unit_rows(rng, 16, 8), unit_rows(rng, 16, 8)
    a = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    b, temperature = torch.tensor(y, dtype=torch.float64), torch.tensor(0.07, dtype=torch.float64)
    temperature.requires_grad_()
    logits, labels = a @ b.T / temperature, torch.arange(16)
    loss = torch.nn.functional.cross_entropy
    expected = (loss(logits, labels) + loss(logits.T, labels)) / 2
    expected.backward()
    value, (gradient, of_temperature) = jax.value_and_grad(info_nce, argnums=(0, 2))(
        jnp.array(x, jnp.float32), jnp.array(y, jnp.float32), jnp.float32(0.07), jnp.arange(16)
    )
    np.testing.assert_allclose(value, expected.item(), rtol=1e-5)
    np.testing.assert_allclose(gradient, a.grad.numpy(), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(of_temperature, temperature.grad.item(), rtol=1e-4)


def test_a_removed_extra_column_changes_nothing():
    rng = np.random.default_rng(1)
    x, y = (jnp.array(unit_rows(rng, 5, 4), jnp.float32) for _ in range(2))
    gone = jnp.full(5, -1e9)
    plain = info_nce(x, y, jnp.float32(0.1), jnp.arange(5))
    np.testing.assert_allclose(
        info_nce(x, y, jnp.float32(0.1), jnp.arange(5), same_image=(gone, gone)), plain, rtol=1e-6
    )


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), shape=SHAPES)
def test_soft_cross_entropy_equals_brute_force(seed, shape):
    rng, rows = np.random.default_rng(seed), shape[0]
    x, y = unit_rows(rng, *shape), unit_rows(rng, *shape)
    target_x, target_y = unit_rows(rng, rows, 3), unit_rows(rng, rows, 3)
    target = target_x @ target_y.T
    cross, entropy = 0.0, 0.0
    for scores, wanted in ((x @ y.T / 0.2, target), (y @ x.T / 0.2, target.T)):
        for i in range(rows):
            p = np.exp(wanted[i] / 0.1) / np.sum(np.exp(wanted[i] / 0.1))
            q = np.exp(scores[i]) / np.sum(np.exp(scores[i]))
            cross -= np.sum(p * np.log(q)) / (2 * rows)
            entropy -= np.sum(p * np.log(p)) / (2 * rows)
    measured = soft_cross_entropy(
        jnp.array(x, jnp.float32),
        jnp.array(y, jnp.float32),
        jnp.float32(0.2),
        jnp.array(target_x, jnp.float32),
        jnp.array(target_y, jnp.float32),
        0.1,
    )
    np.testing.assert_allclose(measured, (cross, entropy), rtol=1e-4, atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=SHAPES,
    bias=st.floats(-10, 2),
    groups=st.lists(st.integers(0, 3), min_size=7, max_size=7),
    extra=st.booleans(),
)
def test_sigmoid_loss_equals_brute_force(seed, shape, bias, groups, extra):
    rng, rows = np.random.default_rng(seed), shape[0]
    x, y = unit_rows(rng, *shape), unit_rows(rng, *shape)
    weights, groups = rng.uniform(0, 2, rows), np.array(groups[:rows])
    columns = rng.uniform(-1, 1, (2, rows))
    expected = 0.0
    for i in range(rows):
        for similarity in columns[:, i] if extra else ():
            expected += weights[i] * np.log1p(np.exp(similarity / 0.2 + bias)) / 2 / rows
        for j in range(rows):
            sign = 1 if groups[i] == groups[j] else -1
            logit = sign * (float(x[i] @ y[j]) / 0.2 + bias)
            expected += weights[i] * np.log1p(np.exp(-logit)) / rows
    measured = sigmoid_loss(
        jnp.array(x, jnp.float32),
        jnp.array(y, jnp.float32),
        jnp.float32(0.2),
        jnp.float32(bias),
        jnp.array(groups),
        jnp.array(weights, jnp.float32),
        tuple(jnp.array(c, jnp.float32) for c in columns) if extra else None,
    )
    np.testing.assert_allclose(measured, expected, rtol=2e-5, atol=1e-6)
