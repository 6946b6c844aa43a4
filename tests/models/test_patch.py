"""Patch tower as CLIP's vision transformer: values, gradients and parameters.

As `ViTModel` it is compared in tests/convert.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from rc3_jax.convert.names import Layers, Row, Table
from rc3_jax.models.layers import ACTIVATIONS, Stack
from rc3_jax.models.patch import PatchTower
from tests.vision_reference import (
    compare_with_torch,
    randomise,
    require,
    template_of,
)

SIZE = dict(image_size=36, patch=12, width=20)
DEPTH, HEADS, MLP_WIDTH = 2, 5, 30
OUTER = (
    Row("array", "class_token", "embeddings.class_embedding"),
    Row("array", "position_embedding", "embeddings.position_embedding.weight"),
    Row("array", "patch_embedding/kernel", "embeddings.patch_embedding.weight"),
    Row("norm", "embedding_norm", "pre_layrnorm"),
    Row("norm", "final_norm", "post_layernorm"),
)
LAYER = (
    Row("norm", "self_attention_norm", "layer_norm1"),
    Row("dense", "self_attention/query", "self_attn.q_proj"),
    Row("dense", "self_attention/key", "self_attn.k_proj"),
    Row("dense", "self_attention/value", "self_attn.v_proj"),
    Row("dense", "self_attention/out", "self_attn.out_proj"),
    Row("norm", "mlp_norm", "layer_norm2"),
    Row("dense", "mlp_in", "mlp.fc1"),
    Row("dense", "mlp_out", "mlp.fc2"),
)
TABLE = Table("vision_model.", (), OUTER, (Layers("encoder/layers/", "encoder.layers.{}.", LAYER),))


def _images() -> np.ndarray:
    return np.random.default_rng(2).normal(size=(2, 36, 36, 3)).astype(np.float32)


def _tower(activation: str = "quick_gelu", **options) -> PatchTower:
    encoder = Stack(DEPTH, HEADS, MLP_WIDTH, True, 1e-5, activation=activation)
    return PatchTower(encoder, **SIZE, **options)


def _reshape(tensors: dict) -> dict:
    """The arrays of the embeddings as ours are, under their names."""
    tensors = {name.removeprefix("vision_model."): x for name, x in tensors.items()}
    for name in ("embeddings.class_embedding", "embeddings.position_embedding.weight"):
        tensors[name] = tensors[name].reshape(1, -1, SIZE["width"])
    kernel = "embeddings.patch_embedding.weight"
    tensors[kernel] = tensors[kernel].transpose(2, 3, 1, 0).reshape(-1, SIZE["width"])
    return tensors


@pytest.mark.parametrize("scale", [0.04, 0.15])
@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_tower_equals_clip(scale, activation):
    torch, transformers = require("torch"), require("transformers")
    config = transformers.CLIPVisionConfig(
        image_size=SIZE["image_size"],
        patch_size=SIZE["patch"],
        hidden_size=SIZE["width"],
        num_hidden_layers=DEPTH,
        num_attention_heads=HEADS,
        intermediate_size=MLP_WIDTH,
        hidden_act=activation,
        attn_implementation="eager",
    )
    model = randomise(transformers.CLIPVisionModel(config), torch, scale)
    images = _images()
    states = model(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).last_hidden_state
    states = getattr(model, "vision_model", model).post_layernorm(states)
    tower = _tower(activation, patch_bias=False, norm_first=True)
    named = dict(model.named_parameters())
    compare_with_torch(torch, tower, images, states, named, _reshape, TABLE)


def test_options_add_and_remove_only_their_own_parameters():
    def paths(**options):
        return set(flatten_dict(template_of(_tower(**options), _images()), sep="/"))

    plain = paths()
    assert paths(activation="gelu") == plain
    assert plain - paths(patch_bias=False) == {"patch_embedding/bias"}
    assert paths(norm_first=True) - plain == {"embedding_norm/scale", "embedding_norm/bias"}
    assert _tower().grid == 3


def test_activations():
    x = np.linspace(-4, 4, 9).astype(np.float32)
    expected = x / (1 + np.exp(-1.702 * np.float64(x)))
    np.testing.assert_allclose(ACTIVATIONS["quick_gelu"](jnp.asarray(x)), expected, atol=1e-6)
    difference = np.abs(ACTIVATIONS["gelu"](x) - ACTIVATIONS["quick_gelu"](x)).max()
    assert 1e-3 < difference < 0.03
