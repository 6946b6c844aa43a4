"""Text tower: the XLM-RoBERTa encoder (METHOD.md section 1.1)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rc3_jax.data.tokenizer import PAD_ID
from rc3_jax.models.layers import TOKEN_INIT, Stack

POSITION_OFFSETS = (0, PAD_ID + 1)
EPSILON = 1e-5
"""Of XLM-R's norms, where `model.text.epsilon` is not set."""


def text_epsilon(text: Mapping[str, Any]) -> float:
    """The epsilon of the text tower's norms; `text` is `config.model.text`."""
    epsilon = text.get("epsilon")
    return EPSILON if epsilon is None else epsilon


class TextTower(nn.Module):
    """Token ids to token states, as `XLMRobertaModel` of Hugging Face computes them.

    Attributes:
      position_offset: row of the position table that the first token reads: 2 as XLM-R was
        trained, padding at row 1; 0 as the published CCLM of 2022 reads XLM-R's table, which also
        numbers padding (CCLM.md section 1.3).
    """

    encoder: Stack
    vocab_size: int
    width: int = 768
    max_positions: int = 514
    position_offset: int = PAD_ID + 1

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
        self,
        ids: Int[Array, "batch length"],
        deterministic: bool = True,
        mask: Bool[Array, "batch length"] | None = None,
    ) -> Float[Array, "batch length width"]:
        """Token states.

        Args:
          ids: int32, padded on the right with `PAD_ID`.
          mask: the tokens that others read; None for all but padding.
        """
        known = ids != PAD_ID
        if self.position_offset:
            positions = jnp.cumsum(known, axis=1) * known + PAD_ID
        else:
            positions = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
        x = self.embed(ids, positions, deterministic)
        return self.encoder(x, known if mask is None else mask, deterministic=deterministic)

    def embed(
        self,
        ids: Int[Array, "batch length"],
        positions: Int[Array, "... length"],
        deterministic: bool,
    ) -> Float[Array, "batch length width"]:
        """What enters the encoder."""
        x = (
            self.word_embedding(ids)
            + self.position_embedding(positions)
            + self.type_embedding(jnp.zeros_like(ids))
        )
        return self.drop(self.embedding_norm(x), deterministic=deterministic)
