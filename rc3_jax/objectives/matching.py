"""Image-text matching with hard negatives from the whole batch (METHOD.md section 2, ITM)."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax.extend.random import threefry_2x32
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from rc3_jax.objectives.contrastive import DENSE
from rc3_jax.objectives.tiles import LOWEST, Tiling, on_devices, similarities, vary, visit
from rc3_jax.parallel.mesh import BATCH


def sample_negatives(
    key: PRNGKeyArray,
    anchors: Float[Array, "batch size"],
    candidates: Float[Array, "batch size"],
    temperature: Float[Array, ""],
    groups: Int[Array, " batch"],
    tiling: Tiling = DENSE,
) -> Int[Array, " batch"]:
    """Draws one wrong candidate a row, with probability proportional to softmax similarity.

    Gumbel-max over the global batch; candidates of the row's own group are never drawn. The draw
    of a row without any other (see `has_negative`) means nothing. The noise of a pair is a
    function of the key and of the pair's place in the batch: every tiling draws the same.
    """
    words = jax.random.bits(key, (2,), jnp.uint32)
    places = jnp.arange(len(anchors), dtype=jnp.int32)
    inputs = jax.lax.stop_gradient((anchors, candidates, temperature))
    if tiling.transport == "dense":
        anchors, candidates, temperature = inputs
        facts = (groups, places)
        return jnp.argmax(_noisy_logits(words, temperature, anchors, candidates, facts, facts), 1)

    def local(words, temperature, anchors, candidates, facts):
        def fold(rows, columns, valid):
            best, drawn = rows
            y, columns = columns
            noisy = _noisy_logits(words, temperature, anchors, y, facts, columns)
            noisy = jnp.where(valid, noisy, LOWEST)
            highest = noisy.max(axis=1)
            place = columns[1][jnp.argmax(noisy, axis=1)]
            return (jnp.maximum(best, highest), jnp.where(highest > best, place, drawn)), ()

        nothing = vary((jnp.full(len(anchors), -jnp.inf), jnp.zeros(len(anchors), jnp.int32)))
        (_, drawn), () = visit(
            tiling, fold, nothing, (candidates, facts), lambda n: (), lambda a, b: a, lambda a: a
        )
        return drawn

    draw = on_devices(tiling, local, (None, None, BATCH, BATCH, BATCH))
    return draw(words, inputs[2], *inputs[:2], (groups, places))


def _noisy_logits(words, temperature, x, y, rows, columns) -> Float[Array, "rows columns"]:
    """Logits with Gumbel noise, `LOWEST` within a group; facts are groups and places."""
    groups, places = zip(rows, columns, strict=True)
    shape = (len(x), len(y))
    counters = jnp.stack(jnp.broadcast_arrays(places[0][:, None], places[1][None, :]))
    bits = threefry_2x32(words, counters.ravel().astype(jnp.uint32))[: math.prod(shape)]
    uniform = ((bits >> 9).astype(jnp.float32) + 0.5) * 2.0**-23  # exact: never 0 or 1
    noisy = similarities(x, y) / temperature - jnp.log(-jnp.log(uniform.reshape(shape)))
    return jnp.where(groups[0][:, None] != groups[1][None, :], noisy, LOWEST)


def has_negative(groups: Int[Array, " batch"]) -> Bool[Array, " batch"]:
    """Whether the batch holds a row outside each row's group."""
    return jnp.broadcast_to(jnp.any(groups != groups[0]), groups.shape)


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
