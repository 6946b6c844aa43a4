"""Where in an image a text belongs: L1 and generalised intersection over union of boxes."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

SMALLEST = 1e-9
"""An area that is divided by; the gradient of its inverse is still a float32."""


def box_losses(
    predicted: Float[Array, "batch 4"],
    target: Float[Array, "batch 4"],
    counted: Bool[Array, " batch"],
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Sum of absolute differences, and 1 - GIoU, both the mean over the rows that count.

    A target of negative width or height makes the second 0 for the whole batch, as in the published
    code (CCLM.md section 2.5); GIoU is that of Rezatofighi et al. (arXiv 1902.09630).

    Args:
      predicted, target: (centre x, centre y, width, height), fractions of the image.
      counted: False for rows that speak of the whole image. Without any other both losses are 0.
    """
    weights = counted / jnp.maximum(counted.sum(), 1)
    l1 = jnp.sum(jnp.abs(predicted - target), axis=1)
    sound = jnp.all(target[:, 2:] >= 0)
    giou = jnp.where(sound, 1 - generalised_iou(predicted, target), 0.0)
    return jnp.sum(l1 * weights), jnp.sum(giou * weights)


def generalised_iou(
    a: Float[Array, "batch 4"], b: Float[Array, "batch 4"]
) -> Float[Array, " batch"]:
    """Row for row, in (-1, 1]; boxes as in `box_losses`."""
    (low_a, high_a), (low_b, high_b) = (_corners(box) for box in (a, b))

    def area(low, high):
        return jnp.prod(jnp.maximum(high - low, 0), axis=1)

    overlap = area(jnp.maximum(low_a, low_b), jnp.minimum(high_a, high_b))
    union = area(low_a, high_a) + area(low_b, high_b) - overlap
    hull = area(jnp.minimum(low_a, low_b), jnp.maximum(high_a, high_b))
    return overlap / jnp.maximum(union, SMALLEST) - (hull - union) / jnp.maximum(hull, SMALLEST)


def _corners(box):
    return box[:, :2] - box[:, 2:] / 2, box[:, :2] + box[:, 2:] / 2
