"""InfoNCE over the global batch, with several rows a group, row weights and extra columns."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def similarities(
    x: Float[Array, "rows size"], y: Float[Array, "columns size"]
) -> Float[Array, "rows columns"]:
    """All dot products `x_i . y_j`, accumulated in float32."""
    return jnp.einsum(
        "id,jd->ij", x, y, precision=jax.lax.Precision.HIGHEST, preferred_element_type=jnp.float32
    )


def info_nce(
    x: Float[Array, "batch size"],
    y: Float[Array, "batch size"],
    temperature: Float[Array, ""],
    groups: Int[Array, " batch"],
    row_weights: Float[Array, " batch"] | None = None,
    same_image: tuple[Float[Array, " batch"], Float[Array, " batch"]] | None = None,
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
    logits = similarities(x, y) / temperature
    positive = (groups[:, None] == groups[None, :]).astype(jnp.float32)
    positive /= positive.sum(axis=1, keepdims=True)
    extra = (None, None) if same_image is None else same_image

    def one_direction(logits, extra):
        mean_positive = jnp.sum(logits * positive, axis=1)
        if extra is not None:
            logits = jnp.concatenate([logits, (extra / temperature)[:, None]], axis=1)
        return jax.nn.logsumexp(logits, axis=1) - mean_positive

    losses = (one_direction(logits, extra[0]) + one_direction(logits.T, extra[1])) / 2
    return jnp.mean(losses if row_weights is None else row_weights * losses)


def soft_cross_entropy(
    x: Float[Array, "batch size"],
    y: Float[Array, "batch size"],
    temperature: Float[Array, ""],
    target: Float[Array, "batch batch"],
    target_temperature: float,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Cross-entropy from `softmax(target)` to `softmax(x y^T)`, mean of rows and columns.

    Args:
      target: similarities that the rows and columns of `x y^T` are to resemble.

    Returns:
      The cross-entropy and the entropy of the targets; their difference is the KL divergence.
    """
    logits = similarities(x, y) / temperature
    target = target / target_temperature

    def one_direction(logits, target):
        log_target = jax.nn.log_softmax(target, axis=1)
        probability = jnp.exp(log_target)
        cross = -jnp.sum(probability * jax.nn.log_softmax(logits, axis=1), axis=1)
        return cross, -jnp.sum(probability * log_target, axis=1)

    rows, columns = one_direction(logits, target), one_direction(logits.T, target.T)
    return tuple(jnp.mean(r + c) / 2 for r, c in zip(rows, columns, strict=True))
