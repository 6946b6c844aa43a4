"""Styles, options and activations of the patch tower.

Values and gradients are compared with those of Hugging Face in tests/convert.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from rc3_jax.config import ConfigError, default_config
from rc3_jax.config_cclm import cclm_config
from rc3_jax.models.cclm import build_cclm
from rc3_jax.models.layers import ACTIVATIONS, Stack
from rc3_jax.models.patch import PatchTower
from rc3_jax.models.rc3 import build_rc3
from rc3_jax.models.towers import build_visual_tower
from tests.vision_reference import template_of

SIZE = dict(image_size=36, patch=12, width=20)
DEPTH, HEADS, MLP_WIDTH = 2, 5, 30


def _images() -> np.ndarray:
    return np.random.default_rng(2).normal(size=(2, 36, 36, 3)).astype(np.float32)


def _tower(activation: str = "quick_gelu", **options) -> PatchTower:
    encoder = Stack(DEPTH, HEADS, MLP_WIDTH, True, 1e-5, activation=activation)
    return PatchTower(encoder, **SIZE, **options)


def _config(name: str, **settings):
    """`config.model` for a tower of that type."""
    config = default_config().model
    config.update(dtype="float32", dropout=0.0)
    sizes = dict(depth=DEPTH, heads=HEADS, mlp_width=MLP_WIDTH, drop_path=0.0)
    config.patch.update(type=name, **SIZE, **sizes, **settings)
    return config


@pytest.mark.parametrize(
    "name, style",
    [
        ("vit", (1e-12, "gelu")),
        ("clip", (1e-5, "quick_gelu")),
        ("siglip", (1e-6, "gelu_tanh")),
        ("beit", (1e-6, "gelu")),
    ],
)
def test_each_type_has_a_style_of_its_own_unless_settings_name_another(name, style):
    def found(config):
        tower = build_visual_tower(config)
        part = tower if name == "beit" else tower.encoder
        return part.epsilon, part.activation

    assert found(_config(name)) == style
    config = _config(name, epsilon=1e-3, activation="gelu_tanh")
    assert found(config) == (1e-3, "gelu_tanh")
    for setting in ("epsilon", "activation"):  # of runs that were stored before
        del config.patch[setting]
    assert found(config) == style


def test_styles_that_cannot_be_are_refused():
    with pytest.raises(ConfigError, match=r"patch.activation='relu': use one of gelu, gelu_tanh"):
        build_visual_tower(_config("vit", activation="relu"))
    swin = cclm_config().model
    swin.patch.update(epsilon=1e-5)
    build_visual_tower(swin)
    swin.patch.update(epsilon=1e-6)
    with pytest.raises(ConfigError, match="leave model.patch.epsilon"):
        build_visual_tower(swin)


def test_the_text_tower_takes_an_epsilon():
    for config, build in ((default_config(), build_rc3), (cclm_config(), build_cclm)):
        for epsilon, expected in ((None, 1e-5), (1e-3, 1e-3)):
            config.model.text.epsilon = epsilon
            model = build(config.model, 11)
            assert (model.text.encoder.epsilon, model.fusion.epsilon) == (expected, 1e-5)
        del config.model.text["epsilon"]
        assert build(config.model, 11).text.encoder.epsilon == 1e-5


def test_options_add_and_remove_only_their_own_parameters():
    def paths(**options):
        return set(flatten_dict(template_of(_tower(**options), _images()), sep="/"))

    plain = paths()
    assert paths(activation="gelu") == plain
    assert plain - paths(patch_bias=False) == {"patch_embedding/bias"}
    assert paths(norm_first=True) - plain == {"embedding_norm/scale", "embedding_norm/bias"}
    assert plain - paths(class_token=False) == {"class_token"}
    assert _tower().grid == 3


def test_activations():
    x = np.linspace(-4, 4, 9).astype(np.float32)
    expected = x / (1 + np.exp(-1.702 * np.float64(x)))
    np.testing.assert_allclose(ACTIVATIONS["quick_gelu"](jnp.asarray(x)), expected, atol=1e-6)
    inner = np.sqrt(2 / np.pi) * (x + 0.044715 * np.float64(x) ** 3)
    expected = 0.5 * x * (1 + np.tanh(inner))
    np.testing.assert_allclose(ACTIVATIONS["gelu_tanh"](jnp.asarray(x)), expected, atol=1e-6)
    difference = np.abs(ACTIVATIONS["gelu"](x) - ACTIVATIONS["quick_gelu"](x)).max()
    assert 1e-3 < difference < 0.03
