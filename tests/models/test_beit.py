"""BEiT-v2 tower: Hugging Face, sizes, stochastic depth."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rc3_jax.config import ConfigError
from rc3_jax.convert.names import Layers, Table
from rc3_jax.convert.vision_names import BEIT_LAYER, BEIT_OUTER, BEIT_SAVED_LAYER, PREFIX
from rc3_jax.models.beit import BeitBlock, BeitStack, BeitTower
from tests.vision_reference import (
    compare_with_torch,
    published_names,
    random_params,
    randomise,
    require,
    template_of,
)

LAYERS = (Layers("encoder/layers/", BEIT_SAVED_LAYER, BEIT_LAYER),)
TABLE = Table(PREFIX, (), BEIT_OUTER, LAYERS)
SMALL = dict(image_size=36, patch=12, width=20, depth=2, heads=5, mlp_width=30)

HUGGINGFACE = (
    (r"^embeddings\.cls_token", "cls_token"),
    (r"^embeddings\.patch_embeddings\.projection", "patch_embed.proj"),
    (r"^layers\.", "blocks."),
    (r"layernorm_before", "norm1"),
    (r"layernorm_after", "norm2"),
    (r"\.attention\.", ".attn."),
    (r"\.relative_position_bias\.", ".attn."),
    (r"\.o_proj", ".proj"),
    (r"\.lambda_", ".gamma_"),
)


def _images(size: int, batch: int = 2) -> np.ndarray:
    return np.random.default_rng(2).normal(size=(batch, size, size, 3)).astype(np.float32)


def test_tower_equals_hugging_face_under_published_names():
    torch, transformers = require("torch"), require("transformers")
    images = _images(SMALL["image_size"])
    config = transformers.BeitConfig(
        image_size=SMALL["image_size"],
        patch_size=SMALL["patch"],
        hidden_size=SMALL["width"],
        num_hidden_layers=SMALL["depth"],
        num_attention_heads=SMALL["heads"],
        intermediate_size=SMALL["mlp_width"],
        layer_norm_eps=1e-6,
        layer_scale_init_value=0.1,
        use_relative_position_bias=True,
        use_shared_relative_position_bias=False,
        use_absolute_position_embeddings=False,
        use_mask_token=False,
        use_mean_pooling=True,
        attn_implementation="eager",
    )
    model = randomise(transformers.BeitModel(config, add_pooling_layer=False), torch, 0.2)
    norm = torch.nn.LayerNorm(SMALL["width"], eps=1e-6)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    states = model(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).last_hidden_state
    states = norm(states[:, 1:])
    states = torch.cat([states.mean(dim=1, keepdim=True), states], dim=1)
    named = dict(model.named_parameters())
    named |= {"fc_norm.weight": norm.weight, "fc_norm.bias": norm.bias}

    rename = functools.partial(published_names, renames=HUGGINGFACE)
    compare_with_torch(torch, BeitTower(**SMALL), images, states, named, rename, TABLE)


def test_starts_as_published():
    params = jax.jit(BeitTower(**SMALL).init)(jax.random.key(0), _images(36))["params"]
    layers = params["encoder"]["layers"]
    for name in ("self_attention_scale", "mlp_scale"):
        np.testing.assert_array_equal(layers[name], np.full((2, 20), 0.1, np.float32))
    assert layers["relative_positions"].shape == (2, 28, 5)
    assert "bias" not in layers["self_attention"]["key"]


def test_drop_path_rates_grow_linearly_over_the_layers():
    """All parameters zero, but every feed-forward layer adds one."""

    def block(name=None):
        return BeitBlock(2, 1, 4, 1e-6, 1.0, name=name)

    stack = BeitStack(3, block, drop_path=0.5)
    x = np.zeros((4000, 5, 4), np.float32)
    variables = jax.eval_shape(lambda: stack.init(jax.random.key(0), x, True))
    variables = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), variables)
    variables["params"]["layers"]["mlp_out"]["bias"][:] = 1.0
    variables["params"]["layers"]["mlp_scale"][:] = 1.0
    rngs = {"dropout": jax.random.key(0)}
    sums = np.asarray(stack.apply(variables, x, False, rngs=rngs))
    assert (sums == sums[:, :1, :1]).all()
    values, counts = np.unique(np.round(sums[:, 0, 0], 4), return_counts=True)
    np.testing.assert_allclose(values, [1, 7 / 3, 3, 13 / 3], atol=1e-4)
    shares = np.array([0.25 * 0.5, 0.75 * 0.5, 0.25 * 0.5, 0.75 * 0.5])
    np.testing.assert_allclose(counts / 4000, shares, atol=0.04)
    np.testing.assert_allclose(sums.mean(), 3, atol=0.1)
    np.testing.assert_array_equal(stack.apply(variables, x, True), 3.0)


def _weights() -> np.ndarray:
    return np.random.default_rng(3).normal(size=(2, 10, 20)).astype(np.float32)


@functools.cache
def _value_and_gradient(remat: str, unroll: int, drop: float = 0.5):
    tower = BeitTower(**SMALL, remat=remat, unroll=unroll, drop_path=drop)
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
    tower, images = BeitTower(**SMALL), _images(36)
    states = jax.jit(tower.apply)({"params": random_params(tower, images)}, images)
    np.testing.assert_allclose(value, jnp.sum(_weights() * states), rtol=1e-5)


def test_bfloat16_keeps_parameters_in_float32():
    tower, exact = BeitTower(**SMALL, dtype=jnp.bfloat16), BeitTower(**SMALL)
    images = _images(36)
    params = random_params(exact, images, 0.1)
    assert {leaf.dtype for leaf in jax.tree.leaves(template_of(tower, images))} == {
        jnp.dtype("float32")
    }
    states = jax.jit(tower.apply)({"params": params}, images)
    assert states.dtype == jnp.bfloat16
    expected = jax.jit(exact.apply)({"params": params}, images)
    np.testing.assert_allclose(np.float32(states), expected, rtol=0, atol=0.05)


@pytest.mark.parametrize(
    "changes, size, message",
    [
        (dict(patch=13), 36, "patch=13 must divide image_size=36"),
        (dict(heads=3), 36, "heads=3 must divide width=20"),
        ({}, 48, "image_size=36; they must agree"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes, size, message):
    with pytest.raises(ConfigError, match=message):
        template_of(BeitTower(**SMALL | changes), _images(size))
