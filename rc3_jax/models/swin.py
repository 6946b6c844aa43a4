"""Swin tower: attention within windows, and a pyramid of resolutions (CCLM.md section 1.2).

Liu et al., "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows"
(arXiv 2103.14030), with the details of the weights that CCLM starts from.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

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

EPSILON = 1e-5
ACROSS = -100.0
"""Added to the logit of two tokens of a shifted window that are no neighbours in the image."""


def to_windows(x: Array, window: int) -> Array:
    """`[batch, side, side, channels]` to `[batch * windows, window * window, channels]`."""
    batch, side, _, channels = x.shape
    count = side // window
    x = x.reshape(batch, count, window, count, window, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(-1, window * window, channels)


def from_windows(windows: Array, side: int) -> Array:
    """The inverse of `to_windows`: `[batch, side, side, channels]`."""
    _, area, channels = windows.shape
    window = math.isqrt(area)
    count = side // window
    x = windows.reshape(-1, count, count, window, window, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(-1, side, side, channels)


def shift_bias(side: int, window: int, shift: int) -> Float[np.ndarray, "windows area area"]:
    """`ACROSS` between tokens that only the rolling of the image brought into one window."""
    rolled = np.arange(side) >= side - shift
    part = 2 * rolled[:, None] + rolled
    part = to_windows(part[None, :, :, None], window)[..., 0]
    return np.where(part[:, :, None] == part[:, None, :], 0.0, ACROSS).astype(np.float32)


class SwinBlock(nn.Module):
    """Attention within windows, then a feed-forward layer; each normalised first.

    Attributes:
      window: tokens per side of a window; it divides the image's side.
      shift: tokens that the windows are moved by, down and to the right.
      drop_rate: chance of each row to leave out what a part adds (stochastic depth).
    """

    heads: int
    mlp_width: int
    window: int
    shift: int = 0
    drop_rate: float = 0.0
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch side side channels"], deterministic: bool = True
    ) -> Float[Array, "batch side side channels"]:
        def residual(x, name, function):
            y = function(nn.LayerNorm(EPSILON, self.dtype, name=f"{name}_norm")(x))
            if self.drop_rate > 0 and not deterministic:
                y = drop_path(y, self.drop_rate, self.make_rng("dropout"))
            return x + y

        def attend(y):
            y = jnp.roll(y, (-self.shift, -self.shift), axis=(1, 2))
            windows = to_windows(y, self.window)
            attention = Attention(self.heads, self.dtype, name="self_attention")
            windows = attention(windows, windows, bias=self._bias(*x.shape[:2]))
            y = from_windows(windows, x.shape[1])
            return jnp.roll(y, (self.shift, self.shift), axis=(1, 2))

        def feed_forward(y):
            y = ACTIVATIONS["gelu"](dense(self.mlp_width, self.dtype, "mlp_in")(y))
            return dense(x.shape[-1], self.dtype, "mlp_out")(y)

        return residual(residual(x, "self_attention", attend), "mlp", feed_forward)

    def _bias(self, batch: int, side: int) -> Float[Array, "rows heads area area"]:
        """What is added to the logits: of all windows alike, or of each where they are shifted."""
        shape = ((2 * self.window - 1) ** 2, self.heads)
        table = self.param("relative_positions", TOKEN_INIT, shape)
        bias = table[relative_index(self.window)].transpose(2, 0, 1)
        if self.shift == 0:
            return bias[None]
        bias = bias + shift_bias(side, self.window, self.shift)[:, None]
        return jnp.broadcast_to(bias, (batch, *bias.shape)).reshape(-1, *bias.shape[1:])


class SwinStage(nn.Module):
    """The blocks of one resolution, every other one shifted, and the merging into the next.

    Attributes:
      drop_rates: of the blocks, one each.
      merge: whether four neighbouring tokens become one of twice the width at the end.
      others: see `SwinTower`.
    """

    heads: int
    mlp_ratio: float
    window: int
    drop_rates: Sequence[float]
    merge: bool
    remat: str = "none"
    dtype: jnp.dtype = jnp.float32
    mesh: Mesh | None = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch side side channels"], deterministic: bool = True
    ) -> Float[Array, "batch new_side new_side new_channels"]:
        def layer(block, x):
            return block(constrain(x, self.mesh, BATCH_AXES), deterministic)

        if self.remat != "none":
            layer = nn.remat(layer, policy=REMAT_POLICIES[self.remat])
        batch, side, _, width = x.shape
        window = min(self.window, side)
        # A loop, unlike `Stack`: a scan could hold only the pairs of blocks of the same stage, and
        # this way each parameter is one published tensor.
        for number, rate in enumerate(self.drop_rates):
            block = SwinBlock(
                self.heads,
                int(self.mlp_ratio * width),
                window,
                shift=window // 2 if number % 2 and window < side else 0,
                drop_rate=float(rate),
                dtype=self.dtype,
                name=f"block_{number}",
            )
            x = layer(block, x)
        if self.merge:
            half = side // 2
            # Of four neighbours: upper left, lower left, upper right, lower right.
            x = x.reshape(batch, half, 2, half, 2, width).transpose(0, 1, 3, 4, 2, 5)
            x = x.reshape(batch, half, half, 4 * width)
            x = nn.LayerNorm(EPSILON, self.dtype, name="merge_norm")(x)
            x = dense(2 * width, self.dtype, "merge", use_bias=False)(x)
        return constrain(x, self.mesh, BATCH_AXES)


class SwinTower(nn.Module):
    """Images to the mean of their tokens and the tokens, as CCLM of 2022 computes them.

    Attributes:
      patch: pixels per side of a token of the first stage; each later stage doubles it.
      embed_width: of the first stage; each later stage doubles it.
      depths, heads: blocks of each stage, and the heads of their attention.
      window: tokens per side of an attention window; a stage no larger than it is one window.
      drop_path: chance to leave out what a part of the last block adds; it grows linearly from 0
        at the first block.
      remat, mesh: see `Stack`.
    """

    image_size: int = 224
    patch: int = 4
    embed_width: int = 128
    depths: Sequence[int] = (2, 2, 18, 2)
    heads: Sequence[int] = (4, 8, 16, 32)
    window: int = 7
    mlp_ratio: float = 4.0
    drop_path: float = 0.1
    remat: str = "none"
    dtype: jnp.dtype = jnp.float32
    mesh: Mesh | None = None

    @property
    def width(self) -> int:
        """Of the tokens that the tower returns."""
        return self.embed_width * 2 ** (len(self.depths) - 1)

    @property
    def grid(self) -> int:
        """Patch tokens per side that the tower returns."""
        return self.image_size // self.patch // 2 ** (len(self.depths) - 1)

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch height width 3"], deterministic: bool = True
    ) -> Float[Array, "batch tokens width"]:
        """Returns `[batch, 1 + grid * grid, width]`: the mean of the patch tokens, then these.

        Args:
          images: normalised pixels, `[batch, image_size, image_size, 3]`.

        Raises:
          ConfigError: if the windows do not cover every stage, or the sizes do not agree.
        """
        self._check()
        check_images(images, self.image_size)
        x = to_patches(images.astype(self.dtype), self.patch)
        x = dense(self.embed_width, self.dtype, "patch_embedding")(x)
        x = nn.LayerNorm(EPSILON, self.dtype, name="patch_norm")(x)
        side = self.image_size // self.patch
        x = x.reshape(-1, side, side, self.embed_width)
        rates = np.linspace(0.0, self.drop_path, sum(self.depths))
        rates = np.split(rates, np.cumsum(self.depths)[:-1])
        for number, (heads, stage_rates) in enumerate(zip(self.heads, rates, strict=True)):
            x = SwinStage(
                heads,
                self.mlp_ratio,
                self.window,
                tuple(stage_rates.tolist()),
                merge=number < len(rates) - 1,
                remat=self.remat,
                dtype=self.dtype,
                mesh=self.mesh,
                name=f"stage_{number}",
            )(x, deterministic)
        x = nn.LayerNorm(EPSILON, self.dtype, name="final_norm")(x)
        return prepend_mean(x.reshape(len(x), -1, self.width))

    def _check(self) -> None:
        stages = len(self.depths)
        if len(self.heads) != stages:
            raise ConfigError(
                f"depths={tuple(self.depths)} and heads={tuple(self.heads)} must name the same "
                "number of stages"
            )
        stride = self.patch * 2 ** (stages - 1)
        if self.image_size % stride:
            raise ConfigError(
                f"image_size={self.image_size} must be a multiple of {stride}, the patch of "
                f"{self.patch} pixels doubled by each of the {stages - 1} mergings"
            )
        for stage, heads in enumerate(self.heads):
            side = self.image_size // self.patch // 2**stage
            if side > self.window and side % self.window:
                raise ConfigError(
                    f"window={self.window} does not divide the {side} x {side} tokens of stage "
                    f"{stage}; make image_size={self.image_size} a multiple of "
                    f"{self.patch * 2**stage * self.window}, or choose another window"
                )
            width = self.embed_width * 2**stage
            if width % heads:
                raise ConfigError(
                    f"heads={heads} of stage {stage} do not divide its width of {width}"
                )
