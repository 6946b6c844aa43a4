"""Patch tower: the vision transformer (METHOD.md section 1.2)."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from rc3_jax.models.layers import TOKEN_INIT, LayerNorm, Stack, dense


def to_patches(
    images: Float[Array, "batch height width channels"], patch: int
) -> Float[Array, "batch patches pixels"]:
    """Cuts images into flattened `patch` x `patch` squares, row by row."""
    batch, height, width, channels = images.shape
    grid = images.reshape(batch, height // patch, patch, width // patch, patch, channels)
    return grid.transpose(0, 1, 3, 2, 4, 5).reshape(batch, -1, patch * patch * channels)


class PatchTower(nn.Module):
    """Images to token states, as `ViTModel` of Hugging Face computes them."""

    image_size: int = 224
    patch: int = 16
    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp_width: int = 3072
    dropout: float = 0.0
    remat: str = "none"
    unroll: int = 1
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch height width 3"], deterministic: bool = True
    ) -> Float[Array, "batch tokens width"]:
        """Returns the class token followed by one token a patch.

        Args:
          images: normalised pixels, `[batch, image_size, image_size, 3]`.
        """
        patches = to_patches(images.astype(self.dtype), self.patch)
        x = dense(self.width, self.dtype, "patch_embedding")(patches)
        batch, count, _ = x.shape
        class_token = self.param("class_token", TOKEN_INIT, (1, 1, self.width))
        class_token = jnp.broadcast_to(class_token.astype(self.dtype), (batch, 1, self.width))
        positions = self.param("position_embedding", TOKEN_INIT, (1, count + 1, self.width))
        x = jnp.concatenate([class_token, x], axis=1) + positions.astype(self.dtype)
        x = nn.Dropout(self.dropout)(x, deterministic=deterministic)
        x = Stack(
            self.depth,
            self.heads,
            self.mlp_width,
            pre_norm=True,
            epsilon=1e-12,
            dropout=self.dropout,
            remat=self.remat,
            unroll=self.unroll,
            dtype=self.dtype,
            name="encoder",
        )(x, deterministic=deterministic)
        return LayerNorm(1e-12, self.dtype, name="final_norm")(x)
