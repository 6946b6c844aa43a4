"""Joining rows of several kinds into one batch, and taking them apart again."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array


def join(parts: Sequence[Array]) -> Array:
    """Puts `[B_1, ...], [B_2, ...], ...` into one `[B_1 + B_2 + ..., ...]`, block by block.

    Each of the gcd(B_1, B_2, ...) blocks holds rows of every part in turn. As long as the
    number of devices divides every B, rows stay on the device that holds them, which plain
    concatenation would not grant.
    """
    blocks = math.gcd(*(part.shape[0] for part in parts))
    tail = parts[0].shape[1:]
    joined = [part.reshape(blocks, part.shape[0] // blocks, *tail) for part in parts]
    return jnp.concatenate(joined, axis=1).reshape(-1, *tail)


def split(joined: Array, counts: Sequence[int]) -> list[Array]:
    """Undoes `join`; `counts` are the parts' rows."""
    blocks, tail = math.gcd(*counts), joined.shape[1:]
    rows = joined.reshape(blocks, -1, *tail)
    ends = [sum(counts[: i + 1]) // blocks for i in range(len(counts))]
    return [part.reshape(-1, *tail) for part in jnp.split(rows, ends[:-1], axis=1)]
