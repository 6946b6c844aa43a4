"""Text tower: the XLM-RoBERTa encoder (METHOD.md section 1.1)."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from rc3_jax.data.tokenizer import PAD_ID
from rc3_jax.models.layers import TOKEN_INIT, Stack


class TextTower(nn.Module):
    """Token ids to token states, as `XLMRobertaModel` of Hugging Face computes them."""

    encoder: Stack
    vocab_size: int
    width: int = 768
    max_positions: int = 514

    def setup(self):
        def embedding(count):
            # In float32: the gradient of a table sums thousands of rows, which bfloat16 cannot.
            return nn.Embed(count, self.width, embedding_init=TOKEN_INIT)

        self.word_embedding = embedding(self.vocab_size)
        self.position_embedding = embedding(self.max_positions)
        self.type_embedding = embedding(1)
        self.embedding_norm = nn.LayerNorm(self.encoder.epsilon, self.encoder.dtype)
        self.drop = nn.Dropout(self.encoder.dropout)

    def __call__(
        self, ids: Int[Array, "batch length"], deterministic: bool = True
    ) -> Float[Array, "batch length width"]:
        """Args: ids: int32, padded on the right with `PAD_ID`."""
        mask = ids != PAD_ID
        positions = jnp.cumsum(mask, axis=1) * mask + PAD_ID
        x = (
            self.word_embedding(ids)
            + self.position_embedding(positions)
            + self.type_embedding(jnp.zeros_like(ids))
        )
        x = self.drop(self.embedding_norm(x), deterministic=deterministic)
        return self.encoder(x, mask, deterministic=deterministic)
