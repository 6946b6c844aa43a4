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
) -> tuple[Int[Array, " batch"], Bool[Array, " batch"]]:
    """Draws one wrong candidate a row, with probability proportional to softmax similarity.

    Gumbel-max over the global batch; candidates of the row's own group are never drawn.

    Returns:
      The drawn rows, and whether a row has any candidate outside its group (its draw means
      nothing otherwise).
    """
    anchors, candidates, temperature = jax.lax.stop_gradient((anchors, candidates, temperature))
    logits = similarities(anchors, candidates) / temperature
    allowed = groups[:, None] != groups[None, :]
    noisy = logits + jax.random.gumbel(key, logits.shape)
    return jnp.argmax(jnp.where(allowed, noisy, -jnp.inf), axis=1), allowed.any(axis=1)


def matching_loss(
    positive: Float[Array, "batch 2"],
    wrong_image: Float[Array, "batch 2"],
    wrong_text: Float[Array, "batch 2"],
    has_wrong_image: Bool[Array, " batch"],
    has_wrong_text: Bool[Array, " batch"],
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Binary cross-entropy of one positive to two negatives a row, and its accuracy.

    Args:
      positive: logits of the pairs that belong together; class 1 means match.
      wrong_image: logits of each text with a wrong image.
      wrong_text: logits of each image with a wrong text.
      has_wrong_image: False where no image outside the row's group existed; not counted.
      has_wrong_text: the same for texts.
    """
    logits = jnp.stack([positive, wrong_image, wrong_text]).astype(jnp.float32)
    valid = jnp.stack([jnp.ones_like(has_wrong_text), has_wrong_image, has_wrong_text])
    labels = jnp.array([1, 0, 0])[:, None]
    log_probability = jax.nn.log_softmax(logits)
    losses = -jnp.where(labels == 1, log_probability[..., 1], log_probability[..., 0])
    right = (jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32)
    count = valid.sum()
    return jnp.sum(losses * valid) / count, jnp.sum(right * valid) / count
