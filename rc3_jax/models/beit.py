"""BEiT-v2 tower: a vision transformer with relative positions (CCLM.md section 1.9).

Bao et al., "BEiT" (arXiv 2106.08254), Peng et al., "BEiT v2" (arXiv 2208.06366), with the details
of the weights that X²-VLM and CCLM-X²VLM start from.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from rc3_jax.config import ConfigError
from rc3_jax.models.layers import (
    ACTIVATIONS,
    REMAT_POLICIES,
    TOKEN_INIT,
    Attention,
    dense,
    drop_path,
    prepend_mean,
    relative_index,
)
from rc3_jax.models.patch import check_images, to_patches
from rc3_jax.parallel.mesh import BATCH_AXES, constrain


def class_relative_index(grid: int) -> Int[np.ndarray, "tokens tokens"]:
    """`relative_index` of the patches after a class token, which has three last rows of its own.

    In order: from the class token to any patch, from any patch to it, and to itself.
    """
    offsets = (2 * grid - 1) ** 2
    index = np.pad(relative_index(grid), (1, 0))
    index[0, :] = offsets
    index[:, 0] = offsets + 1
    index[0, 0] = offsets + 2
    return index


class BeitBlock(nn.Module):
    """Self-attention and a feed-forward layer; each normalised first and scaled afterwards.

    Attributes:
      grid: patches per side.
      layer_scale: what the learned factors of the parts' channels start from.
    """

    grid: int
    heads: int
    mlp_width: int
    epsilon: float
    layer_scale: float
    dtype: jnp.dtype = jnp.float32
    activation: str = "gelu"

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch tokens width"],
        drop_rate: Float[Array, ""] | None = None,
    ) -> Float[Array, "batch tokens width"]:
        """Args: drop_rate: chance of each row to leave out what a part adds; None for never."""
        width = x.shape[-1]

        def residual(x, name, function):
            y = function(nn.LayerNorm(self.epsilon, self.dtype, name=f"{name}_norm")(x))
            init = nn.initializers.constant(self.layer_scale)
            y = y * self.param(f"{name}_scale", init, (width,)).astype(self.dtype)
            if drop_rate is not None:
                y = drop_path(y, drop_rate, self.make_rng("dropout"))
            return x + y

        def attend(y):
            shape = ((2 * self.grid - 1) ** 2 + 3, self.heads)
            table = self.param("relative_positions", TOKEN_INIT, shape)
            bias = table[class_relative_index(self.grid)].transpose(2, 0, 1)
            attention = Attention(self.heads, self.dtype, key_bias=False, name="self_attention")
            return attention(y, y, bias=bias[None])

        def feed_forward(y):
            y = ACTIVATIONS[self.activation](dense(self.mlp_width, self.dtype, "mlp_in")(y))
            return dense(width, self.dtype, "mlp_out")(y)

        return residual(residual(x, "self_attention", attend), "mlp", feed_forward)


class BeitStack(nn.Module):
    """`depth` blocks that `block` makes, compiled once; see `Stack` and `BeitTower`."""

    depth: int
    block: Callable[..., BeitBlock]
    drop_path: float
    remat: str = "none"
    unroll: int = 1
    mesh: Mesh | None = None

    @nn.compact
    def __call__(self, x, deterministic: bool):
        drops = self.drop_path > 0 and not deterministic

        def layer(block, x, rate):
            x = constrain(x, self.mesh, BATCH_AXES)
            return block(x, rate if drops else None), None

        if self.remat != "none":
            layer = nn.remat(layer, prevent_cse=False, policy=REMAT_POLICIES[self.remat])
        layers = nn.scan(
            layer,
            variable_axes={"params": 0, "intermediates": 0},
            split_rngs={"params": True, "dropout": True},
            length=self.depth,
            unroll=min(self.unroll, self.depth),
        )
        rates = jnp.linspace(0.0, self.drop_path, self.depth)
        x, _ = layers(self.block(name="layers"), x, rates)
        return constrain(x, self.mesh, BATCH_AXES)


class BeitTower(nn.Module):
    """Images to the mean of their patch tokens and these tokens, as CCLM-X²VLM computes them.

    Attributes:
      layer_scale: see `BeitBlock`.
      activation: of the feed-forward layers, one of `ACTIVATIONS`.
      drop_path: chance to leave out what a part of the last block adds; it grows linearly from 0
        at the first block.
      remat, unroll, mesh: see `Stack`.
    """

    image_size: int = 224
    patch: int = 16
    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp_width: int = 3072
    epsilon: float = 1e-6
    layer_scale: float = 0.1
    drop_path: float = 0.1
    remat: str = "none"
    unroll: int = 1
    dtype: jnp.dtype = jnp.float32
    mesh: Mesh | None = None
    activation: str = "gelu"

    @property
    def grid(self) -> int:
        """Patches per side of an image."""
        return self.image_size // self.patch

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch height width 3"], deterministic: bool = True
    ) -> Float[Array, "batch tokens width"]:
        """Returns `[batch, 1 + grid * grid, width]`: the mean of the patch tokens, then these.

        Args:
          images: normalised pixels, `[batch, image_size, image_size, 3]`.

        Raises:
          ConfigError: if the sizes do not agree.
        """
        self._check()
        check_images(images, self.image_size)
        patches = to_patches(images.astype(self.dtype), self.patch)
        x = dense(self.width, self.dtype, "patch_embedding")(patches)
        class_token = self.param("class_token", TOKEN_INIT, (1, 1, self.width))
        class_token = jnp.broadcast_to(class_token.astype(self.dtype), (len(x), 1, self.width))
        x = jnp.concatenate([class_token, x], axis=1)
        block = functools.partial(
            BeitBlock,
            self.grid,
            self.heads,
            self.mlp_width,
            self.epsilon,
            self.layer_scale,
            self.dtype,
            self.activation,
        )
        options = (self.drop_path, self.remat, self.unroll, self.mesh)
        x = BeitStack(self.depth, block, *options, name="encoder")(x, deterministic)[:, 1:]
        return prepend_mean(nn.LayerNorm(self.epsilon, self.dtype, name="final_norm")(x))

    def _check(self) -> None:
        if self.image_size % self.patch or self.width % self.heads:
            raise ConfigError(
                f"patch={self.patch} must divide image_size={self.image_size}, and "
                f"heads={self.heads} must divide width={self.width}"
            )
