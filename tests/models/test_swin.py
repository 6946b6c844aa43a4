"""Swin tower: windows by loops, sizes, stochastic depth, recomputation, number types."""

from __future__ import annotations

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rc3_jax.models.compute import Compute
from rc3_jax.models.layers import drop_path, prepend_mean
from rc3_jax.models.swin import SwinBlock, SwinSettings, SwinTower, from_windows, to_windows
from rc3_jax.settings import ConfigError
from tests.vision_reference import random_params, template_of

SMALL = dict(image_size=48, width=12, depths=(2, 2, 1), heads=(3, 2, 4), window=3)
"""12 tokens per side, then 6, then 3: an odd window, shifted twice, and one that is the image."""


def _tower(drop_path: float = 0.1, **compute) -> SwinTower:
    return SwinSettings(**SMALL, drop_path=drop_path).build(Compute(**compute))


def _images(size: int, batch: int = 2) -> np.ndarray:
    return np.random.default_rng(2).normal(size=(batch, size, size, 3)).astype(np.float32)


def _block_by_loops(params, x, heads: int, window: int, shift: int) -> np.ndarray:
    """Float64, without rolling: windows begin at `shift`, and the border has smaller ones."""

    def norm(name, y):
        y = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-5)
        return y * params[name]["scale"] + params[name]["bias"]

    def linear(module, y):
        return y @ np.float64(module["kernel"]) + np.float64(module["bias"])

    attention, table = params["self_attention"], np.float64(params["relative_positions"])
    y = norm("self_attention_norm", x)
    query, key, value = (linear(attention[name], y) for name in ("query", "key", "value"))
    _, side, _, width = x.shape
    size, attended = width // heads, np.zeros_like(query)
    window_of = (np.arange(side) - shift) // window
    for row in range(side):
        for column in range(side):
            keys = np.argwhere(
                (window_of == window_of[row])[:, None] & (window_of == window_of[column])
            )
            offsets = np.array([row, column]) - keys + window - 1
            bias = table[offsets[:, 0] * (2 * window - 1) + offsets[:, 1]]
            for head in range(heads):
                part = slice(head * size, (head + 1) * size)
                here = key[:, keys[:, 0], keys[:, 1], part]
                logits = np.einsum("bkc,bc->bk", here, query[:, row, column, part])
                logits = logits / np.sqrt(size) + bias[:, head]
                weights = np.exp(logits - logits.max(-1, keepdims=True))
                weights /= weights.sum(-1, keepdims=True)
                there = value[:, keys[:, 0], keys[:, 1], part]
                attended[:, row, column, part] = np.einsum("bk,bkc->bc", weights, there)
    x = x + linear(attention["out"], attended)
    y = linear(params["mlp_in"], norm("mlp_norm", x))
    return x + linear(params["mlp_out"], np.asarray(jax.nn.gelu(y, approximate=False)))


@pytest.mark.parametrize(
    "side, window, shift", [(12, 4, 2), (12, 3, 1), (12, 12, 0), (10, 5, 2), (6, 2, 1), (3, 3, 0)]
)
def test_block_equals_windows_of_the_unrolled_image(side, window, shift):
    x = np.random.default_rng(3).normal(size=(2, side, side, 6)).astype(np.float32)
    block = SwinBlock(3, 10, pre_norm=True, epsilon=1e-5, window=window, shift=shift)
    params = random_params(block, x)
    expected = _block_by_loops(params, x, 3, window, shift)
    actual = jax.jit(block.apply)({"params": params}, x)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-5)


def test_windows_and_back():
    x = np.arange(2 * 6 * 6 * 2).reshape(2, 6, 6, 2)
    windows = to_windows(x, 3)
    assert windows.shape == (8, 9, 2)
    np.testing.assert_array_equal(windows[5].reshape(3, 3, 2), x[1, :3, 3:])
    np.testing.assert_array_equal(from_windows(windows, 6), x)


@pytest.mark.parametrize(
    "image_size, window, tokens, count", [(224, 7, 50, 86_743_224), (384, 12, 145, 86_878_584)]
)
def test_published_size(image_size, window, tokens, count):
    tower = SwinSettings(image_size=image_size, window=window).build(Compute())
    images = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
    states, variables = jax.eval_shape(tower.init_with_output, jax.random.key(0), images)
    assert states.shape == (1, tokens, 1024) == (1, 1 + tower.grid**2, tower.width)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == count


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(window=5), "window=5 does not divide the 12 x 12 tokens of stage 0"),
        (dict(window=4), "window=4 does not divide the 6 x 6 tokens of stage 1; make image_size"),
        (dict(image_size=40), "image_size=40 must be a multiple of 16"),
        (dict(heads=(3, 2)), "for each stage"),
        (dict(heads=(3, 5, 4)), "heads=5 of stage 1 must divide its width of 24"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message) as caught:
        SwinSettings.parse(SMALL | changes)
    if fitting := re.search(r"multiples? of (\d+)(, or| also)", str(caught.value)):
        for times in (1, 2, 3):
            SwinSettings.parse(SMALL | changes | dict(image_size=times * int(fitting[1])))


def test_images_of_another_size_are_refused():
    with pytest.raises(ConfigError, match="image_size=48; they must agree"):
        template_of(_tower(), _images(96))


@settings(max_examples=20)
@given(rate=st.floats(0.0, 0.9), seed=st.integers(0, 99), rank=st.integers(1, 3))
def test_drop_path_keeps_or_drops_rows_and_keeps_the_mean(rate, seed, rank):
    rows = 2000
    x = np.ones((rows,) + (3,) * rank, np.float32)
    y = np.asarray(drop_path(x, rate, jax.random.key(seed))).reshape(rows, -1)
    assert (y == y[:, :1]).all()
    kept = np.isclose(y[:, 0], 1 / (1 - rate))
    assert ((y[:, 0] == 0) | kept).all()
    deviation = np.sqrt(rate / (1 - rate) / rows)
    assert abs(y.mean() - 1) <= 5 * deviation + 1e-5


def test_drop_path_rates_grow_linearly_over_all_blocks():
    """All parameters zero, but every feed-forward layer adds one."""
    sizes = dict(image_size=16, width=4, depths=(1, 2), heads=(1, 1), window=2, mlp_ratio=1.0)
    tower = SwinSettings(**sizes, drop_path=0.5).build(Compute())
    images = np.zeros((4000, 16, 16, 3), np.float32)
    params = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), template_of(tower, images))
    for stage, block in ((0, 0), (1, 0), (1, 1)):
        params[f"stage_{stage}"][f"block_{block}"]["mlp_out"]["bias"][:] = 1.0

    @jax.jit
    def stages(key):
        _, state = tower.apply(
            {"params": params},
            images,
            False,
            rngs={"dropout": key},
            capture_intermediates=lambda module, _: module.name == "block_1",
            mutable="intermediates",
        )
        return state["intermediates"]["stage_1"]["block_1"]["__call__"][0]

    sums = np.asarray(stages(jax.random.key(0)))
    assert (sums == sums[:, :1, :1, :1]).all()
    # The merging of zeros leaves what the second stage's blocks add: 1 / 0.75 and 1 / 0.5.
    values, counts = np.unique(np.round(sums[:, 0, 0, 0], 4), return_counts=True)
    np.testing.assert_allclose(values, [0, 4 / 3, 2, 10 / 3], atol=1e-4)
    shares = np.array([0.25 * 0.5, 0.75 * 0.5, 0.25 * 0.5, 0.75 * 0.5])
    np.testing.assert_allclose(counts / 4000, shares, atol=0.04)
    np.testing.assert_allclose(sums.mean(), 2, atol=0.1)


@functools.cache
def _value_and_gradient(remat: str):
    tower = _tower(0.5, remat=remat)
    images = _images(48)
    weights = np.random.default_rng(3).normal(size=(2, 10, tower.width))

    def functional(params):
        rngs = {"dropout": jax.random.key(1)}
        tokens = tower.apply({"params": params}, images, False, rngs=rngs)
        return jnp.sum(weights * tokens)

    params = random_params(tower, images)
    kept = jax.eval_shape(lambda p: jax.vjp(functional, p)[1], params)
    kept = sum(leaf.size for leaf in jax.tree.leaves(kept))
    return *jax.jit(jax.value_and_grad(functional))(params), kept


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["dots", "full"])
def test_remat_changes_memory_and_neither_value_nor_gradient(remat):
    value, gradient, kept = _value_and_gradient(remat)
    expected_value, expected_gradient, expected_kept = _value_and_gradient("none")
    np.testing.assert_allclose(value, expected_value, rtol=1e-5)
    close = functools.partial(np.testing.assert_allclose, rtol=0, atol=5e-5)
    jax.tree.map(close, gradient, expected_gradient)
    assert kept < expected_kept


def test_bfloat16_keeps_parameters_in_float32():
    tower, exact = _tower(dtype=jnp.bfloat16), _tower()
    images = _images(48)
    params = random_params(exact, images, 0.1)
    assert {leaf.dtype for leaf in jax.tree.leaves(template_of(tower, images))} == {
        jnp.dtype("float32")
    }
    states = jax.jit(tower.apply)({"params": params}, images)
    assert states.dtype == jnp.bfloat16
    expected = jax.jit(exact.apply)({"params": params}, images)
    np.testing.assert_allclose(np.float32(states), expected, rtol=0, atol=0.05)


def test_first_token_is_the_mean_of_the_others():
    tokens = jnp.asarray(100 + np.random.default_rng(0).normal(size=(2, 9, 4)), jnp.bfloat16)
    states = prepend_mean(tokens)
    assert states.dtype == tokens.dtype and states.shape == (2, 10, 4)
    expected = jnp.bfloat16(np.asarray(tokens, np.float64).mean(axis=1))
    np.testing.assert_array_equal(np.float32(states[:, 0]), np.float32(expected))
