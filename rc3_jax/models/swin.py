"""Swin tower: attention within windows, and a pyramid of resolutions (CCLM.md section 1.2).

Liu et al., "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows"
(arXiv 2103.14030), with the details of the weights that CCLM starts from.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, Literal, Self, TypeVar

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from pydantic import Field, PositiveInt, model_validator

from rc3_jax.models.compute import Compute
from rc3_jax.models.hugging_face import CHANNELS, TIMM_LAYER, VISION_LAYER, HuggingFace
from rc3_jax.models.layers import (
    REMAT_POLICIES,
    TOKEN_INIT,
    Block,
    prepend_mean,
    relative_index,
)
from rc3_jax.models.linear import dense
from rc3_jax.models.visual import VisualTower, VisualTowerSettings
from rc3_jax.parallel.mesh import BATCH_AXES, constrain
from rc3_jax.param_map import CONVOLUTION, Name, ParamMap

AnyArray = TypeVar("AnyArray", Array, np.ndarray)

ACROSS = -100.0
"""Added to the logit of two tokens of a shifted window that are no neighbours in the image."""

PUBLISHED_NAMES = TIMM_LAYER.within("stage_{}/block_{}", "layers.{}.blocks.{}") | ParamMap(
    {
        "patch_embedding": Name("patch_embed.proj", CONVOLUTION),
        "patch_norm": "patch_embed.norm",
        "stage_{}/merge_norm": "layers.{}.downsample.norm",
        "stage_{}/merge": "layers.{}.downsample.reduction",
        "final_norm": "norm",
    }
)
"""Names after `vision_encoder.` in files of CCLM, and in those of Swin's authors."""
BLOCK = VISION_LAYER | ParamMap(
    {"relative_positions": "attention.self.relative_position_bias_table"}
)
NAMES = BLOCK.within("stage_{}/block_{}", "encoder.layers.{}.blocks.{}") | ParamMap(
    {
        "patch_embedding": Name("embeddings.patch_embeddings.projection", CONVOLUTION),
        "patch_norm": "embeddings.norm",
        "stage_{}/merge_norm": "encoder.layers.{}.downsample.norm",
        "stage_{}/merge": "encoder.layers.{}.downsample.reduction",
        "final_norm": "layernorm",
    }
)


class SwinSettings(VisualTowerSettings):
    """Swin-B by default; the mean of the last stage's tokens is the pooled token."""

    type: Literal["swin"] = "swin"
    patch: int = Field(4, gt=0)
    """Pixels along a side of a token of the first stage; each later stage doubles it."""
    width: int = Field(128, gt=0)
    """Width of the tokens of the first stage; each later stage doubles it."""
    depths: tuple[PositiveInt, ...] = (2, 2, 18, 2)
    """Blocks of each stage."""
    heads: tuple[PositiveInt, ...] = (4, 8, 16, 32)
    """Attention heads of each stage."""
    window: int = Field(7, gt=0)
    """Tokens along a side of an attention window; a smaller stage is one window."""
    mlp_ratio: float = Field(4.0, gt=0)
    """Width of the hidden layer of the feed-forward networks over the width of the stage."""
    epsilon: float = Field(1e-5, ge=1e-5, le=1e-5)
    """Epsilon of the norms; transformers computes some of them with this value alone."""
    drop_path: float = Field(0.1, ge=0, lt=1)
    """Chance to leave out what a part of the last block adds; it grows linearly from 0 at the first."""
    hugging_face: ClassVar = HuggingFace(
        architecture="SwinModel",
        model_types={"swin": ""},
        fields=dict(
            image_size="image_size",
            patch="patch_size",
            width="embed_dim",
            depths="depths",
            heads="num_heads",
            window="window_size",
            mlp_ratio="mlp_ratio",
            epsilon="layer_norm_eps",
            activation="hidden_act",
            drop_path="drop_path_rate",
        ),
        required=CHANNELS | dict(qkv_bias=True, use_absolute_embeddings=False),
        names=NAMES,
        prefix="swin.",
        ignored=r"pooler\.|classifier\.|decoder\.|embeddings\.mask_token|.*relative_position_index",
        pooled_mean=True,
    )

    @property
    def grid(self) -> int:
        return self.image_size // self.patch // 2 ** (len(self.depths) - 1)

    @property
    def output_width(self) -> int:
        return self.width * 2 ** (len(self.depths) - 1)

    def build(self, compute: Compute) -> SwinTower:
        for heads in self.heads:
            compute.check_heads(heads)
        return SwinTower(self, compute)

    @model_validator(mode="after")
    def _check_stages(self) -> Self:
        stages = len(self.depths)
        if len(self.heads) != stages or min(*self.depths, *self.heads, stages) < 1:
            raise ValueError(
                f"depths={self.depths} and heads={self.heads} must have a number above 0 for each "
                "stage"
            )
        stride = self.patch * 2 ** (stages - 1)
        fitting = stride * self.window  # whole windows in every stage
        if self.image_size % stride:
            raise ValueError(
                f"image_size={self.image_size} must be a multiple of {stride}, the patch of "
                f"{self.patch} pixels doubled by each of the {stages - 1} mergings; multiples of "
                f"{fitting} also suit window={self.window}"
            )
        for stage, heads in enumerate(self.heads):
            side, width = self.image_size // self.patch // 2**stage, self.width * 2**stage
            if side > self.window and side % self.window:
                raise ValueError(
                    f"window={self.window} does not divide the {side} x {side} tokens of stage "
                    f"{stage}; make image_size={self.image_size} a multiple of {fitting}, or choose "
                    "another window"
                )
            if width % heads:
                raise ValueError(f"heads={heads} of stage {stage} must divide its width of {width}")
        return self


def to_windows(x: AnyArray, window: int) -> AnyArray:
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


class SwinBlock(Block):
    """A layer whose tokens `[batch, side, side, channels]` attend within windows.

    Attributes:
      window: tokens along a side of a window; it divides the image's side.
      shift: tokens that the windows are moved by, down and to the right.
    """

    window: int = 7
    shift: int = 0

    def attend(self, y, mask, bias=None):
        batch, side, _, _ = y.shape
        y = jnp.roll(y, (-self.shift, -self.shift), axis=(1, 2))
        windows = super().attend(to_windows(y, self.window), mask, self._bias(batch, side))
        return jnp.roll(from_windows(windows, side), (self.shift, self.shift), axis=(1, 2))

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
      drop_rates: one for each block.
      merge: whether four neighbouring tokens become one of twice the width at the end.
    """

    settings: SwinSettings
    compute: Compute
    heads: int
    drop_rates: Sequence[float]
    merge: bool

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch side side channels"], deterministic: bool = True
    ) -> Float[Array, "batch new_side new_side new_channels"]:
        settings, compute = self.settings, self.compute

        batch, side, _, width = x.shape
        window = min(settings.window, side)
        # A loop, unlike `Stack`: a scan could hold only the pairs of blocks of the same stage, and
        # this way each parameter is one published tensor.
        for number, rate in enumerate(self.drop_rates):
            block = SwinBlock(
                self.heads,
                int(settings.mlp_ratio * width),
                pre_norm=True,
                epsilon=settings.epsilon,
                dtype=compute.dtype,
                activation=settings.activation,
                window=window,
                shift=window // 2 if number % 2 and window < side else 0,
                attention=compute.attention,
                name=f"block_{number}",
            )
            drop_rate = rate if rate > 0 and not deterministic else None

            def layer(block, x, drop_rate=drop_rate):
                return block(constrain(x, compute.mesh, BATCH_AXES), drop_rate=drop_rate)

            if compute.remat != "none":
                layer = nn.remat(layer, policy=REMAT_POLICIES[compute.remat])
            x = layer(block, x)
        if self.merge:
            half = side // 2
            # Of four neighbours: upper left, lower left, upper right, lower right.
            x = x.reshape(batch, half, 2, half, 2, width).transpose(0, 1, 3, 4, 2, 5)
            x = x.reshape(batch, half, half, 4 * width)
            x = nn.LayerNorm(settings.epsilon, compute.dtype, name="merge_norm")(x)
            x = dense(2 * width, compute.dtype, "merge", use_bias=False)(x)
        return constrain(x, compute.mesh, BATCH_AXES)


class SwinTower(VisualTower):
    """Images to the mean of their tokens and the tokens, as CCLM of 2022 computes them."""

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch height width 3"], deterministic: bool = True
    ) -> Float[Array, "batch tokens width"]:
        settings = self.settings
        x = self.norm("patch_norm")(self.embed_patches(images))
        side = settings.image_size // settings.patch
        x = x.reshape(-1, side, side, settings.width)
        all_rates = np.linspace(0.0, settings.drop_path, sum(settings.depths))
        rates = np.split(all_rates, np.cumsum(settings.depths)[:-1])
        for number, (heads, stage_rates) in enumerate(zip(settings.heads, rates, strict=True)):
            stage = SwinStage(
                settings,
                self.compute,
                heads,
                tuple(stage_rates.tolist()),
                merge=number < len(rates) - 1,
                name=f"stage_{number}",
            )
            x = stage(x, deterministic)
        x = self.norm("final_norm")(x)
        return prepend_mean(x.reshape(len(x), -1, self.width))
