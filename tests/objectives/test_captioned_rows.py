"""RC³ on images with one text: each term against NumPy, pair by pair; other rows lose nothing."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rc3_jax.data.record import Skips
from rc3_jax.data.stream import make_batches
from rc3_jax.data.text import IGNORED
from rc3_jax.data.tokenizer import PAD_ID
from rc3_jax.models.rc3 import RC3
from rc3_jax.objectives import rc3
from rc3_jax.objectives.batching import interleave
from rc3_jax.objectives.matching import sample_negatives
from rc3_jax.training.run import prepare_run
from tests.tiny import tiny_config

KEY = jax.random.key(7)
IMAGES = ("strict", "weak", "captioned")


@functools.cache
def prepared():
    """A run with 8 strict, 4 weak, 4 parallel and 4 captioned rows; its parameters; a batch."""
    config = tiny_config()
    config.batch_size, config.batch_mix.captioned = 20, 1.0
    config.data.sources.scenes.captioned = 64
    run = prepare_run(config)
    batch = dict(make_batches(run.corpus.pools, run.tokenizer, run.config, Skips())[0])
    assert {kind: len(rows["ids_a"]) for kind, rows in batch.items()} == {
        "strict": 8,
        "weak": 4,
        "parallel": 4,
        "captioned": 4,
    }
    assert "ids_b" not in batch["captioned"]
    batch["captioned"]["groups"][1] = batch["strict"]["groups"][2]  # the same picture
    noise = np.random.default_rng(0)
    params = jax.tree.map(
        lambda p: p + noise.normal(0, 0.05, p.shape).astype(p.dtype), run.create_state().params
    )
    return run, params, jax.tree.map(jnp.asarray, batch)


def losses_of(batch):
    run, params, _ = prepared()
    objective = rc3.RC3Objective(same_image_negatives=False, regularizer=("weighted", "hinge"))

    def losses(model, batch):
        return rc3.rc3_losses(model, batch, KEY, objective=objective)[1]

    found = jax.jit(lambda params, batch: nn.apply(losses, run.model)({"params": params}, batch))
    return {name: float(value) for name, value in found(params, batch).items()}


def log_softmax(x):
    x = np.float64(x) - np.max(x, axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def nce(x, y, temperature, groups):
    """METHOD.md section 0, row by row."""
    total = 0.0
    for logits in (np.float64(x) @ np.float64(y).T, np.float64(y) @ np.float64(x).T):
        chances = log_softmax(logits / float(temperature))
        total -= np.mean([row[groups == group].mean() for row, group in zip(chances, groups)])
    return total / 2


def in_order(batch, field, kinds=IMAGES):
    return interleave([batch[kind][field] for kind in kinds])


@pytest.mark.slow
def test_captioned_rows_enter_itc_itm_and_mclm():
    run, params, batch = prepared()
    found = losses_of(batch)

    def call(method, *arguments):
        return run.model.apply({"params": params}, *arguments, method=method)

    def fuse(ids, known, tokens, mask):
        states, _ = call(lambda m, ids, known: m.encode_text(ids, True, known), ids, known)
        return call(lambda m, *x: m.fusion(*x), states, known, tokens, mask)

    names = [name for name in batch["captioned"] if "ids" not in name and "masked" not in name]
    visual = call(RC3.encode_visual, {name: in_order(batch, name) for name in names})
    groups = np.asarray(in_order(batch, "groups"))
    ids = in_order(batch, "ids_a")
    texts = call(RC3.encode_text, ids)[1]
    temperature = params["temperature_image_text"]
    of_a = nce(visual.embedding, texts, temperature, groups)
    two = {name: in_order(batch, name, IMAGES[:2]) for name in names}
    other = call(RC3.encode_text, in_order(batch, "ids_b", IMAGES[:2]))[1]
    images = call(RC3.encode_visual, two).embedding
    of_b = nce(images, other, temperature, np.asarray(two["groups"]))
    assert found["itc"] == pytest.approx((of_a + of_b) / 2, rel=1e-4)

    draw = [
        np.asarray(sample_negatives(jax.random.fold_in(KEY, n), x, y, temperature, groups))
        for n, x, y in ((0, visual.embedding, texts), (1, texts, visual.embedding))
    ]
    wrong_text, wrong_image = draw
    assert not np.any(groups[wrong_text] == groups) and not np.any(groups[wrong_image] == groups)
    losses = []
    for right, text, image in (
        (1, np.arange(16), np.arange(16)),
        (0, wrong_text, np.arange(16)),
        (0, np.arange(16), wrong_image),
    ):
        chosen = ids[text]
        fused = fuse(chosen, chosen != PAD_ID, visual.tokens[image], visual.mask[image])
        losses.append(-log_softmax(call(RC3.match, fused))[:, right])
    assert found["itm"] == pytest.approx(np.mean(losses), rel=1e-4)

    masked, known = in_order(batch, "masked_ids"), ids != PAD_ID
    fused = fuse(masked, known, visual.tokens, visual.mask)
    parallel = batch["parallel"]
    known = parallel["ids_b"] != PAD_ID
    states, _ = call(RC3.encode_text, parallel["ids_b"])
    of_texts = fuse(parallel["masked_ids"], parallel["ids_a"] != PAD_ID, states, known)
    chances, labels = [], []
    for hidden, rows in (
        (fused, {n: in_order(batch, n) for n in ("masked_positions", "masked_labels")}),
        (of_texts, parallel),
    ):
        logits = call(RC3.predict_tokens, hidden, rows["masked_positions"])
        chances.append(log_softmax(logits).reshape(-1, logits.shape[-1]))
        labels.append(np.asarray(rows["masked_labels"]).reshape(-1))
    chances, labels = np.concatenate(chances), np.concatenate(labels)
    counted = labels != IGNORED
    expected = -chances[np.flatnonzero(counted), labels[counted]].mean()
    assert found["mclm"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
def test_terms_of_two_texts_skip_captioned_rows(monkeypatch):
    *_, batch = prepared()
    found = losses_of(batch)
    without = {kind: rows for kind, rows in batch.items() if kind != "captioned"}
    alone = losses_of(without)
    for name in ("xtcl", "xvtcl", "xvtcl_weak", "hinge"):
        assert found[name] == pytest.approx(alone[name], rel=1e-5), name
    for name in ("itc", "itm", "mclm"):
        assert abs(found[name] - alone[name]) > 1e-4, name
    # Where RC³ knows no captioned rows, a batch without them has the same loss.
    monkeypatch.setattr(rc3, "KINDS", ("strict", "weak", "parallel"))
    monkeypatch.setattr(rc3, "IMAGE_TEXT", rc3.IMAGE_TEXT._replace(kinds=("strict", "weak")))
    assert losses_of(without) == alone


@pytest.mark.slow
def test_captioned_rows_alone_train():
    *_, batch = prepared()
    found = losses_of({"captioned": batch["captioned"]})
    assert set(found) == {"loss", "itc", "itm", "mclm", "itm_accuracy", "mclm_accuracy"}
    assert all(np.isfinite(value) for value in found.values())
