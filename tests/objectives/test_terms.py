"""Declared terms of both systems: sigmoid contrasts by hand; what a weight of 0 leaves out."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rc3_jax.data.record import Skips
from rc3_jax.data.stream import make_batches
from rc3_jax.systems import build_model, system_of
from rc3_jax.training.run import prepare_run
from tests.tiny import tiny_cclm, tiny_config

MAKE = {"rc3": tiny_config, "cclm": tiny_cclm}


@functools.cache
def prepared(system):
    """The opened run, and a batch in which each second row is about the same as the one before."""
    run = prepare_run(MAKE[system]())
    batch = make_batches(run.corpus.pools, run.tokenizer, run.config, Skips())[0]
    for fields in batch.values():
        numbers = np.arange(fields["groups"].size, dtype=np.int32).reshape(fields["groups"].shape)
        fields["groups"] = numbers // 2
    return run, jax.tree.map(jnp.asarray, dict(batch))


def compiled(system, weights, **objective):
    """The compiled gradient of a loss in which only some terms have a weight, and its results."""
    run, batch = prepared(system)
    config = MAKE[system]()
    settings = config.objective
    groups = settings.weights.values() if system == "cclm" else [settings.weights]
    for group in groups:
        group.update(dict.fromkeys(group, 0.0))
    settings.weights.update_from_flattened_dict(weights)
    settings.update_from_flattened_dict(objective)
    model = build_model(config, run.tokenizer.vocab_size, None)
    rng = np.random.default_rng(0)
    params = run.create_state().params
    params = jax.tree.map(lambda p: p + rng.normal(0, 0.05, p.shape).astype(p.dtype), params)
    names = [name for name in params if name.startswith("temperature")]
    if objective.get("contrast") == "sigmoid":
        params |= {f"{name}_bias": jnp.float32(-1.5) for name in names}
    loss = system_of(config).loss(model, config, None)
    arguments = (params, None, jnp.int32(0), batch)
    program = jax.jit(jax.value_and_grad(loss, has_aux=True)).lower(*arguments).compile()
    (_, metrics), gradient = program(*arguments)
    return model, params, batch, program, metrics, gradient


def sigmoid_by_hand(x, y, temperature, bias, groups):
    """Zhai et al., arXiv 2303.15343, equation 1, pair by pair."""
    logits = np.float64(x) @ np.float64(y).T / float(temperature) + float(bias)
    same = np.where(groups[:, None] == groups[None, :], 1, -1)
    return np.log1p(np.exp(-same * logits)).sum(axis=1).mean()


@pytest.mark.parametrize("transport", ["gather", "ring", "dense"])
@pytest.mark.parametrize(
    ("system", "weights", "term", "kinds"),
    [
        ("rc3", {"xtcl": 1.0}, "xtcl", ("strict", "parallel")),
        ("cclm", {"text.contrast": 1.0}, "ttc", ("parallel",)),
    ],
)
def test_a_sigmoid_contrast_equals_all_pairs_by_hand(system, weights, term, kinds, transport):
    pairs = {"pairs.transport": transport, "pairs.tile": 3}
    model, params, batch, _, metrics, gradient = compiled(
        system, weights, contrast="sigmoid", **pairs
    )
    name = "temperature_text_text" if system == "rc3" else "temperature"
    groups = np.concatenate([batch[kind]["groups"] for kind in kinds])
    vectors = [
        model.apply(
            {"params": params},
            jnp.concatenate([batch[kind][field] for kind in kinds]),
            method="encode_text",
        )[1]
        for field in ("ids_a", "ids_b")
    ]
    expected = sigmoid_by_hand(*vectors, params[name], params[f"{name}_bias"], groups)
    np.testing.assert_allclose(metrics[term], expected, rtol=2e-5)
    assert abs(float(gradient[f"{name}_bias"])) > 1e-3


@pytest.mark.parametrize(
    ("weights", "present", "absent"),
    [
        ({"text.contrast": 1.0}, {"text"}, {"vision", "fusion", "masked_lm_head"}),
        ({"image.matching": 1.0}, {"vision", "fusion", "matching_head"}, {"masked_lm_head"}),
        ({"region.box": 1.0}, {"vision", "fusion", "box_head"}, {"matching_head", "decoder"}),
    ],
)
def test_a_weight_of_0_leaves_a_term_of_cclm_out_of_the_program(weights, present, absent):
    *_, program, metrics, gradient = compiled("cclm", weights)
    parts = {part for part, tree in gradient.items() if any(map(np.any, jax.tree.leaves(tree)))}
    assert present <= parts and not absent & parts
    assert len([name for name in metrics if not name.endswith(("loss", "_accuracy"))]) == 1
    everything = compiled("cclm", {name: 1.0 for name in ALL})[3]
    assert program.cost_analysis()["flops"] < 0.5 * everything.cost_analysis()["flops"]


ALL = (
    *(f"image.{name}" for name in ("contrast", "matching", "masked_lm")),
    *(f"text.{name}" for name in ("contrast", "matching", "masked_lm")),
    *(f"region.{name}" for name in ("contrast", "matching", "masked_lm", "box", "giou")),
)
