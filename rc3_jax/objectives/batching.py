"""Interleaves the rows of several kinds into one batch, and takes them apart again."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array


def interleave(parts: Sequence[Array]) -> Array:
    """Joins `[B_1, ...], [B_2, ...], ...` into `[B_1 + B_2 + ..., ...]`, block by block.

    Each of the gcd(B_1, B_2, ...) blocks holds rows of every part in turn. If the number of devices
    divides every B, rows stay on their device, unlike with plain concatenation.
    """
    blocks = math.gcd(*(part.shape[0] for part in parts))
    tail = parts[0].shape[1:]
    joined = [part.reshape(blocks, part.shape[0] // blocks, *tail) for part in parts]
    return jnp.concatenate(joined, axis=1).reshape(-1, *tail)


def deinterleave(joined: Array, counts: Sequence[int]) -> list[Array]:
    """Undoes `interleave`; `counts` are the parts' rows."""
    blocks, tail = math.gcd(*counts), joined.shape[1:]
    rows = joined.reshape(blocks, -1, *tail)
    ends = [sum(counts[: i + 1]) // blocks for i in range(len(counts))]
    return [part.reshape(-1, *tail) for part in jnp.split(rows, ends[:-1], axis=1)]
