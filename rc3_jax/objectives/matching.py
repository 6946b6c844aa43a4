"""Image-text matching with hard negatives from the whole batch (METHOD.md section 2, ITM)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from rc3_jax.objectives.contrastive import similarities


def sample_negatives(
    key: PRNGKeyArray,
    anchors: Float[Array, "batch size"],
    candidates: Float[Array, "batch size"],
    temperature: Float[Array, ""],
    groups: Int[Array, " batch"],
) -> Int[Array, " batch"]:
    """Draws one wrong candidate a row, with probability proportional to softmax similarity.

    Gumbel-max over the global batch; candidates of the row's own group are never drawn. The draw
    of a row without any other (see `has_negative`) means nothing.
    """
    anchors, candidates, temperature = jax.lax.stop_gradient((anchors, candidates, temperature))
    logits = similarities(anchors, candidates) / temperature
    allowed = groups[:, None] != groups[None, :]
    noisy = logits + jax.random.gumbel(key, logits.shape)
    return jnp.argmax(jnp.where(allowed, noisy, -jnp.inf), axis=1)


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
