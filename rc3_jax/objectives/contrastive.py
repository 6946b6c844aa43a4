"""Contrasts of two views over the global batch: InfoNCE, sigmoid, soft targets.

Each is the mean of a few statistics of the similarity matrix, which `tiles` computes without
storing that matrix.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rc3_jax.objectives.tiles import Matrices, Softmax, Tiling, pair_statistics, similarities

DENSE = Tiling()


def info_nce(
    x: Float[Array, "batch size"],
    y: Float[Array, "batch size"],
    temperature: Float[Array, ""],
    groups: Int[Array, " batch"],
    row_weights: Float[Array, " batch"] | None = None,
    same_image: tuple[Float[Array, " batch"], Float[Array, " batch"]] | None = None,
    tiling: Tiling = DENSE,
) -> Float[Array, ""]:
    """`NCE(x, y; temperature)` of METHOD.md section 0, both directions.

    The positives of a row are all columns of its group; their mean enters the loss.

    Args:
      x: unit vectors of one view, all devices' rows.
      y: unit vectors of the other view, row for row.
      groups: rows of one group (one image, say) are positives of one another.
      row_weights: weight of each row's (and column's) term; mean over rows divides by the
        batch, so weights of mean 1 keep the scale. None weighs all alike.
      same_image: similarity of each `x_i`, and of each `y_i`, to one more negative of its own.
    """

    def form(s, temperature, rows, columns):
        logits = s / temperature
        positive = _same_group(rows, columns)
        return Matrices((Softmax(logits),), (positive * logits, positive))

    sides = pair_statistics(form, tiling, x, y, temperature, (groups, groups))
    extra = (None, None) if same_image is None else same_image
    losses = 0.0
    for (((log_sum,),), (positives, count)), similarity in zip(sides, extra, strict=True):
        if similarity is not None:
            log_sum = jnp.logaddexp(log_sum, similarity / temperature)
        losses += (log_sum - positives / count) / 2
    return jnp.mean(losses if row_weights is None else row_weights * losses)


def sigmoid_loss(
    x: Float[Array, "batch size"],
    y: Float[Array, "batch size"],
    temperature: Float[Array, ""],
    bias: Float[Array, ""],
    groups: Int[Array, " batch"],
    row_weights: Float[Array, " batch"] | None = None,
    tiling: Tiling = DENSE,
) -> Float[Array, ""]:
    """The sigmoid loss of SigLIP (Zhai et al., arXiv 2303.15343, equation 1): each pair a yes or no.

    Args:
      bias: added to the logits `x_i . y_j / temperature`.
      groups: pairs of one group are to match, all others not.
      row_weights: weight of each row's pairs.
    """

    def form(s, parameters, rows, columns):
        temperature, bias = parameters
        logits = s / temperature + bias
        return Matrices(sums=(jax.nn.softplus(logits) - _same_group(rows, columns) * logits,))

    ((_, (losses,)), _) = pair_statistics(form, tiling, x, y, (temperature, bias), (groups, groups))
    return jnp.mean(losses if row_weights is None else row_weights * losses)


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
      target_x, target_y: vectors whose similarities those of x and y are to resemble; no gradient
        flows into them.

    Returns:
      The cross-entropy and the entropy of the targets, means of both directions; their difference
      is the KL divergence.
    """

    def form(s, temperature, rows, columns):
        logits = s / temperature
        target = similarities(rows, columns) / target_temperature
        return Matrices((Softmax(logits), Softmax(target, (logits, target))))

    sides = pair_statistics(form, tiling, x, y, temperature, (target_x, target_y))
    cross = entropy = 0.0
    for ((log_sum,), (target_log_sum, mean_logit, mean_target)), _ in sides:
        cross += jnp.mean(log_sum - mean_logit) / 2
        entropy += jnp.mean(target_log_sum - mean_target) / 2
    return cross, entropy


def _same_group(
    rows: Int[Array, " rows"], columns: Int[Array, " columns"]
) -> Float[Array, "rows columns"]:
    same: Bool[Array, "rows columns"] = rows[:, None] == columns[None, :]
    return same.astype(jnp.float32)
