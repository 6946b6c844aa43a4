"""Defaults of the types of towers, options of the ViT tower, activations.

Values and gradients are compared with those of Hugging Face in tests/convert.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from rc3_jax.models.compute import Compute
from rc3_jax.models.layers import ACTIVATIONS
from rc3_jax.models.text import TextSettings
from rc3_jax.models.towers import TOWERS, visual_settings
from rc3_jax.models.vit import ClipSettings, SiglipSettings, ViTSettings
from rc3_jax.settings import ConfigError
from tests.vision_reference import template_of

SIZE = dict(image_size=36, patch=12, width=20, depth=2, heads=5, mlp_width=30)


@pytest.mark.parametrize(
    "name, epsilon, activation",
    [
        ("vit", 1e-12, "gelu"),
        ("clip", 1e-5, "quick_gelu"),
        ("siglip", 1e-6, "gelu_tanh"),
        ("beit", 1e-6, "gelu"),
        ("swin", 1e-5, "gelu"),
    ],
)
def test_each_type_has_defaults_of_its_own_also_where_a_setting_is_none(name, epsilon, activation):
    for stored in ({}, dict(epsilon=None, activation=None)):
        found = visual_settings(dict(type=name, **stored))
        assert (found.epsilon, found.activation) == (epsilon, activation)
    epsilon = 1e-5 if name == "swin" else 1e-3
    found = visual_settings(dict(type=name, epsilon=epsilon, activation="gelu_tanh"))
    assert (found.epsilon, found.activation) == (epsilon, "gelu_tanh")
    assert type(found) is TOWERS[name]


@pytest.mark.parametrize(
    "settings, named",
    [
        (dict(type="vit", activation="relu"), "model.patch.activation='relu'"),
        (dict(type="resnet"), "model.patch.type='resnet'"),
        (dict(type="vit", window=7), "model.patch.window"),
        (dict(type="vit", heads=(2, 2)), "model.patch.heads"),
        (dict(type="vit", heads=5), "heads=5"),
        (dict(type="beit", patch=13), "patch=13"),
        (dict(type="swin", heads=4), "model.patch.heads"),
        (dict(type="swin", epsilon=1e-6), "model.patch.epsilon"),
    ],
)
def test_invalid_settings_are_refused(settings, named):
    with pytest.raises(ConfigError, match=named):
        visual_settings(settings)


def test_the_text_tower_takes_an_epsilon():
    for values, expected in (({}, 1e-5), ({"epsilon": None}, 1e-5), ({"epsilon": 1e-3}, 1e-3)):
        assert TextSettings.parse(values).build(11, Compute()).encoder.epsilon == expected


def test_types_add_and_remove_only_their_own_parameters():
    def paths(settings):
        images = np.zeros((2, 36, 36, 3), np.float32)
        return set(flatten_dict(template_of(settings.build(Compute()), images), sep="/"))

    vit, clip, siglip = (
        paths(kind(**SIZE)) for kind in (ViTSettings, ClipSettings, SiglipSettings)
    )
    assert vit - clip == {"patch_embedding/bias"}
    assert clip - vit == {"embedding_norm/scale", "embedding_norm/bias"}
    assert vit - siglip == {"class_token"} and not siglip - vit
    assert ViTSettings(**SIZE).grid == 3


def test_activations():
    x = np.linspace(-4, 4, 9).astype(np.float32)
    expected = x / (1 + np.exp(-1.702 * np.float64(x)))
    np.testing.assert_allclose(ACTIVATIONS["quick_gelu"](jnp.asarray(x)), expected, atol=1e-6)
    inner = np.sqrt(2 / np.pi) * (x + 0.044715 * np.float64(x) ** 3)
    expected = 0.5 * x * (1 + np.tanh(inner))
    np.testing.assert_allclose(ACTIVATIONS["gelu_tanh"](jnp.asarray(x)), expected, atol=1e-6)
    difference = np.abs(ACTIVATIONS["gelu"](x) - ACTIVATIONS["quick_gelu"](x)).max()
    assert 1e-3 < difference < 0.03
