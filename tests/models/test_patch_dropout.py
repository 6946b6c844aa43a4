"""Patch dropout: which patches remain, what they hold, where the gradient goes, who refuses it."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rc3_jax.config import model_settings, validate
from rc3_jax.models.compute import Compute
from rc3_jax.models.towers import TOWERS, visual_settings
from rc3_jax.models.vit import drop_patches
from rc3_jax.objectives.microbatch import microbatched
from rc3_jax.settings import ConfigError
from tests.processes import run_python
from tests.tiny import tiny_config
from tests.vision_reference import random_params

SIZE = dict(image_size=36, patch=6, width=20, depth=2, heads=5, mlp_width=30)
PATCHES = 36
IMAGES = np.random.default_rng(2).normal(size=(4, 36, 36, 3)).astype(np.float32)
STYLES = ("vit", "clip", "siglip")


def _tower(style: str, rate: float, **compute):
    return TOWERS[style](**SIZE, patch_dropout=rate).build(Compute(**compute))


def _params(style: str):
    """Random, but the encoder's layers add nothing: the tower returns each token by itself."""
    params = random_params(_tower(style, 0.0), IMAGES)
    layers = params["encoder"]["layers"]
    for part in (layers["self_attention"]["out"], layers["mlp_out"]):
        part.update(jax.tree.map(np.zeros_like, dict(part)))
    return params


def _tokens(tower, params, images, parts: int = 1):
    """Training's tokens of images, in parts that each draw anew."""

    def encode(model):
        return microbatched(model, parts, None, lambda model, x: model(x, False), images)

    return nn.apply(encode, tower)({"params": params}, rngs={"dropout": jax.random.key(1)})


@pytest.mark.parametrize(
    ("patches", "rate", "kept"),
    [(196, 0.5, 98), (36, 0.6, 14), (9, 0.25, 7), (5, 0.99, 1), (4, 0.01, 4)],
)
def test_a_subset_of_the_patches_remains_in_order(patches, rate, kept):
    x = np.arange(20 * patches, dtype=np.float32).reshape(20, patches, 1)
    found = np.asarray(drop_patches(jnp.asarray(x), rate, jax.random.key(patches)))
    assert found.shape == (20, kept, 1)
    places = found[..., 0] - patches * np.arange(20)[:, None]
    assert np.all(np.diff(places, axis=1) > 0)
    assert np.all(np.isin(places, np.arange(patches)))


def test_every_patch_is_as_likely_to_remain():
    x = jnp.broadcast_to(jnp.arange(8.0)[:, None], (4000, 8, 1))
    kept = np.asarray(drop_patches(x, 0.75, jax.random.key(0)))[..., 0].astype(int)
    assert kept.shape == (4000, 2)
    pairs = np.zeros((8, 8))
    np.add.at(pairs, (kept[:, 0], kept[:, 1]), 1)
    chance = 1 / 28  # of each two patches
    deviation = np.sqrt(4000 * chance * (1 - chance))
    assert np.abs(pairs[np.triu_indices(8, 1)] - 4000 * chance).max() < 5 * deviation


@pytest.mark.parametrize(
    ("style", "rate", "kept", "parts", "remat"),
    [
        ("vit", 0.5, 18, 1, "none"),
        ("vit", 0.75, 9, 2, "full"),
        ("clip", 0.6, 14, 1, "dots"),
        ("siglip", 0.5, 18, 2, "none"),
    ],
)
def test_kept_tokens_are_those_of_their_places_and_get_the_gradient(
    style, rate, kept, parts, remat
):
    """Also in micro-batches and with recomputation, which must draw the same patches again."""
    params, weights = _params(style), np.random.default_rng(3).normal(size=(4, kept, 20))

    def functional(images):
        tokens = _tokens(_tower(style, rate, remat=remat), params, images, parts)
        return jnp.sum(weights * tokens[:, 1:]), tokens

    (_, found), gradient = jax.jit(jax.value_and_grad(functional, has_aux=True))(IMAGES)
    whole = np.asarray(jax.jit(_tower(style, rate).apply)({"params": params}, IMAGES))
    assert whole.shape == (4, 1 + PATCHES, 20) and found.shape == (4, 1 + kept, 20)
    same = np.abs(found[:, 1:, None] - whole[:, None, 1:]).max(axis=-1) < 1e-5
    assert np.all(same.sum(axis=2) == 1) and np.all(same.sum(axis=1) <= 1)
    places = same.argmax(axis=2)
    assert np.all(np.diff(places, axis=1) > 0) and len({tuple(row) for row in places}) == 4
    pooled = whole[:, 0] if style != "siglip" else np.mean(found[:, 1:], axis=1)
    np.testing.assert_allclose(found[:, 0], pooled, rtol=0, atol=1e-5)
    pixels = np.abs(gradient).reshape(4, 6, 6, 6, 6, 3).max(axis=(2, 4, 5)).reshape(4, PATCHES)
    np.testing.assert_array_equal(pixels > 0, same.any(axis=1))


@pytest.mark.parametrize("style", STYLES)
def test_only_training_with_a_rate_differs(style):
    """Without a rate, training asks for no randomness; with one, neither parameters nor evaluation
    change."""

    def traced(rate, deterministic):
        tower = _tower(style, rate)
        shapes = jax.eval_shape(tower.init, jax.random.key(0), IMAGES)
        call = functools.partial(tower.apply, deterministic=deterministic)
        return shapes, str(jax.make_jaxpr(call)(shapes, IMAGES))

    assert traced(0.0, True) == traced(0.0, False) == traced(0.5, True)


DEVICES = """
import jax, numpy as np
from rc3_jax.parallel.mesh import from_host
from tests.models.test_patch_dropout import IMAGES, _params, _tokens, _tower
from tests.objectives.tile_cases import mesh_of
params, found = _params("vit"), []
for devices in (1, 2):
    mesh = mesh_of(devices)
    encode = jax.jit(lambda images: _tokens(_tower("vit", 0.5, mesh=mesh), params, images))
    compiled = encode.lower(images := from_host(IMAGES, mesh)).compile()
    assert not any(word in compiled.as_text() for word in ("all-gather", "all-reduce", "all-to-all"))
    found.append(np.asarray(compiled(images)))
np.testing.assert_allclose(*found, rtol=0, atol=1e-6)
"""


def test_two_devices_draw_what_one_draws_and_exchange_nothing():
    run_python(DEVICES, devices=2)


@pytest.mark.parametrize("style", ["beit", "swin"])
def test_other_towers_refuse_it(style):
    with pytest.raises(ConfigError, match="model.patch.patch_dropout"):
        visual_settings(dict(type=style, patch_dropout=0.5))
    config = tiny_config(style)
    with config.unlocked():
        config.model.patch.patch_dropout = 0.5
        with pytest.raises(ConfigError, match=r"no such .* this model\.patch\.type; remove it"):
            validate(config)
        del config.model.patch.patch_dropout
    validate(config)


def test_a_trained_model_is_read_with_all_patches_and_may_start_a_run_without(tmp_path):
    config = tiny_config()
    config.model.roi.regions = 0
    config.model.patch.patch_dropout = 0.5
    stored = validate(config)
    model = model_settings("rc3", stored.model_dump()["model"], tmp_path)
    assert model.patch == stored.model.patch.model_copy(update={"patch_dropout": 0.0})
    (tmp_path / "config.json").write_text(stored.model_dump_json())
    config.init, config.model.patch.patch_dropout = str(tmp_path), 0.0
    assert validate(config).model.patch.patch_dropout == 0.0
