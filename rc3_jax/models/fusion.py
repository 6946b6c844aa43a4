"""Fusion encoder: text reads a second view, an image or another text (METHOD.md section 1.5)."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rc3_jax.models.layers import Stack


class FusionEncoder(nn.Module):
    """Text self-attention, cross-attention to the other view, feed-forward; post-norm."""

    depth: int = 6
    heads: int = 12
    mlp_width: int = 3072
    dropout: float = 0.0
    remat: str = "none"
    unroll: int = 1
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        text: Float[Array, "batch length width"],
        text_mask: Bool[Array, "batch length"],
        view: Float[Array, "batch tokens view_width"],
        view_mask: Bool[Array, "batch tokens"],
        deterministic: bool = True,
    ) -> Float[Array, "batch length width"]:
        return Stack(
            self.depth,
            self.heads,
            self.mlp_width,
            pre_norm=False,
            epsilon=1e-5,
            cross_attention=True,
            dropout=self.dropout,
            remat=self.remat,
            unroll=self.unroll,
            dtype=self.dtype,
            name="encoder",
        )(text, text_mask, view, view_mask, deterministic)
