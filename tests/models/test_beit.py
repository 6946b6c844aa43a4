"""BEiT-v2 tower: initial values, stochastic depth, recomputation, number types."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rc3_jax.models.beit import BeitSettings, BeitStack, BeitTower
from rc3_jax.models.compute import Compute
from rc3_jax.settings import ConfigError
from tests.vision_reference import random_params, template_of

SMALL = dict(image_size=36, patch=12, width=20, depth=2, heads=5, mlp_width=30)


def _tower(drop_path: float = 0.1, **compute) -> BeitTower:
    return BeitSettings(**SMALL, drop_path=drop_path).build(Compute(**compute))


def _images(size: int, batch: int = 2) -> np.ndarray:
    return np.random.default_rng(2).normal(size=(batch, size, size, 3)).astype(np.float32)


def test_starts_as_published():
    params = jax.jit(_tower().init)(jax.random.key(0), _images(36))["params"]
    layers = params["encoder"]["layers"]
    for name in ("self_attention_scale", "mlp_scale"):
        np.testing.assert_array_equal(layers[name], np.full((2, 20), 0.1, np.float32))
    assert layers["relative_positions"].shape == (2, 28, 5)
    assert "bias" not in layers["self_attention"]["key"]


def test_drop_path_rates_grow_linearly_over_the_layers():
    """All parameters zero, but every feed-forward layer adds one."""

    stack = BeitStack(3, 1, 4, pre_norm=True, epsilon=1e-6, drop_path=0.5, grid=2)
    x = np.zeros((4000, 5, 4), np.float32)
    variables = jax.eval_shape(lambda: stack.init(jax.random.key(0), x))
    variables = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), variables)
    variables["params"]["layers"]["mlp_out"]["bias"][:] = 1.0
    variables["params"]["layers"]["mlp_scale"][:] = 1.0
    rngs = {"dropout": jax.random.key(0)}
    sums = np.asarray(stack.apply(variables, x, deterministic=False, rngs=rngs))
    assert (sums == sums[:, :1, :1]).all()
    values, counts = np.unique(np.round(sums[:, 0, 0], 4), return_counts=True)
    np.testing.assert_allclose(values, [1, 7 / 3, 3, 13 / 3], atol=1e-4)
    shares = np.array([0.25 * 0.5, 0.75 * 0.5, 0.25 * 0.5, 0.75 * 0.5])
    np.testing.assert_allclose(counts / 4000, shares, atol=0.04)
    np.testing.assert_allclose(sums.mean(), 3, atol=0.1)
    np.testing.assert_array_equal(stack.apply(variables, x), 3.0)


def _weights() -> np.ndarray:
    return np.random.default_rng(3).normal(size=(2, 10, 20)).astype(np.float32)


@functools.cache
def _value_and_gradient(remat: str, unroll: int, drop: float = 0.5):
    tower = _tower(drop, remat=remat, unroll=unroll)
    images, weights = _images(36), _weights()

    def functional(params):
        rngs = {"dropout": jax.random.key(1)} if drop else None
        tokens = tower.apply({"params": params}, images, False, rngs=rngs)
        return jnp.sum(weights * tokens)

    return jax.jit(jax.value_and_grad(functional))(random_params(tower, images))


@pytest.mark.parametrize("remat, unroll", [("dots", 1), ("full", 2), ("none", 5)])
def test_remat_and_unroll_change_neither_value_nor_gradient(remat, unroll):
    value, gradient = _value_and_gradient(remat, unroll)
    expected_value, expected_gradient = _value_and_gradient("none", 1)
    np.testing.assert_allclose(value, expected_value, rtol=1e-5)
    close = functools.partial(np.testing.assert_allclose, rtol=0, atol=5e-5)
    jax.tree.map(close, gradient, expected_gradient)


def test_training_without_drop_path_needs_no_randomness():
    value, _ = _value_and_gradient("none", 1, drop=0.0)
    tower, images = _tower(), _images(36)
    states = jax.jit(tower.apply)({"params": random_params(tower, images)}, images)
    np.testing.assert_allclose(value, jnp.sum(_weights() * states), rtol=1e-5)


def test_bfloat16_keeps_parameters_in_float32():
    tower, exact = _tower(dtype=jnp.bfloat16), _tower()
    images = _images(36)
    params = random_params(exact, images, 0.1)
    assert {leaf.dtype for leaf in jax.tree.leaves(template_of(tower, images))} == {
        jnp.dtype("float32")
    }
    states = jax.jit(tower.apply)({"params": params}, images)
    assert states.dtype == jnp.bfloat16
    expected = jax.jit(exact.apply)({"params": params}, images)
    np.testing.assert_allclose(np.float32(states), expected, rtol=0, atol=0.05)


def test_images_of_another_size_are_refused():
    with pytest.raises(ConfigError, match="image_size=36"):
        template_of(_tower(), _images(48))
