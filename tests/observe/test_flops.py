"""The formula for model FLOPs against what is traced and what XLA counts in compiled programs."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from rc3_jax.data.example import abstract_batch, example_batch
from rc3_jax.models.rc3 import build_rc3
from rc3_jax.observe import flops
from rc3_jax.observe.compile_report import FLOPS
from rc3_jax.observe.costs import matrix_flops
from rc3_jax.observe.hlo import parse
from rc3_jax.systems import system_of
from rc3_jax.training.ahead import abstract_run, compile_ahead
from tests.tiny import tiny_cclm, tiny_config

VOCABULARY = 300
ROWS = {"strict": 8, "weak": 4, "parallel": 4}


def small_config():
    """Wide enough for matrix products to outweigh the rest; layers unrolled, as XLA's own count
    takes the body of a loop once.
    """
    config = tiny_config()
    tower = dict(width=128, depth=3, heads=4, mlp_width=512)
    config.model.text.update(tower)
    config.model.patch.update(tower)
    config.model.unroll = 3
    return config


def products(jaxpr) -> float:
    """Multiplications and additions of all matrix products of a traced function."""
    total = 0.0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left, result = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
            total += 2 * math.prod(result) * math.prod(left[axis] for axis in contracted)
        times = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        for value in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                total += times * products(inner)
    return total


@pytest.mark.parametrize(
    ("settings", "rows"),
    [
        ({}, ROWS),
        ({}, {"strict": 8, "weak": 4}),
        ({}, {"weak": 6, "parallel": 2}),
        ({"weights.itc": 0.0, "weights.xtcl": 0.0}, ROWS),
        ({"weights.itm": 0.0}, ROWS),
        ({"weights.itm": 0.0, "same_image_negatives": False}, ROWS),
        ({"weights.mclm": 0.0, "weights.xvtcl": 0.0}, ROWS),
        ({"weights.xvtcl_weak": 0.0, "weights.itm": 0.0}, ROWS),
        ({"regularizer": ("off",), "weights.xvtcl": 0.0, "weights.xtcl": 0.0}, ROWS),
        ({"regularizer": ("soft",)}, ROWS),
        ({"regularizer": ("kl", "mse"), "relevance": "ema"}, ROWS),
    ],
)
def test_every_objective_as_it_is_traced(settings, rows):
    compare_traced(tiny_config(), settings, rows)


CCLM_ROWS = {"captioned": 8, "parallel": 4, "region": 2}


@pytest.mark.parametrize(
    ("settings", "rows"),
    [
        ({}, CCLM_ROWS),
        ({"negative_floor": 1e-5}, CCLM_ROWS),
        ({"weights.image.matching": 0.0, "weights.text.masked_lm": 0.0}, CCLM_ROWS),
        ({"weights.region.box": 0.0, "weights.region.giou": 0.0}, CCLM_ROWS),
        ({}, {"strict": 4, "captioned": 4}),
    ],
)
def test_every_objective_of_cclm_as_it_is_traced(settings, rows):
    compare_traced(tiny_cclm(), settings, rows)


def compare_traced(config, settings, rows):
    config.objective.pairs.transport = "dense"
    with config.unlocked():
        config.objective.update_from_flattened_dict(settings)
    run = abstract_run(config, jax.devices()[:1], rows, VOCABULARY)
    state = run.abstract_state()
    traced = jax.make_jaxpr(system_of(run.config).loss(run.model, run.config, None))(
        state.params, state.ema, state.step, abstract_batch(config, rows)
    )
    parts = FLOPS[config.system](config, rows, VOCABULARY)
    expected = sum(part.forward for part in parts.values())
    assert products(traced.jaxpr) == pytest.approx(expected, rel=1e-9)


def forward_pass(name, model, rows, ids):
    if name == "text":
        return model.encode_text(ids)
    if name == "visual":
        return model.encode_visual(rows)
    visual = model.encode_visual(rows)
    mask = ids != 1
    states = jnp.zeros((*ids.shape, 128))
    fused = model.fusion(states, mask, visual.tokens, visual.mask)
    return model.fused_vector(fused, mask), model.match(fused)


@pytest.mark.parametrize("name", ["text", "visual", "fusion"])
def test_forward_passes_as_they_are_compiled(name):
    config = small_config()
    model = build_rc3(config.model, VOCABULARY)
    rows, ids = example_batch(config)
    params = jax.eval_shape(model.init, jax.random.key(0), rows, ids)

    def forward(params, rows, ids):
        return nn.apply(lambda model: forward_pass(name, model, rows, ids), model)(params)

    compiled = jax.jit(forward).lower(params, rows, ids).compile()
    length = config.data.max_length
    tokens = flops.visual_tokens(config.model)
    visual = flops.patch_flops(config.model) + flops.roi_flops(config.model)
    expected = {
        "text": flops.text_flops(config.model, length),
        "visual": visual,
        "fusion": visual
        - 2 * config.model.patch.width * config.model.projection_size  # v is not asked for
        + flops.fusion_flops(config.model, length, tokens)
        + flops.readout_flops(config.model, length),
    }[name]
    program = matrix_flops(parse(compiled.as_text())) / len(ids)
    # Contractions over a few numbers become sums of products, below 1 % of these passes.
    assert program == pytest.approx(expected, rel=0.01)
    # XLA counts norms, softmax, GELU and masks too: per token and layer some hundred operations
    # a number of the width, where products take 24 x width.
    assert 1.0 <= compiled.cost_analysis()["flops"] / len(ids) / expected < 1.25


@pytest.mark.slow
@pytest.mark.slow
def test_a_step_as_it_is_compiled():
    config = small_config()
    run = abstract_run(config, jax.devices()[:1], ROWS, VOCABULARY)
    compiled = compile_ahead(run, run.abstract_state(), ROWS)
    parts = flops.step_flops(config, ROWS, VOCABULARY)
    expected = sum(part.step for part in parts.values())
    # The program needs no gradient of pixels and features (the formula counts it, below 2 %), and
    # computes logits and similarities again for theirs (it counts that not, below 1 %).
    assert matrix_flops(parse(compiled.as_text())) == pytest.approx(expected, rel=0.03)
    assert 1.0 <= compiled.cost_analysis()["flops"] / expected < 1.4
