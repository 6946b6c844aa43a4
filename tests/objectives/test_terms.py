"""Declared terms of both systems: sigmoid contrasts by hand; what a weight of 0 leaves out."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rc3_jax.data.record import Skips
from rc3_jax.data.stream import make_batches
from rc3_jax.objectives.contrastive import text_numbers
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


def nce_by_hand(x, y, temperature, same):
    """InfoNCE in both directions, row by row, with all positives of each row."""
    logits = np.float64(x) @ np.float64(y).T / float(temperature)
    losses = []
    for scores in (logits, logits.T):
        logs = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
        losses.append([-logs[i, same[i]].mean() for i in range(len(scores))])
    return np.mean(losses)


@pytest.mark.parametrize("transport", ["gather", "ring", "dense"])
@pytest.mark.parametrize("matches", [True, False])
def test_equal_texts_are_positives_in_a_contrast_of_texts(matches, transport):
    run, batch = prepared("rc3")
    kinds = ("strict", "parallel")
    ids = [np.concatenate([batch[kind][name] for kind in kinds]) for name in ("ids_a", "ids_b")]
    count = len(ids[0])
    ids[0][3], ids[1][5] = ids[1][0], ids[0][1]  # texts of other rows, on either side
    first, *_ = np.cumsum([len(batch[kind]["groups"]) for kind in kinds]).tolist()
    changed = {
        kind: {**batch[kind], "ids_a": jnp.array(ids[0][part]), "ids_b": jnp.array(ids[1][part])}
        for kind, part in zip(kinds, (slice(first), slice(first, None)), strict=True)
    }
    groups = np.concatenate([batch[kind]["groups"] for kind in kinds])
    said = [{tuple(texts[i].tolist()) for texts in ids} for i in range(count)]
    same = np.array([[bool(a & b) and matches for b in said] for a in said])
    assert matches == (same.sum() > count)
    same |= groups[:, None] == groups[None, :]
    config = tiny_config()
    config.objective.weights.update(dict.fromkeys(config.objective.weights, 0.0), xtcl=1.0)
    config.objective.update(equal_texts_match=matches)
    config.objective.pairs.update(transport=transport, tile=3)
    model, params = build_model(config, run.tokenizer.vocab_size, None), run.create_state().params
    loss = system_of(config).loss(model, config, None)
    _, metrics = jax.jit(loss)(params, None, jnp.int32(0), changed)
    vectors = [
        model.apply({"params": params}, jnp.array(texts), method="encode_text")[1] for texts in ids
    ]
    expected = nce_by_hand(*vectors, params["temperature_text_text"], same)
    np.testing.assert_allclose(metrics["xtcl"], expected, rtol=2e-5)


@given(
    texts=st.lists(st.lists(st.integers(2, 6), min_size=1, max_size=5), min_size=1, max_size=8),
    padding=st.integers(0, 4),
)
def test_texts_have_the_same_number_if_and_only_if_they_are_equal(texts, padding):
    ids = np.ones((len(texts), 5), np.int32)
    for row, text in zip(ids, texts, strict=True):
        row[: len(text)] = text
    numbers = np.asarray(
        text_numbers(jnp.array(np.pad(ids, ((0, 0), (0, padding)), constant_values=1)))
    )
    assert np.array_equal(numbers, text_numbers(jnp.array(ids))) and np.all(numbers >= 0)
    equal = np.array([[one == other for other in texts] for one in texts])
    assert np.array_equal(numbers[:, None] == numbers[None, :], equal)


@pytest.mark.slow
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


@pytest.mark.slow
def test_the_true_relevance_of_each_row_is_what_its_proximity_is_compared_with():
    run, batch = prepared("rc3")
    config = tiny_config()
    config.objective.update(relevance="true", regularizer=("weighted", "mse"))
    config.objective.weights.update(
        dict.fromkeys(config.objective.weights, 0.0) | {"xvtcl_weak": 1.0}
    )
    config.objective.scales.mse = 1.0
    loss = jax.jit(system_of(config).loss(run.model, config, None))
    rows = len(batch["weak"]["groups"])

    def metrics(relevance):
        weak = batch["weak"] | {"relevance": jnp.full(rows, relevance, jnp.float32)}
        found = loss(run.create_state().params, None, jnp.int32(100), {"weak": weak})[1]
        return {name: float(value) for name, value in found.items()}

    nothing, half, all_shared = (metrics(relevance) for relevance in (0.0, 0.5, 1.0))
    assert half["mse"] == pytest.approx((nothing["mse"] + all_shared["mse"]) / 2 - 0.25, abs=1e-5)
    assert abs(nothing["mse"] - all_shared["mse"]) > 1e-3
    assert half["xvtcl_weak"] == pytest.approx(all_shared["xvtcl_weak"])  # all rows weigh the same
    assert nothing["xvtcl_weak"] == 0
