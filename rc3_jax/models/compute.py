"""How every part of a model computes: number type, dropout, recomputation, loops and devices."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Literal, Self

import jax.numpy as jnp
from jax.sharding import Mesh
from pydantic import Field, model_validator

from rc3_jax.models.attention import XLA, Attend, Implementation
from rc3_jax.models.layers import Stack
from rc3_jax.settings import ConfigError, Settings

Epsilon = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class ComputeSettings(Settings):
    """The settings of `config.model` that hold for all of its parts."""

    dropout: float = Field(0.1, ge=0, lt=1)
    """Dropout of hidden states; towers that have a `drop_path` take that instead."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Number type of computation; parameters stay float32."""
    remat: Literal["none", "dots", "full"] = "none"
    """What the backward pass recomputes: nothing, all but matrix products, or everything."""
    unroll: int = Field(1, gt=0)
    """Layers in one iteration of the compiled loop."""
    attention: Implementation = "auto"
    """What computes attention: XLA, cuDNN (NVIDIA's GPUs, bfloat16) or splash attention (TPUs). `auto`
    is XLA."""


@dataclasses.dataclass(frozen=True)
class Compute:
    """What a part of a model is built with; see `ComputeSettings` and, for `mesh`, `Stack`."""

    dropout: float = 0.0
    dtype: Any = jnp.float32
    remat: str = "none"
    unroll: int = 1
    mesh: Mesh | None = None
    attention: Attend = XLA

    @classmethod
    def of(cls, model: Any, mesh: Mesh | None = None) -> Self:
        """What the settings of `config.model` say.

        Raises:
          ConfigError: for an implementation of attention that the mesh's devices do not have.
        """
        dtype = jnp.dtype(model.dtype)
        attention = Attend.of(model.attention, dtype, mesh)
        return cls(model.dropout, dtype, model.remat, model.unroll, mesh, attention)

    def stack(
        self, depth: int, heads: int, mlp_width: int, kind: type[Stack] = Stack, **style: Any
    ) -> Stack:
        """A transformer encoder; `style` are further attributes of its kind."""
        self.check_heads(heads)
        return kind(depth, heads, mlp_width, **vars(self) | style)

    def check_heads(self, heads: int) -> None:
        """Raises ConfigError unless the devices along the tensor axis can share the heads."""
        tensor = 1 if self.mesh is None else self.mesh.shape["tensor"]
        if heads % tensor:
            raise ConfigError(
                f"{heads} attention heads cannot be shared by mesh.tensor={tensor} devices; choose "
                "another number of heads or devices"
            )


class TowerSettings(Settings):
    """The base of all towers' settings; None, as older runs stored it, means the default."""

    @model_validator(mode="before")
    @classmethod
    def _defaults_for_none(cls, values: Any) -> Any:
        if isinstance(values, dict):
            return {name: value for name, value in values.items() if value is not None}
        return values


class TransformerSettings(TowerSettings):
    """The sizes of a transformer encoder; the defaults are those of the base models."""

    width: int = Field(768, gt=0)
    """Width of the token states."""
    depth: int = Field(12, gt=0, le=1000)
    """Number of layers."""
    heads: int = Field(12, gt=0)
    """Attention heads; they divide the width."""
    mlp_width: int = Field(3072, gt=0)
    """Width of the hidden layer of the feed-forward networks."""

    @model_validator(mode="after")
    def _check_heads(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"heads={self.heads} must divide width={self.width}")
        return self
