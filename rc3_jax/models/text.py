"""Text tower: the XLM-RoBERTa encoder (METHOD.md section 1.1)."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from rc3_jax.data.tokenizer import PAD_ID
from rc3_jax.models.layers import TOKEN_INIT, LayerNorm, Stack


class TextTower(nn.Module):
    """Token ids to token states, as `XLMRobertaModel` of Hugging Face computes them."""

    vocab_size: int
    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp_width: int = 3072
    max_positions: int = 514
    dropout: float = 0.0
    remat: str = "none"
    unroll: int = 1
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        def embedding(count):
            # In float32: the gradient of a table sums thousands of rows, which bfloat16 cannot.
            return nn.Embed(count, self.width, embedding_init=TOKEN_INIT)

        self.word_embedding = embedding(self.vocab_size)
        self.position_embedding = embedding(self.max_positions)
        self.type_embedding = embedding(1)
        self.embedding_norm = LayerNorm(1e-5, self.dtype)
        self.drop = nn.Dropout(self.dropout)
        self.encoder = Stack(
            self.depth,
            self.heads,
            self.mlp_width,
            pre_norm=False,
            epsilon=1e-5,
            dropout=self.dropout,
            remat=self.remat,
            unroll=self.unroll,
            dtype=self.dtype,
        )

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
