"""A fixed sentence encoder of XLM-R's shape, which can tell the relevance of weak texts."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
import ml_collections
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from rc3_jax.config import check_choice
from rc3_jax.data.tokenizer import PAD_ID
from rc3_jax.models.layers import Stack, l2_normalise, masked_mean
from rc3_jax.models.text import TextTower, text_epsilon
from rc3_jax.models.towers import check_heads

POOLINGS = ("mean", "cls")


class SentenceEncoder(nn.Module):
    """Texts to unit vectors: the mean of the token states, or the first one (`cls`)."""

    text: TextTower
    pooling: str = "mean"

    def __call__(self, ids: Int[Array, "batch length"]) -> Float[Array, "batch width"]:
        """Args: ids: int32, padded on the right with `PAD_ID`."""
        states = self.text(ids)
        mean = self.pooling == "mean"
        return l2_normalise(masked_mean(states, ids != PAD_ID) if mean else states[:, 0])


def build_sentence_encoder(
    text: ml_collections.ConfigDict,
    pooling: str,
    model: ml_collections.ConfigDict,
    vocab_size: int,
    mesh: Mesh | None = None,
) -> SentenceEncoder:
    """An encoder of the sizes `text` that computes as `model` says (its type, its loops).

    Args:
      mesh: see `Stack`.

    Raises:
      ConfigError: if a width is not divisible by its heads, or for an unknown pooling.
    """
    check_choice("pooling of the sentence encoder", pooling, POOLINGS)
    check_heads("text", text, mesh)
    stack = Stack(
        text.depth,
        text.heads,
        text.mlp_width,
        pre_norm=False,
        epsilon=text_epsilon(text),
        unroll=model.unroll,
        dtype=jnp.dtype(model.dtype),
        mesh=mesh,
    )
    return SentenceEncoder(TextTower(stack, vocab_size, text.width, text.max_positions), pooling)
