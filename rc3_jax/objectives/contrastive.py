"""Contrasts of two views over the global batch: InfoNCE, sigmoid, soft targets.

Each is a mean of statistics of the similarity matrix, which `tiles` computes without storing it.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
import pydantic
from jaxtyping import Array, Bool, Float, Int

from rc3_jax.data.tokenizer import PAD_ID
from rc3_jax.objectives.tiles import (
    Matrices,
    PairSettings,
    Softmax,
    Tiling,
    pair_statistics,
    similarities,
)
from rc3_jax.settings import Settings

DENSE = Tiling()


class ContrastSettings(Settings):
    """The settings of `config.objective` that all systems have."""

    contrast: Literal["softmax", "sigmoid"] = "softmax"
    """Loss of all contrasts: InfoNCE, or each pair by itself with a learned bias, as in SigLIP."""
    equal_texts_match: bool = True
    """Rows with an equal text are positives of one another in contrasts with that text, and no hard
    negatives, as those of one image or sentence are."""
    random_negatives: float = pydantic.Field(0.0, ge=0, le=1)
    """Share of the rows whose negatives are drawn at random; a model that knows nothing yet cannot learn
    from the hardest alone."""
    pairs: PairSettings = PairSettings()
    """How all pairs of a batch are compared."""


def info_nce(
    x: Float[Array, "batch size"],
    y: Float[Array, "batch size"],
    temperature: Float[Array, ""],
    groups: Int[Array, "batch ..."],
    row_weights: Float[Array, " batch"] | None = None,
    same_image: tuple[Float[Array, " batch"], Float[Array, " batch"]] | None = None,
    tiling: Tiling = DENSE,
) -> Float[Array, ""]:
    """`NCE(x, y; temperature)` of METHOD.md section 0, both directions.

    The positives of a row are all columns of its group; their mean enters the loss.

    Args:
      x: unit vectors of one view, all devices' rows.
      y: unit vectors of the other view, row for row.
      groups: rows of one group (one image, say) are positives of one another; where rows have
        several numbers, those that have one in common.
      row_weights: weights of the rows, which should have mean 1; None weighs all alike.
      same_image: similarities of each `x_i`, and of each `y_i`, to an additional negative.
    """

    def pair_fn(s, temperature, rows, columns):
        logits = s / temperature
        positive = have_in_common(rows, columns).astype(jnp.float32)
        return Matrices((Softmax(logits),), (positive * logits, positive))

    sides = pair_statistics(pair_fn, tiling, x, y, temperature, (groups, groups))
    extra = (None, None) if same_image is None else same_image
    directions = []
    for (((log_sum,),), (positives, count)), similarity in zip(sides, extra, strict=True):
        if similarity is not None:
            log_sum = jnp.logaddexp(log_sum, similarity / temperature)
        directions.append(log_sum - positives / count)
    losses = (directions[0] + directions[1]) / 2
    return jnp.mean(losses if row_weights is None else row_weights * losses)


def sigmoid_loss(
    x: Float[Array, "batch size"],
    y: Float[Array, "batch size"],
    temperature: Float[Array, ""],
    bias: Float[Array, ""],
    groups: Int[Array, "batch ..."],
    row_weights: Float[Array, " batch"] | None = None,
    same_image: tuple[Float[Array, " batch"], Float[Array, " batch"]] | None = None,
    tiling: Tiling = DENSE,
) -> Float[Array, ""]:
    """The sigmoid loss of SigLIP (Zhai et al., arXiv 2303.15343): each pair matches or does not.

    Args:
      x, y, row_weights, same_image: see `info_nce`; the two additional negatives of a row weigh
        half, as the mean of both directions has it.
      bias: added to the logits `x_i . y_j / temperature`.
      groups: pairs of one group match, all others do not.
    """

    def pair_fn(s, parameters, rows, columns):
        temperature, bias = parameters
        logits = s / temperature + bias
        return Matrices(sums=(jax.nn.softplus(logits) - have_in_common(rows, columns) * logits,))

    scalars = (temperature, bias)
    ((_, (losses,)), _) = pair_statistics(pair_fn, tiling, x, y, scalars, (groups, groups))
    for similarity in same_image or ():
        losses += jax.nn.softplus(similarity / temperature + bias) / 2
    return jnp.mean(losses if row_weights is None else row_weights * losses)


def contrastive_loss(
    x: Float[Array, "batch size"],
    y: Float[Array, "batch size"],
    temperature: Float[Array, ""],
    bias: Float[Array, ""] | None,
    groups: Int[Array, "batch ..."],
    row_weights: Float[Array, " batch"] | None = None,
    same_image: tuple[Float[Array, " batch"], Float[Array, " batch"]] | None = None,
    tiling: Tiling = DENSE,
) -> Float[Array, ""]:
    """`sigmoid_loss` with a bias, `info_nce` without one."""
    if bias is None:
        return info_nce(x, y, temperature, groups, row_weights, same_image, tiling)
    return sigmoid_loss(x, y, temperature, bias, groups, row_weights, same_image, tiling)


def scale_gradient(x: Array, scale: float) -> Array:
    """Returns `x`; the gradient that flows back is multiplied by `scale` (CCLM.md section 2.1)."""
    return x if scale == 1 else scale * x + jax.lax.stop_gradient((1 - scale) * x)


def soft_cross_entropy(
    x: Float[Array, "batch size"],
    y: Float[Array, "batch size"],
    temperature: Float[Array, ""],
    target_x: Float[Array, "batch target_size"],
    target_y: Float[Array, "batch target_size"],
    target_temperature: float,
    tiling: Tiling = DENSE,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Cross-entropy from `softmax(target_x target_y^T)` to `softmax(x y^T)`, rows and columns.

    Args:
      target_x, target_y: vectors whose similarities give the targets; no gradient flows into them.

    Returns:
      The cross-entropy and the entropy of the targets, means of both directions; their difference
      is the KL divergence.
    """

    def pair_fn(s, temperature, rows, columns):
        logits = s / temperature
        target = similarities(rows, columns) / target_temperature
        return Matrices((Softmax(logits), Softmax(target, (logits, target))))

    sides = pair_statistics(pair_fn, tiling, x, y, temperature, (target_x, target_y))
    cross, entropy = [], []
    for ((log_sum,), (target_log_sum, mean_logit, mean_target)), _ in sides:
        cross.append(jnp.mean(log_sum - mean_logit))
        entropy.append(jnp.mean(target_log_sum - mean_target))
    return (cross[0] + cross[1]) / 2, (entropy[0] + entropy[1]) / 2


def text_numbers(ids: Int[Array, "batch length"]) -> Int[Array, " batch"]:
    """A number of 31 bits for each text: the same for equal texts, however they are padded."""
    places = jnp.arange(1, ids.shape[1] + 1, dtype=jnp.uint32)
    words = jnp.where(ids == PAD_ID, 0, ids.astype(jnp.uint32) + 1)
    for multiplier in (0x9E3779B1, 0x85EBCA77):  # odd, so that no bit is lost
        words = (words ^ (words >> 15)) * jnp.uint32(multiplier)
    mixed = jnp.sum(words * (2 * places + 1), axis=1, dtype=jnp.uint32)
    mixed = (mixed ^ (mixed >> 16)) * jnp.uint32(0xC2B2AE3D)
    return (mixed >> 1).astype(jnp.int32)


def have_in_common(
    rows: Int[Array, "rows ..."], columns: Int[Array, "columns ..."]
) -> Bool[Array, "rows columns"]:
    """Whether a row and a column have one of their numbers in common."""
    rows, columns = (x if x.ndim == 2 else x[:, None] for x in (rows, columns))
    return jnp.any(rows[:, None, :, None] == columns[None, :, None, :], axis=(2, 3))
