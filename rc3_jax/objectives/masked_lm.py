"""Masked conditional language modelling (METHOD.md section 2, MCLM)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from rc3_jax.data.text import IGNORED


def masked_lm_loss(
    logits: Float[Array, "batch masked vocab"], labels: Int[Array, "batch masked"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Mean cross-entropy over all masked tokens of the batch, and the share predicted right.

    Args:
      labels: the tokens that stood at the masked positions; `IGNORED` where a row has fewer.
    """
    valid = labels != IGNORED
    target = jnp.where(valid, labels, 0)
    picked = jnp.take_along_axis(logits, target[..., None], axis=-1)[..., 0]
    losses = jax.nn.logsumexp(logits, axis=-1) - picked
    count = jnp.maximum(valid.sum(), 1)
    right = (jnp.argmax(logits, axis=-1) == target) & valid
    return jnp.sum(losses * valid) / count, right.sum() / count
