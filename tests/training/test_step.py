"""The compiled step: which terms it holds, what it calls, how the state moves."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rc3_jax.data.record import Skips
from rc3_jax.data.shapes import abstract_batch
from rc3_jax.data.stream import make_batches
from rc3_jax.parallel.mesh import to_global
from rc3_jax.systems import system_of
from rc3_jax.training.run import prepare_run
from rc3_jax.training.step import clamp_temperatures
from tests.tiny import tiny_cclm, tiny_config

TERMS = ("itc", "xtcl", "xvtcl", "xvtcl_weak", "itm", "mclm")


@functools.cache
def prepared(batch_size=16):
    config = tiny_config()
    config.batch_size = batch_size
    run = prepare_run(config)
    batches = make_batches(run.corpus.pools, run.tokenizer, run.config, Skips())
    params = run.create_state().params
    return run, params, to_global(batches[0], run.mesh)


@functools.cache
def compiled_gradient(**changes):
    """The compiled loss and gradient, and their values, with some settings of the objective changed.

    Args:
      changes: weights of terms, those not named being 0, and other settings.
    """
    run, params, batch = prepared()
    config = tiny_config()
    config.objective.weights = {term: changes.pop(term, 0.0) for term in TERMS}
    config.objective.update(changes)
    config.objective.ramp = 0.0
    ema = {part: params[part] for part in ("text", "text_projection")}
    ema = ema if config.objective.relevance == "ema" else None
    gradient = jax.jit(
        jax.value_and_grad(system_of(config).loss(run.model, config, None), has_aux=True)
    )
    compiled = gradient.lower(params, ema, jnp.int32(5), batch).compile()
    (loss, terms), gradients = compiled(params, ema, jnp.int32(5), batch)
    return compiled, float(loss), {k: float(v) for k, v in terms.items()}, gradients


@pytest.mark.slow
def test_the_loss_is_the_weighted_sum_of_its_terms():
    chosen = dict(itc=1.0, xtcl=0.5, xvtcl=2.0, xvtcl_weak=0.25, itm=3.0, mclm=1.5)
    _, loss, terms, gradients = compiled_gradient(**chosen)
    factors = chosen | {"hinge": 0.25}
    assert loss == pytest.approx(sum(factors[name] * terms[name] for name in factors), rel=1e-5)
    idle = [
        jax.tree_util.keystr(path)
        for path, leaf in jax.tree_util.tree_leaves_with_path(gradients)
        if not np.any(leaf)
    ]
    # All scenes bring detector features, so nothing learns to do without them.
    assert all("aligned_embedding" in name for name in idle), idle


@pytest.mark.slow
@pytest.mark.parametrize(
    ("term", "present", "absent"),
    [
        ("itc", {"text", "patch", "roi"}, {"fusion", "matching_head", "masked_lm_head"}),
        ("xtcl", {"text", "text_projection"}, {"patch", "roi", "fusion", "image_projection"}),
        (
            "xvtcl",
            {"fusion", "fused_pool", "patch"},
            {"matching_head", "masked_lm_head", "word_bias"},
        ),
        ("itm", {"fusion", "matching_head", "patch"}, {"fused_pool", "masked_lm_head"}),
        ("mclm", {"fusion", "masked_lm_head", "patch"}, {"matching_head", "fused_pool"}),
    ],
)
def test_weight_zero_leaves_a_term_out_of_the_compiled_step(term, present, absent):
    compiled, loss, terms, gradients = compiled_gradient(**{term: 1.0})
    assert {name for name in terms if name in TERMS} == {term}
    assert loss == pytest.approx(terms[term])
    touched = {part for part, tree in gradients.items() if any(map(np.any, jax.tree.leaves(tree)))}
    assert present <= touched
    assert not absent & touched
    everything = compiled_gradient(**dict.fromkeys(TERMS, 1.0))[0]
    assert compiled.cost_analysis()["flops"] < 0.8 * everything.cost_analysis()["flops"]


def test_regularizer_off_leaves_weak_rows_out_of_the_contrast():
    off = compiled_gradient(xvtcl_weak=1.0, itc=1.0, regularizer=("off",))
    plain = compiled_gradient(itc=1.0)
    assert off[1] == pytest.approx(plain[1])
    assert off[0].cost_analysis()["flops"] == plain[0].cost_analysis()["flops"]


@pytest.mark.slow
def test_relevance_may_come_from_the_averaged_text_tower():
    # Debiased, the relevances of an untrained tower are differences of nearly equal numbers.
    own = compiled_gradient(xvtcl_weak=1.0, debias_relevance=False)
    ema = compiled_gradient(xvtcl_weak=1.0, debias_relevance=False, relevance="ema")
    # The average starts as a copy of the tower, so the values agree.
    assert ema[1] == pytest.approx(own[1], rel=1e-5)


@pytest.mark.slow
def test_the_contrast_of_weak_rows_may_train_the_read_out_alone():
    every = compiled_gradient(xvtcl_weak=1.0)
    alone = compiled_gradient(xvtcl_weak=1.0, weak_gradient="readout")
    assert alone[1] == pytest.approx(every[1], rel=1e-6)
    touched = {part for part, tree in alone[3].items() if any(map(np.any, jax.tree.leaves(tree)))}
    assert touched == {"fused_pool", "fused_projection", "temperature_fused"}
    for part in touched:
        for left, right in zip(
            *map(jax.tree.leaves, (alone[3][part], every[3][part])), strict=True
        ):
            np.testing.assert_allclose(left, right, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_same_image_negatives_can_be_left_out():
    with_them = compiled_gradient(xvtcl=1.0)
    without = compiled_gradient(xvtcl=1.0, same_image_negatives=False)
    assert without[1] < with_them[1]
    flops = [made[0].cost_analysis()["flops"] for made in (without, with_them)]
    assert flops[0] < flops[1]


def test_the_step_stays_on_its_devices_and_moves_the_state():
    run, _, batch = prepared()
    state = run.create_state()
    before = jax.tree.map(np.array, state.params)
    lines = []
    step = run.train_step()
    step.compile(batch, lines.append)
    assert "memory a device" in lines[-1]
    text = step.lower(batch).compile().as_text()
    for word in ("callback", "outfeed", "infeed", "SendDone", "RecvDone"):
        assert word not in text
    state, metrics = step(state, batch)
    assert int(state.step) == 1
    assert all(np.isfinite(value) for value in metrics.values())
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), before, state.params)
    assert all(jax.tree.leaves(moved["text"]))
    state, again = step(state, batch)
    assert float(again["loss"]) != float(metrics["loss"])


def test_temperatures_stay_in_their_range():
    params = {"temperature_fused": jnp.float32(-3), "text": {"bias": jnp.float32(-3)}}
    clamped = clamp_temperatures(params)
    assert float(clamped["temperature_fused"]) == pytest.approx(0.001)
    assert float(clamped["text"]["bias"]) == -3
    assert clamp_temperatures({"temperature_fused": jnp.float32(3)})["temperature_fused"] == 0.5


def test_an_abstract_batch_has_the_shapes_and_types_of_a_read_one():
    run, _, batch = prepared()
    rows = {kind: len(fields["groups"]) for kind, fields in batch.items()}
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), batch)
    assert abstract_batch(run.config, rows) == shapes


@pytest.mark.slow
@pytest.mark.parametrize("make", [tiny_config, tiny_cclm])
def test_sigmoid_contrasts_learn_a_bias_each(make):
    config = make()
    config.objective.contrast = "sigmoid"
    run = prepare_run(config)
    batches = make_batches(run.corpus.pools, run.tokenizer, run.config, Skips())
    batch, state, step = to_global(batches[0], run.mesh), run.create_state(), run.train_step()
    biases = {name: value for name, value in state.params.items() if name.endswith("_bias")}
    biases.pop("word_bias")
    assert {name.removesuffix("_bias") for name in biases} == {
        name for name in state.params if name.startswith("temperature") and name not in biases
    }
    assert all(float(value) == -10 for value in biases.values())
    losses = []
    for _ in range(6):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < losses[0]
    assert any(float(state.params[name]) != -10 for name in biases)
