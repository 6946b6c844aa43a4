"""Matching with hard negatives from the whole batch: of a text with an image, a text or a region.

METHOD.md section 2, ITM; CCLM.md section 2.3.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.random import threefry_2x32
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from rc3_jax.objectives.contrastive import DENSE, have_in_common
from rc3_jax.objectives.tiles import (
    LOWEST,
    Matrices,
    Softmax,
    Tiling,
    on_devices,
    pair_statistics,
    similarities,
    sweep_tiles,
    vary,
)
from rc3_jax.parallel.mesh import BATCH


class NegativeSampling(NamedTuple):
    """The distribution that negatives are drawn from.

    Attributes:
      floor: added to the softmax probability of each candidate.
      block_size: draws from the same block of this many rows, such as those of one device; None
        draws from the whole batch.
      random: chance of each row to draw among all candidates alike.
    """

    floor: float = 0.0
    block_size: int | None = None
    random: float = 0.0


WHOLE_BATCH = NegativeSampling()


class RowData(NamedTuple):
    """The group and the place of each row; where there is a floor, the log-sum-exp of its logits; where
    some rows draw at random, which they are."""

    groups: Int[Array, "batch ..."]
    places: Int[Array, " batch"]
    log_sums: Float[Array, " batch"] | None
    is_random: Bool[Array, " batch"] | None = None


def sample_negatives(
    key: PRNGKeyArray,
    anchors: Float[Array, "batch size"],
    candidates: Float[Array, "batch size"],
    temperature: Float[Array, ""],
    groups: Int[Array, "batch ..."],
    tiling: Tiling = DENSE,
    sampling: NegativeSampling = WHOLE_BATCH,
) -> Int[Array, " batch"]:
    """Draws one wrong candidate for each row, with probability proportional to softmax similarity.

    Gumbel-max over the global batch; candidates of the row's own group, or with another
    number in common where rows have several, are never drawn. The draw
    of a row without a negative (see `has_negative`) is arbitrary. The noise of a pair is a function
    of the key and of its place in the batch, so every tiling draws the same rows.
    """
    words = jax.random.bits(key, (2,), jnp.uint32)
    inputs = jax.lax.stop_gradient((anchors, candidates, temperature))
    row_data = _row_data(*inputs, groups, tiling, sampling)
    if sampling.random:
        chance = jax.random.uniform(jax.random.fold_in(key, 1), (len(groups),))
        row_data = row_data._replace(is_random=chance < sampling.random)
    if tiling.transport == "dense":
        anchors, candidates, temperature = inputs
        similarity = similarities(anchors, candidates)
        noise = _gumbel_noise(words, row_data, row_data)
        return jnp.argmax(
            _log_weights(similarity, temperature, row_data, row_data, sampling) + noise, 1
        )

    def local(words, temperature, anchors, candidates, row_data):
        def tile_fn(rows, columns, valid):
            best, drawn = rows
            y, columns = columns
            similarity = similarities(anchors, y)
            noisy = _log_weights(similarity, temperature, row_data, columns, sampling)
            noisy = jnp.where(valid, noisy + _gumbel_noise(words, row_data, columns), LOWEST)
            highest = noisy.max(axis=1)
            place = columns.places[jnp.argmax(noisy, axis=1)]
            return (jnp.maximum(best, highest), jnp.where(highest > best, place, drawn)), ()

        nothing = vary((jnp.full(len(anchors), -jnp.inf), jnp.zeros(len(anchors), jnp.int32)))
        (_, drawn), () = sweep_tiles(
            tiling,
            tile_fn,
            nothing,
            (candidates, row_data),
            lambda n: (),
            lambda a, b: a,
            lambda a: a,
        )
        return drawn

    draw = on_devices(tiling, local, (None, None, BATCH, BATCH, BATCH))
    return draw(words, inputs[2], *inputs[:2], row_data)


def negative_weights(
    anchors: Float[Array, "batch size"],
    candidates: Float[Array, "batch size"],
    temperature: Float[Array, ""],
    groups: Int[Array, "batch ..."],
    sampling: NegativeSampling = WHOLE_BATCH,
) -> Float[Array, "batch batch"]:
    """The unnormalised probabilities of `sample_negatives` for all pairs, of rows that are not random."""
    row_data = _row_data(anchors, candidates, temperature, groups, DENSE, sampling)
    logits = _log_weights(
        similarities(anchors, candidates), temperature, row_data, row_data, sampling
    )
    return jnp.exp(logits) if sampling.floor else jax.nn.softmax(logits)


def _row_data(
    anchors, candidates, temperature, groups, tiling: Tiling, sampling: NegativeSampling
) -> RowData:
    places = jnp.arange(len(groups), dtype=jnp.int32)
    if not sampling.floor:
        return RowData(groups, places, None)

    def pair_fn(s, temperature, rows, columns):
        return Matrices(
            (Softmax(jnp.where(_near(rows, columns, sampling), s / temperature, LOWEST)),)
        )

    sides = pair_statistics(pair_fn, tiling, anchors, candidates, temperature, (places, places))
    return RowData(groups, places, sides[0].softmaxes[0][0])


def _near(rows: Array, columns: Array, sampling: NegativeSampling) -> Bool[Array, "rows columns"]:
    """Whether two places are in one block."""
    if sampling.block_size is None:
        return jnp.ones((len(rows), len(columns)), bool)
    return rows[:, None] // sampling.block_size == columns[None, :] // sampling.block_size


def _log_weights(
    similarity: Float[Array, "rows columns"],
    temperature,
    rows: RowData,
    columns: RowData,
    sampling: NegativeSampling,
) -> Float[Array, "rows columns"]:
    """Log-probability of each candidate up to a constant of the row; `LOWEST` excludes it."""
    logits = similarity / temperature
    if rows.log_sums is not None:
        logits = jnp.logaddexp(logits - rows.log_sums[:, None], math.log(sampling.floor))
    if rows.is_random is not None:
        logits = jnp.where(rows.is_random[:, None], 0.0, logits)
    allowed = _near(rows.places, columns.places, sampling)
    allowed &= ~have_in_common(rows.groups, columns.groups)
    return jnp.where(allowed, logits, LOWEST)


def _gumbel_noise(words: Array, rows: RowData, columns: RowData) -> Float[Array, "rows columns"]:
    """Gumbel noise of each pair of places, which does not depend on the tiling."""
    shape = (len(rows.places), len(columns.places))
    counters = jnp.stack(jnp.broadcast_arrays(rows.places[:, None], columns.places[None, :]))
    bits = threefry_2x32(words, counters.ravel().astype(jnp.uint32))[: math.prod(shape)]
    uniform = ((bits >> 9).astype(jnp.float32) + 0.5) * 2.0**-23  # exact: never 0 or 1
    return -jnp.log(-jnp.log(uniform.reshape(shape)))


def has_negative(
    groups: Int[Array, "batch ..."], block_size: int | None = None, tiling: Tiling = DENSE
) -> Bool[Array, " batch"]:
    """Whether each row's block (see `NegativeSampling`) has a row without a number in common."""

    def pair_fn(s, _, rows, columns):
        allowed = _near(rows.places, columns.places, NegativeSampling(block_size=block_size))
        allowed &= ~have_in_common(rows.groups, columns.groups)
        return Matrices(sums=(allowed.astype(jnp.float32),))

    rows = RowData(groups, jnp.arange(len(groups), dtype=jnp.int32), None)
    nothing = jnp.zeros((len(groups), 0))  # no vectors are compared
    ((_, (counts,)), _) = pair_statistics(
        pair_fn, tiling, nothing, nothing, jnp.float32(0), (rows, rows)
    )
    return counts > 0


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
      has_negatives: False where the wrong image and text are arbitrary; these do not count.
    """
    logits = jnp.stack([positive, wrong_image, wrong_text]).astype(jnp.float32)
    valid = jnp.stack([jnp.ones_like(has_negatives), has_negatives, has_negatives])
    labels = jnp.array([1, 0, 0])[:, None]
    log_probability = jax.nn.log_softmax(logits)
    losses = -jnp.where(labels == 1, log_probability[..., 1], log_probability[..., 0])
    right = (jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32)
    count = valid.sum()
    return jnp.sum(losses * valid) / count, jnp.sum(right * valid) / count
