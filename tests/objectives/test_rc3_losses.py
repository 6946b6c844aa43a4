"""The sum of objectives against a slow one: one pass at a time, nothing joined or shared."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rc3_jax.data.text import IGNORED
from rc3_jax.data.tokenizer import PAD_ID
from rc3_jax.models.rc3 import RC3
from rc3_jax.objectives.batching import interleave
from rc3_jax.objectives.contrastive import info_nce
from rc3_jax.objectives.matching import has_negative, matching_loss, sample_negatives
from rc3_jax.objectives.rc3 import RC3Objective, rc3_losses
from rc3_jax.objectives.relevance import ScaleSettings, debiased, weak_contrast
from tests.training.test_step import prepared

PAIRS = ("strict", "weak")


def slow_losses(model, params, batch, key):
    """Every term of METHOD.md section 2 from separate calls of the model, kind by kind."""

    def call(method, *arguments):
        return model.apply({"params": params}, *arguments, method=method)

    def fuse(ids, tokens, mask):
        states, _ = call(RC3.encode_text, ids)
        return call(lambda m, *x: m.fusion(*x), states, ids != PAD_ID, tokens, mask)

    def z(fused, ids):
        return call(RC3.fused_vector, fused, ids != PAD_ID)

    def both(field):
        return jnp.concatenate([batch[kind][field] for kind in PAIRS])

    tau = {name: params[f"temperature_{name}"] for name in ("image_text", "text_text", "fused")}
    rows = {name: both(name) for name in batch["weak"] if "ids" not in name}
    visual = call(RC3.encode_visual, rows)
    ids_a, ids_b, groups = both("ids_a"), both("ids_b"), both("groups")
    vector = {k: call(RC3.encode_text, ids)[1] for k, ids in (("a", ids_a), ("b", ids_b))}
    terms = {
        "itc": sum(
            info_nce(visual.embedding, vector[v], tau["image_text"], groups) / 2 for v in ("a", "b")
        )
    }
    aligned = [
        jnp.concatenate([batch[kind][name] for kind in ("strict", "parallel")])
        for name in ("ids_a", "ids_b", "groups")
    ]
    t_a, t_b = (call(RC3.encode_text, ids)[1] for ids in aligned[:2])
    terms["xtcl"] = info_nce(t_a, t_b, tau["text_text"], aligned[2])

    # The draws belong to rows in joined order; `order` tells where each stands here.
    strict = len(batch["strict"]["ids_a"])
    order = interleave([jnp.arange(strict), strict + jnp.arange(len(batch["weak"]["ids_a"]))])
    back = jnp.argsort(order)

    def drawn(number, anchors, candidates):
        chosen = sample_negatives(
            jax.random.fold_in(key, number),
            anchors[order],
            candidates[order],
            tau["image_text"],
            groups[order],
        )
        return order[chosen][back]

    exists = has_negative(groups)
    wrong_text = drawn(0, visual.embedding, vector["a"])
    wrong_image = drawn(1, vector["a"], visual.embedding)
    fused_a, fused_b = (fuse(ids, visual.tokens, visual.mask) for ids in (ids_a, ids_b))
    fused_wrong = fuse(ids_a[wrong_text], visual.tokens, visual.mask)
    fused_image = fuse(ids_a, visual.tokens[wrong_image], visual.mask[wrong_image])
    logits = (call(RC3.match, fused) for fused in (fused_a, fused_image, fused_wrong))
    terms["itm"] = matching_loss(*logits, exists)[0]

    z_a, z_b = z(fused_a, ids_a), z(fused_b, ids_b)
    z_wrong = z(fused_wrong, ids_a[wrong_text])
    same = [jnp.where(exists, jnp.sum(x * z_wrong, axis=1), -1e9) for x in (z_a, z_b)]
    head, tail = slice(0, strict), slice(strict, None)
    terms["xvtcl"] = info_nce(
        z_a[head], z_b[head], tau["fused"], groups[head], same_image=[s[head] for s in same]
    )
    texts = debiased(vector["a"][tail], vector["b"][tail])
    terms |= weak_contrast(
        ("weighted", "hinge"),
        z_a[tail],
        z_b[tail],
        texts,
        jnp.sum(texts[0] * texts[1], axis=1),
        tau["fused"],
        None,
        groups[tail],
        [s[tail] for s in same],
        ScaleSettings(),
    )

    parallel = batch["parallel"]
    other, _ = call(RC3.encode_text, parallel["ids_b"])
    masked = [
        (fuse(both("masked_ids"), visual.tokens, visual.mask), rows),
        (fuse(parallel["masked_ids"], other, parallel["ids_b"] != PAD_ID), parallel),
    ]
    logits = jnp.concatenate(
        [call(RC3.predict_tokens, f, r["masked_positions"]) for f, r in masked]
    )
    labels = jnp.concatenate([r["masked_labels"] for _, r in masked])
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(labels, 0))
    terms["mclm"] = jnp.sum(losses * (labels != IGNORED)) / jnp.sum(labels != IGNORED)
    return terms


@pytest.mark.slow
def test_all_terms_equal_those_of_separate_passes():
    run, drawn, batch = prepared()

    def fast(params, key):
        def losses(model, batch):
            return rc3_losses(
                model, batch, key, objective=RC3Objective(regularizer=("weighted", "hinge"))
            )

        return nn.apply(losses, run.model)({"params": params}, batch)

    def slow(params, key):
        terms = slow_losses(run.model, params, batch, key)
        return sum(terms.values()), terms

    fast, slow = (jax.jit(jax.value_and_grad(f, has_aux=True)) for f in (fast, slow))
    for seed in (0, 1):
        rng, key = np.random.default_rng(seed), jax.random.key(seed)
        params = jax.tree.map(
            lambda p, rng=rng: p + 0.02 * rng.normal(size=p.shape).astype(np.float32), drawn
        )
        (total, terms), gradient = fast(params, key)
        (expected, by_term), by_hand = slow(params, key)
        for name, value in by_term.items():
            np.testing.assert_allclose(terms[name], value, rtol=1e-5, atol=1e-6, err_msg=name)
        np.testing.assert_allclose(total, expected, rtol=1e-5)
        largest = max(float(jnp.abs(g).max()) for g in jax.tree.leaves(by_hand))
        for ours, theirs in zip(jax.tree.leaves(gradient), jax.tree.leaves(by_hand), strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-5 * largest)
