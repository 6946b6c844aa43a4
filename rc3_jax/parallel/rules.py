"""Which mesh axis each parameter is sharded over."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

FSDP_THRESHOLD = 4 * 2**20
"""Arrays below this many bytes stay whole on every device."""


def path_name(path: tuple[Any, ...]) -> str:
    """`text/encoder/layers/mlp_in/kernel` from a pytree key path."""
    return "/".join(str(getattr(key, "key", getattr(key, "name", key))) for key in path)


def matches(patterns: Sequence[str], name: str) -> bool:
    """Whether any of the regular expressions matches the whole name."""
    return any(re.fullmatch(pattern, name) for pattern in patterns)


def fsdp_spec(shape: Sequence[int], itemsize: int, size: int) -> PartitionSpec:
    """Shards the largest dimension that `size` devices divide, if the array is large enough."""
    divisible = [axis for axis, length in enumerate(shape) if length % size == 0]
    if size == 1 or np.prod(shape) * itemsize < FSDP_THRESHOLD or not divisible:
        return PartitionSpec()
    axis = max(divisible, key=lambda a: shape[a])
    return PartitionSpec(*("fsdp" if a == axis else None for a in range(axis + 1)))


def shardings(abstract: Any, mesh: Mesh) -> Any:
    """A NamedSharding for every array of an abstract state (a pytree of shapes)."""

    def sharding(leaf):
        spec = fsdp_spec(leaf.shape, leaf.dtype.itemsize, mesh.shape["fsdp"])
        return NamedSharding(mesh, spec)

    return jax.tree.map(sharding, abstract)
