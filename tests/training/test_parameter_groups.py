"""Which parameters decay, and which learn at the rate of new ones, whatever the tower."""

from __future__ import annotations

import jax
import pytest
from flax.traverse_util import flatten_dict

from rc3_jax.config import validate
from rc3_jax.models.towers import TOWERS
from rc3_jax.parallel.rules import matches
from rc3_jax.systems import build_model
from rc3_jax.tasks.config import finetune_config
from rc3_jax.training.optimizer import OptimizerSettings, make_optimizer
from rc3_jax.training.state import initial_params
from tests.tiny import SIZES, tiny_cclm, tiny_config

NEVER = ("bias", "norm", "scale", "position", "type", "token", "query", "temperature")
"""Last parts of the names of what is no matrix, or words within them."""


def configured(system: str, tower: str):
    """A small configuration with a tower of the type, and learned biases of the contrasts."""
    config = tiny_cclm() if system == "cclm" else tiny_config("swin" if tower == "swin" else "vit")
    if config.model.patch.type != tower:
        changes = dict(SIZES, depth=2, image_size=32, patch=8) if tower != "swin" else {}
        with config.ignore_type(), config.unlocked():
            config.model.patch = TOWERS[tower](**changes).config_dict()
    config.objective.contrast = "sigmoid"
    if system == "cclm":
        config.model.tied_decoder = False
    return validate(config)


@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("system", ["rc3", "cclm"])
def test_kernels_and_word_embeddings_alone_decay(system, tower):
    config = configured(system, tower)
    params = jax.eval_shape(lambda: initial_params(build_model(config, 50, None), config))
    names = list(flatten_dict(params, sep="/"))
    decaying = {name for name in names if not matches(config.optimizer.no_decay, name)}
    expected = {n for n in names if n.endswith(("/kernel", "word_embedding/embedding"))}
    assert decaying == expected | ({"decoder"} & set(names))
    for name in decaying:
        assert not any(word in name.rpartition("/")[2] for word in NEVER)
    for name in set(names) - decaying:
        assert any(word in name for word in NEVER)
    make_optimizer(config.optimizer, 10, params)  # every pattern matches a parameter


@pytest.mark.parametrize("tower", TOWERS)
def test_what_pre_trained_towers_do_not_bring_is_new(tower):
    config = configured("rc3", tower)
    params = jax.eval_shape(lambda: initial_params(build_model(config, 50, None), config))
    patterns = config.optimizer.lr_multipliers["new"].parameters
    new = {name for name in flatten_dict(params, sep="/") if matches(patterns, name)}
    for name in flatten_dict(params, sep="/"):
        part = name.partition("/")[0]
        pre_trained = part in ("text", "patch", "masked_lm_head", "word_bias")
        learned_scalar = part.startswith("temperature")
        assert (name in new) == (not pre_trained and not learned_scalar), name
    assert {"visual_type", "fusion/layers/mlp_in/kernel", "roi/feature_embedding/kernel"} <= new


def test_a_model_without_regions_has_new_parameters_too():
    config = tiny_config()
    config.model.roi.regions = 0
    settings = validate(config)
    params = jax.eval_shape(lambda: initial_params(build_model(settings, 50, None), settings))
    make_optimizer(settings.optimizer, 10, params)


def test_fine_tuning_has_the_same_rule():
    tuning = OptimizerSettings.parse(finetune_config("xvnli").optimizer)
    assert tuning.no_decay == OptimizerSettings().no_decay
