"""What the visual towers have in common: the bases of their settings and of their modules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float
from pydantic import Field, model_validator

from rc3_jax.models.compute import Compute, Epsilon, TowerSettings, TransformerSettings
from rc3_jax.models.hugging_face import HuggingFace
from rc3_jax.models.layers import TOKEN_INIT, Stack
from rc3_jax.models.linear import dense
from rc3_jax.models.positions import resize_positions
from rc3_jax.settings import ConfigError

Activation = Literal["gelu", "gelu_tanh", "quick_gelu"]


class VisualTowerSettings(TowerSettings):
    """The base of `config.model.patch`; each type of tower has a class of its own."""

    hugging_face: ClassVar[HuggingFace]
    image_size: int = Field(224, gt=0)
    """Pixels along a side of the image."""
    patch: int = Field(16, gt=0)
    """Pixels along a side of a patch."""
    epsilon: Epsilon = 1e-6
    """Epsilon of the norms."""
    activation: Activation = "gelu"
    """Activation of the feed-forward networks."""

    @property
    def grid(self) -> int:
        """Patch tokens along a side of what the tower returns."""
        return self.image_size // self.patch

    @property
    def output_width(self) -> int:
        """Width of the tokens that the tower returns."""
        raise NotImplementedError

    def build(self, compute: Compute) -> VisualTower:
        """The tower.

        Raises:
          ConfigError: if the devices cannot share its heads.
        """
        raise NotImplementedError

    def resized(self, params: Mapping[str, Any], image_size: int) -> dict[str, Any]:
        """The parameters for images of another size.

        Raises:
          ValueError: if there is no way.
        """
        raise ValueError(f"a tower of type {type(self).__name__} keeps its image_size")


class PatchTransformerSettings(VisualTowerSettings, TransformerSettings):
    """The base of towers of one resolution: a transformer encoder over patches."""

    @property
    def output_width(self) -> int:
        return self.width

    @model_validator(mode="after")
    def _check_patch(self) -> Self:
        if self.image_size % self.patch:
            raise ValueError(
                f"image_size={self.image_size} is not a multiple of patch={self.patch}"
            )
        return self

    def resized(self, params: Mapping[str, Any], image_size: int) -> dict[str, Any]:
        table = params["position_embedding"]
        table = resize_positions(table, image_size // self.patch, table.shape[1] - self.grid**2)
        return {**params, "position_embedding": table}


class VisualTower(nn.Module):
    """Images to one pooled token and a token for each patch.

    Called with normalised pixels `[batch, image_size, image_size, 3]` (and `deterministic`), a
    tower returns tokens `[batch, 1 + grid * grid, width]`: the pooled one first, then the patches
    row by row. With `patch_dropout`, training returns fewer patches.
    """

    settings: Any
    compute: Compute

    @property
    def grid(self) -> int:
        """Patch tokens along a side of what the tower returns."""
        return self.settings.grid

    @property
    def width(self) -> int:
        """Width of the tokens that the tower returns."""
        return self.settings.output_width

    def norm(self, name: str) -> nn.LayerNorm:
        """A norm of the tower's epsilon."""
        return nn.LayerNorm(self.settings.epsilon, self.compute.dtype, name=name)

    def stack(self, kind: type[Stack] = Stack, **options: Any) -> Stack:
        """An encoder of the tower's sizes; `options` are further attributes of its kind."""
        settings = self.settings
        return self.compute.stack(
            settings.depth,
            settings.heads,
            settings.mlp_width,
            kind,
            pre_norm=True,
            epsilon=settings.epsilon,
            activation=settings.activation,
            name="encoder",
            **options,
        )

    def embed_patches(
        self, images: Float[Array, "batch height width 3"], use_bias: bool = True
    ) -> Float[Array, "batch patches width"]:
        """A token for each patch, row by row.

        Raises:
          ConfigError: for images of another size.
        """
        size = self.settings.image_size
        if images.shape[1:] != (size, size, 3):
            raise ConfigError(
                f"the images are {images.shape[1:]} and image_size={size}; they must agree"
            )
        x = to_patches(images.astype(self.compute.dtype), self.settings.patch)
        return dense(self.settings.width, self.compute.dtype, "patch_embedding", use_bias)(x)

    def prepend_class_token(
        self, x: Float[Array, "batch patches width"]
    ) -> Float[Array, "batch 1+patches width"]:
        """A learned token before the others."""
        token = self.param("class_token", TOKEN_INIT, (1, 1, x.shape[-1])).astype(x.dtype)
        return jnp.concatenate([jnp.broadcast_to(token, (len(x), 1, x.shape[-1])), x], axis=1)


def to_patches(
    images: Float[Array, "batch height width channels"], patch: int
) -> Float[Array, "batch patches pixels"]:
    """Cuts images into flattened `patch` x `patch` squares, row by row."""
    batch, height, width, channels = images.shape
    grid = images.reshape(batch, height // patch, patch, width // patch, patch, channels)
    return grid.transpose(0, 1, 3, 2, 4, 5).reshape(batch, -1, patch * patch * channels)
