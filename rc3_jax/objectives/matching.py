"""Image-text matching with hard negatives from the whole batch (METHOD.md section 2, ITM)."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.random import threefry_2x32
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from rc3_jax.objectives.contrastive import DENSE
from rc3_jax.objectives.tiles import (
    LOWEST,
    Matrices,
    Softmax,
    Tiling,
    on_devices,
    pair_statistics,
    similarities,
    vary,
    visit,
)
from rc3_jax.parallel.mesh import BATCH


class Rule(NamedTuple):
    """From which candidates negatives are drawn, and how likely each is.

    Attributes:
      floor: added to every probability, so that no candidate is out of the question.
      within: only candidates of the same run of this many rows, such as those of one device; None
        draws from the whole batch.
    """

    floor: float = 0.0
    within: int | None = None


WHOLE_BATCH = Rule()


class Facts(NamedTuple):
    """Of each row of the batch: group, place, and for an anchor the log-sum-exp of its logits."""

    groups: Int[Array, " batch"]
    places: Int[Array, " batch"]
    log_sums: Float[Array, " batch"] | None


def sample_negatives(
    key: PRNGKeyArray,
    anchors: Float[Array, "batch size"],
    candidates: Float[Array, "batch size"],
    temperature: Float[Array, ""],
    groups: Int[Array, " batch"],
    tiling: Tiling = DENSE,
    rule: Rule = WHOLE_BATCH,
) -> Int[Array, " batch"]:
    """Draws one wrong candidate a row, with probability proportional to softmax similarity.

    Gumbel-max over the global batch; candidates of the row's own group are never drawn. The draw
    of a row without any other (see `has_negative`) means nothing. The noise of a pair is a
    function of the key and of the pair's place in the batch: every tiling draws the same.
    """
    words = jax.random.bits(key, (2,), jnp.uint32)
    inputs = jax.lax.stop_gradient((anchors, candidates, temperature))
    facts = _facts(*inputs, groups, tiling, rule)
    if tiling.transport == "dense":
        anchors, candidates, temperature = inputs
        similarity = similarities(anchors, candidates)
        noise = _gumbel_noise(words, facts, facts)
        return jnp.argmax(_log_weights(similarity, temperature, facts, facts, rule) + noise, 1)

    def local(words, temperature, anchors, candidates, facts):
        def fold(rows, columns, valid):
            best, drawn = rows
            y, columns = columns
            similarity = similarities(anchors, y)
            noisy = _log_weights(similarity, temperature, facts, columns, rule)
            noisy = jnp.where(valid, noisy + _gumbel_noise(words, facts, columns), LOWEST)
            highest = noisy.max(axis=1)
            place = columns.places[jnp.argmax(noisy, axis=1)]
            return (jnp.maximum(best, highest), jnp.where(highest > best, place, drawn)), ()

        nothing = vary((jnp.full(len(anchors), -jnp.inf), jnp.zeros(len(anchors), jnp.int32)))
        (_, drawn), () = visit(
            tiling, fold, nothing, (candidates, facts), lambda n: (), lambda a, b: a, lambda a: a
        )
        return drawn

    draw = on_devices(tiling, local, (None, None, BATCH, BATCH, BATCH))
    return draw(words, inputs[2], *inputs[:2], facts)


def negative_weights(
    anchors: Float[Array, "batch size"],
    candidates: Float[Array, "batch size"],
    temperature: Float[Array, ""],
    groups: Int[Array, " batch"],
    rule: Rule = WHOLE_BATCH,
) -> Float[Array, "batch batch"]:
    """What the chances that `sample_negatives` draws with are proportional to, for all pairs."""
    facts = _facts(anchors, candidates, temperature, groups, DENSE, rule)
    logits = _log_weights(similarities(anchors, candidates), temperature, facts, facts, rule)
    return jnp.exp(logits) if rule.floor else jax.nn.softmax(logits)


def _facts(anchors, candidates, temperature, groups, tiling: Tiling, rule: Rule) -> Facts:
    places = jnp.arange(len(groups), dtype=jnp.int32)
    if not rule.floor:
        return Facts(groups, places, None)

    def form(s, temperature, rows, columns):
        return Matrices((Softmax(jnp.where(_near(rows, columns, rule), s / temperature, LOWEST)),))

    sides = pair_statistics(form, tiling, anchors, candidates, temperature, (places, places))
    return Facts(groups, places, sides[0].softmaxes[0][0])


def _near(rows: Array, columns: Array, rule: Rule) -> Bool[Array, "rows columns"]:
    """Whether the rule lets places draw one another."""
    if rule.within is None:
        return jnp.ones((len(rows), len(columns)), bool)
    return rows[:, None] // rule.within == columns[None, :] // rule.within


def _log_weights(
    similarity: Float[Array, "rows columns"], temperature, rows: Facts, columns: Facts, rule: Rule
) -> Float[Array, "rows columns"]:
    """Log of each candidate's chance, but for a constant of the row; `LOWEST` for no chance."""
    logits = similarity / temperature
    if rule.floor:
        logits = jnp.logaddexp(logits - rows.log_sums[:, None], math.log(rule.floor))
    allowed = _near(rows.places, columns.places, rule)
    allowed &= rows.groups[:, None] != columns.groups[None, :]
    return jnp.where(allowed, logits, LOWEST)


def _gumbel_noise(words: Array, rows: Facts, columns: Facts) -> Float[Array, "rows columns"]:
    """Of each pair of places, the same however the batch is cut."""
    shape = (len(rows.places), len(columns.places))
    counters = jnp.stack(jnp.broadcast_arrays(rows.places[:, None], columns.places[None, :]))
    bits = threefry_2x32(words, counters.ravel().astype(jnp.uint32))[: math.prod(shape)]
    uniform = ((bits >> 9).astype(jnp.float32) + 0.5) * 2.0**-23  # exact: never 0 or 1
    return -jnp.log(-jnp.log(uniform.reshape(shape)))


def has_negative(groups: Int[Array, " batch"], within: int | None = None) -> Bool[Array, " batch"]:
    """Whether the batch holds a row outside each row's group; `within` as in `Rule`."""
    runs = groups.reshape(-1, within or len(groups))
    found = jnp.any(runs != runs[:, :1], axis=1, keepdims=True)
    return jnp.broadcast_to(found, runs.shape).reshape(-1)


def matching_loss(
    positive: Float[Array, "batch 2"],
    wrong_image: Float[Array, "batch 2"],
    wrong_text: Float[Array, "batch 2"],
    has_negatives: Bool[Array, " batch"],
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Binary cross-entropy of one positive to two negatives a row, and its accuracy.

    Args:
      positive: logits of the pairs that belong together; class 1 means match.
      wrong_image: logits of each text with a wrong image.
      wrong_text: logits of each image with a wrong text.
      has_negatives: False where the batch offered no wrong image and text; not counted.
    """
    logits = jnp.stack([positive, wrong_image, wrong_text]).astype(jnp.float32)
    valid = jnp.stack([jnp.ones_like(has_negatives), has_negatives, has_negatives])
    labels = jnp.array([1, 0, 0])[:, None]
    log_probability = jax.nn.log_softmax(logits)
    losses = -jnp.where(labels == 1, log_probability[..., 1], log_probability[..., 0])
    right = (jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32)
    count = valid.sum()
    return jnp.sum(losses * valid) / count, jnp.sum(right * valid) / count
