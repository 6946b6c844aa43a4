"""The formula for model FLOPs against what XLA counts in compiled passes and steps."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from rc3_jax.data.example import example_batch
from rc3_jax.models.rc3 import build_rc3
from rc3_jax.observe import flops
from rc3_jax.observe.costs import matrix_flops
from rc3_jax.observe.hlo import parse
from rc3_jax.training.ahead import abstract_run, compile_ahead
from tests.tiny import tiny_config

ROWS = 2
VOCABULARY = 300


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


def part(name, model, rows, ids):
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
def test_forward_passes(name):
    config = small_config()
    model = build_rc3(config.model, VOCABULARY)
    rows, ids = example_batch(config)
    params = jax.eval_shape(model.init, jax.random.key(0), rows, ids)

    def forward(params, rows, ids):
        return nn.apply(lambda model: part(name, model, rows, ids), model)(params)

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
    program = matrix_flops(parse(compiled.as_text())) / ROWS
    # Contractions with a dimension of a few numbers become sums of products.
    assert program == pytest.approx(expected, rel=0.01)
    # XLA counts what is no matrix product too: norms, softmax, GELU, dropout, masks.
    assert 1.0 <= compiled.cost_analysis()["flops"] / ROWS / expected < 1.25


def test_a_step():
    config = small_config()
    rows = {"strict": 8, "weak": 4, "parallel": 4}
    run = abstract_run(config, jax.devices()[:1], rows, VOCABULARY)
    compiled = compile_ahead(run, run.abstract_state(), rows)
    parts = flops.step_flops(config, rows, VOCABULARY)
    expected = sum(part.step for part in parts.values())
    program = matrix_flops(parse(compiled.as_text()))
    print({name: part.step / expected for name, part in parts.items()}, program / expected)
    assert 0.9 < program / expected < 1.1
    assert 0.9 < compiled.cost_analysis()["flops"] / expected < 1.5
