"""The published recipe: parameter counts, and the optimizer's groups as published."""

from __future__ import annotations

import math

import jax
import numpy as np
import pytest

from rc3_jax.config_cclm import MODELS, PUBLISHED_NO_DECAY, cclm_config
from rc3_jax.convert.cclm import layout_of
from rc3_jax.models.cclm import build_cclm
from rc3_jax.parallel.rules import matches
from rc3_jax.training.optimizer import make_optimizer
from tests.parity.recordings import template_of
from tests.tiny import load_config

XLM_R_VOCABULARY = 250_002
NEW = ("temp", "text_proj", "vision_proj", "itm_head", "bbox_head")


def _template(name: str):
    config = cclm_config(name)
    return config, template_of(build_cclm(config.model, XLM_R_VOCABULARY), config)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("cclm_3m", 525_677_393),
        ("cclm_4m", 525_677_393),
        ("cclm_x2vlm_base", 615_540_825),
        ("cclm_x2vlm_large", 1_225_073_817),
    ],
)
def test_full_models_have_the_published_number_of_parameters(name, count):
    _, template = _template(name)
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(template)) == count


def _published_group(name: str) -> tuple[float, float]:
    """(factor of the rate, weight decay) of a published parameter, as CCLM.md section 4.2 has it."""
    new = "crossattention" in name or name.startswith(NEW)
    kept = ("bias", "LayerNorm.", "norm.", "norm1.", "norm2.")
    return 2.0 if new else 1.0, 0.0 if any(part in name for part in kept) else 0.01


def test_every_parameter_is_in_its_published_group():
    config = cclm_config("cclm_3m")
    config.optimizer.no_decay = PUBLISHED_NO_DECAY
    config.model.text.update(width=32, heads=2, mlp_width=8, max_positions=9)
    config.model.patch.update(
        image_size=32, width=4, depths=(1, 2, 1, 1), heads=(1, 1, 2, 2), window=2
    )
    template = template_of(build_cclm(config.model, 11), config)
    (rate,) = config.optimizer.lr_multipliers.values()

    def group(path) -> tuple[float, float]:
        name = "/".join(key.key for key in path)
        factor = rate.factor if matches(rate.parameters, name) else 1.0
        return factor, 0.0 if matches(config.optimizer.no_decay, name) else 0.01

    for part in (0, 1):
        # Each parameter becomes an array of its group's number, and gets its published name.
        numbers = jax.tree_util.tree_map_with_path(
            lambda path, leaf, part=part: np.full(leaf.shape, group(path)[part]), template
        )
        for name, value in layout_of(config.model).names.to_theirs(numbers).items():
            assert np.all(value == _published_group(name)[part]), name


def test_the_optimizer_takes_the_settings_of_all_models():
    for name in MODELS:
        config = load_config(name, "root=/data")
        _, template = _template(name)
        optimizer = make_optimizer(config.optimizer, config.steps, template, updates=2)
        moments = jax.eval_shape(optimizer.init, template)
        shapes = [leaf.shape for leaf in jax.tree.leaves(moments) if leaf.shape]
        matrices = [leaf.shape for leaf in jax.tree.leaves(template) if leaf.shape]
        assert sorted(shapes) == sorted(2 * matrices)
