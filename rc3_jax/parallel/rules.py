"""Which mesh axes each parameter is sharded over."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import ml_collections
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rc3_jax.settings import ConfigError


def path_name(path: tuple[Any, ...]) -> str:
    """`text/encoder/layers/mlp_in/kernel` from a pytree key path."""
    return "/".join(str(getattr(key, "key", getattr(key, "name", key))) for key in path)


def matches(patterns: Sequence[str], name: str) -> bool:
    """Whether any of the regular expressions matches the whole name."""
    return any(re.fullmatch(pattern, name) for pattern in patterns)


def partition(
    name: str, shape: Sequence[int], config: ml_collections.ConfigDict, mesh: Mesh
) -> PartitionSpec:
    """The axes of the first rule that matches, then `fsdp` for the largest free dimension.

    An axis that does not divide its dimension is left out.

    Args:
      name: path within a state; its end counts, so the optimizer's moments follow the parameters.
      config: `config.mesh`: `rules`, (path pattern, mesh axes of the last dimensions) pairs, and
        `fsdp_threshold`, the elements below which an array stays whole along `fsdp`.

    Raises:
      ConfigError: if a rule names an axis that the mesh lacks, or more axes than dimensions.
    """
    axes: list[str | None] = [None] * len(shape)
    for pattern, given in config.rules:
        if not re.fullmatch(f"(.*/)?(?:{pattern})", name):
            continue
        unknown = [axis for axis in given if axis is not None and axis not in mesh.shape]
        if unknown or len(given) > len(shape):
            raise ConfigError(
                f"mesh.rules: {pattern!r} gives {name} of shape {tuple(shape)} the axes "
                f"{tuple(given)}; use axes of {', '.join(mesh.shape)}, at most one a dimension"
            )
        for number, axis in enumerate(reversed(given), 1):
            if axis is not None and shape[-number] % mesh.shape[axis] == 0:
                axes[-number] = axis
        break
    size = mesh.shape["fsdp"]
    free = [i for i, axis in enumerate(axes) if axis is None and shape[i] % size == 0]
    if size > 1 and "fsdp" not in axes and free and math.prod(shape) >= config.fsdp_threshold:
        axes[max(free, key=lambda i: shape[i])] = "fsdp"
    while axes and axes[-1] is None:
        axes.pop()
    return PartitionSpec(*axes)


def shardings(abstract: Any, mesh: Mesh, config: ml_collections.ConfigDict) -> Any:
    """A NamedSharding for every array of an abstract state (a pytree of shapes)."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: NamedSharding(
            mesh, partition(path_name(path), leaf.shape, config, mesh)
        ),
        abstract,
    )


def with_shardings(abstract: Any, mesh: Mesh, config: ml_collections.ConfigDict) -> Any:
    """Shapes and types of a state (a pytree) with the sharding of every array."""
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        abstract,
        shardings(abstract, mesh, config),
    )


def bytes_on_device(leaf: Any) -> int:
    """What an array, or the shape, type and sharding of one, takes of each device."""
    return math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
