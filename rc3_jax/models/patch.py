"""Patch tower: the vision transformer (METHOD.md section 1.2)."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from rc3_jax.config import ConfigError
from rc3_jax.models.layers import TOKEN_INIT, Stack, dense, prepend_mean


def to_patches(
    images: Float[Array, "batch height width channels"], patch: int
) -> Float[Array, "batch patches pixels"]:
    """Cuts images into flattened `patch` x `patch` squares, row by row."""
    batch, height, width, channels = images.shape
    grid = images.reshape(batch, height // patch, patch, width // patch, patch, channels)
    return grid.transpose(0, 1, 3, 2, 4, 5).reshape(batch, -1, patch * patch * channels)


def check_images(images: Array, size: int) -> None:
    """Raises ConfigError unless images are `[batch, size, size, 3]`."""
    if images.shape[1:] != (size, size, 3):
        raise ConfigError(
            f"the images are {images.shape[1:]} and image_size={size}; they must agree"
        )


class PatchTower(nn.Module):
    """Images to token states, as `ViTModel` of Hugging Face computes them.

    Attributes:
      patch_bias, norm_first: without the first, and with a norm of the tokens that enter the
        encoder, it is CLIP's vision transformer (arXiv 2103.00020), whose encoder has the
        activation `quick_gelu`; unlike there, the last norm is of all tokens, as in CCLM.
      class_token: without it, and with the activation `gelu_tanh`, it is SigLIP's vision
        transformer (arXiv 2303.15343), less the pooling head: the mean of the patch tokens takes
        the class token's place in what is returned.
    """

    encoder: Stack
    image_size: int = 224
    patch: int = 16
    width: int = 768
    patch_bias: bool = True
    norm_first: bool = False
    class_token: bool = True

    @property
    def grid(self) -> int:
        """Patches per side of an image."""
        return self.image_size // self.patch

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch height width 3"], deterministic: bool = True
    ) -> Float[Array, "batch tokens width"]:
        """Returns the class token, or the mean of the patch tokens, followed by one token a patch.

        Args:
          images: normalised pixels, `[batch, image_size, image_size, 3]`.
        """
        dtype, epsilon = self.encoder.dtype, self.encoder.epsilon
        patches = to_patches(images.astype(dtype), self.patch)
        x = dense(self.width, dtype, "patch_embedding", self.patch_bias)(patches)
        if self.class_token:
            class_token = self.param("class_token", TOKEN_INIT, (1, 1, self.width))
            class_token = jnp.broadcast_to(class_token.astype(dtype), (len(x), 1, self.width))
            x = jnp.concatenate([class_token, x], axis=1)
        positions = self.param("position_embedding", TOKEN_INIT, (1, *x.shape[1:]))
        x = x + positions.astype(dtype)
        if self.norm_first:
            x = nn.LayerNorm(epsilon, dtype, name="embedding_norm")(x)
        x = nn.Dropout(self.encoder.dropout)(x, deterministic=deterministic)
        x = self.encoder(x, deterministic=deterministic)
        x = nn.LayerNorm(epsilon, dtype, name="final_norm")(x)
        return x if self.class_token else prepend_mean(x)
