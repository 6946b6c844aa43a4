"""Nearest items and exact ranks by streaming: no matrix of all queries and items is ever stored.

A rank is exact only if equal vectors have equal scores wherever they stand. A product of matrices
does not promise that: libraries add up in an order that depends on shapes and on the place within a
tile, so that a tie is lost by the last bit. Here each number is therefore cut into three digits of
8 bits, and products of digits are summed: whole numbers below 2^24, which float32 adds without
error in any order. A score is then a function of its two vectors alone, the same bits for any tile,
padding, number of devices and processor, and for a query and an item that change places. It takes
the work of eight products, and is within 4e-7 of the true one, as float32 products are.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, Integer

from rc3_jax.objectives.tiles import vary
from rc3_jax.parallel.mesh import BATCH, batch_devices, from_host

NEVER = np.iinfo(np.int32).max
"""The rank of what is not found."""
ROWS = 512
"""Queries that a device compares at a time."""
EXACT_SIZE = 512
"""Numbers of a vector whose products of digits stay below 2^24 in sum."""
LOWEST = np.finfo(np.float32).min
"""In place of what is not a number: behind all numbers, before padding."""


class TopK(NamedTuple):
    """The most similar items of each query, the most similar first."""

    items: Int[np.ndarray, "queries k"]
    scores: Float[np.ndarray, "queries k"]


def pair_scores(
    x: Float[Array, "rows size"], y: Float[Array, "columns size"]
) -> Float[Array, "rows columns"]:
    """All dot products of unit vectors, float32; no bit depends on the other rows and columns.

    The score is not a number where the row or the column holds one that is none.
    """
    total = 0.0
    for start in range(0, x.shape[1], EXACT_SIZE):
        part = slice(start, start + EXACT_SIZE)
        (a, b, c), (d, e, f) = _digits(x[:, part]), _digits(y[:, part])
        # c f is below 2^-30 and left out. Scaling by powers of two is exact: each line but the
        # first rounds once, at the sum.
        score = _sum_of_products((b, c), (f, e)) / 256
        score = (score + _sum_of_products((a, b, c), (f, e, d))) / 256
        score = (score + _sum_of_products((a, b), (e, d))) / 256
        total += (score + _sum_of_products((a,), (d,))) / 2**14
    return total


def _digits(x: Float[Array, "rows size"]) -> tuple[Float[Array, "rows size"], ...]:
    """Whole numbers a, b, c within 128 such that x = a / 2^7 + b / 2^15 + c / 2^23, rounded."""
    digits, rest = [], x * 128
    for _ in range(3):
        digits.append(jnp.round(rest))
        rest = (rest - digits[-1]) * 256
    return tuple(digits)


def _sum_of_products(left: tuple[Array, ...], right: tuple[Array, ...]) -> Array:
    left, right = jnp.concatenate(left, axis=1), jnp.concatenate(right, axis=1)
    # Any precision is exact: 8 bits are what bfloat16 holds.
    return jnp.einsum("id,jd->ij", left, right, preferred_element_type=jnp.float32)


def top_k(
    queries: Float[np.ndarray, "queries size"],
    items: Float[np.ndarray, "items size"],
    k: int,
    mesh: Mesh,
    tile: int = 1024,
) -> TopK:
    """The k most similar items of each query; of equal ones the earlier item comes first.

    Every process holds all vectors and gets all results. Queries are spread over the mesh.

    Args:
      queries, items: float32 unit vectors.
      k: all items, ordered, where there are fewer.
      tile: items compared at a time: a device stores min(512, queries) x (tile + k) scores.

    Returns:
      Items int32, scores float32. What is not a number comes last.

    Raises:
      ValueError: if vectors are longer than 1, there are no items, or k or tile is below 1.
    """
    if k < 1:
        raise ValueError(f"k={k} must be at least 1")
    k = min(k, len(items))
    tiles = _cut(_checked(items, "items"), tile, mesh)
    search = _compiled_top_k(mesh, k)
    found = [search(batch, tiles, len(items)) for (batch,) in _batches(mesh, queries)]
    indices, scores = (_joined(parts, len(queries)) for parts in zip(*found, strict=True))
    return TopK(indices, np.where(scores == LOWEST, np.float32(np.nan), scores))


def ranks(
    queries: Float[np.ndarray, "queries size"],
    items: Float[np.ndarray, "items size"],
    query_groups: Integer[np.ndarray, " queries"],
    item_groups: Integer[np.ndarray, " items"],
    mesh: Mesh,
    tile: int = 1024,
) -> Int[np.ndarray, " queries"]:
    """Place of each query's best right item among all items, from 1; `NEVER` where there is none.

    An item is right if it is of the query's group. Wrong items that tie with the best right one
    come before it, and so do those whose score is not a number; a right item whose score is none
    is not found. Other right items are not counted. Every process holds everything.

    Args:
      queries, items: float32 unit vectors.
      query_groups, item_groups: any whole numbers.
      tile: items compared at a time.

    Raises:
      ValueError: if vectors are longer than 1, there are no items, or tile is below 1.
    """
    # Numbered from 0: identities may need more than the 32 bits that devices count with.
    known, item_groups = np.unique(np.asarray(item_groups), return_inverse=True)
    places = np.searchsorted(known, query_groups).clip(max=len(known) - 1)
    query_groups = np.where(known[places] == query_groups, places, -1).astype(np.int32)
    tiles = _cut(_checked(items, "items"), tile, mesh)
    group_tiles = _cut(item_groups.astype(np.int32), tile, mesh)
    count = _compiled_ranks(mesh)
    found = [
        count(batch, groups, tiles, group_tiles, len(items))
        for batch, groups in _batches(mesh, queries, query_groups)
    ]
    return _joined(found, len(queries))


@functools.lru_cache(maxsize=32)
def _compiled_top_k(mesh: Mesh, k: int) -> Callable:
    def local(queries, tiles, count):
        tile, rows = tiles.shape[1], len(queries)

        def step(best, part):
            first, items = part
            numbers = first + jnp.arange(tile, dtype=jnp.int32)
            scores = pair_scores(queries, items)
            scores = jnp.where(jnp.isnan(scores), LOWEST, scores)
            scores = jnp.where(numbers < count, scores, -jnp.inf)
            numbers = vary(jnp.broadcast_to(numbers, scores.shape))
            # Earlier items stand first, and `top_k` keeps the first of equal ones.
            scores = jnp.concatenate([best[1], scores], axis=1)
            numbers = jnp.concatenate([best[0], numbers], axis=1)
            scores, places = lax.top_k(scores, k)
            return (jnp.take_along_axis(numbers, places, axis=1), scores), None

        nothing = jnp.zeros((rows, k), jnp.int32), jnp.full((rows, k), -jnp.inf)
        return lax.scan(step, vary(nothing), (_firsts(tiles), tiles))[0]

    return _on_rows(local, mesh, (BATCH, PartitionSpec(), PartitionSpec()))


@functools.lru_cache(maxsize=8)
def _compiled_ranks(mesh: Mesh) -> Callable:
    def local(queries, groups, tiles, group_tiles, count):
        def compare(part):
            first, items, item_groups = part
            right = groups[:, None] == item_groups
            valid = first + jnp.arange(tiles.shape[1]) < count
            return pair_scores(queries, items), right & valid, ~right & valid

        def find(best, part):
            scores, right, _ = compare(part)
            right &= ~jnp.isnan(scores)
            return jnp.maximum(best, jnp.where(right, scores, -jnp.inf).max(axis=1)), None

        def add(before, part):
            scores, _, wrong = compare(part)
            return before + jnp.sum(
                wrong & ~(scores < best[:, None]), axis=1, dtype=jnp.int32
            ), None

        parts = (_firsts(tiles), tiles, group_tiles)
        best, _ = lax.scan(find, vary(jnp.full(len(queries), -jnp.inf)), parts)
        before, _ = lax.scan(add, vary(jnp.zeros(len(queries), jnp.int32)), parts)
        return jnp.where(best == -jnp.inf, NEVER, 1 + before)

    whole = PartitionSpec()
    return _on_rows(local, mesh, (BATCH, BATCH, whole, whole, whole))


def _firsts(tiles: Array) -> Array:
    """The number of each tile's first item."""
    return jnp.arange(tiles.shape[0], dtype=jnp.int32) * tiles.shape[1]


def _on_rows(local: Callable, mesh: Mesh, specs: tuple) -> Callable:
    """`local` on each device's queries; every process reads the results of all."""
    mapped = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=BATCH)
    return jax.jit(mapped, out_shardings=NamedSharding(mesh, PartitionSpec()))


def everywhere(array: np.ndarray, mesh: Mesh) -> Array:
    """All of an array that every process holds, on each device."""
    sharding = NamedSharding(mesh, PartitionSpec())
    return jax.make_array_from_callback(array.shape, sharding, lambda part: array[part])


def _cut(items: np.ndarray, tile: int, mesh: Mesh) -> Array:
    """`[tiles, tile, ...]` on each device, padded with zeros."""
    if tile < 1 or not len(items):
        raise ValueError(f"tile={tile} and the number of items, {len(items)}, must be at least 1")
    tile = min(tile, len(items))
    padding = [(0, -len(items) % tile)] + [(0, 0)] * (items.ndim - 1)
    return everywhere(np.pad(items, padding).reshape(-1, tile, *items.shape[1:]), mesh)


def _batches(mesh: Mesh, queries: np.ndarray, *facts: np.ndarray) -> Iterator[tuple[Any, ...]]:
    """Queries and what is known of each, spread over the mesh in batches of one size."""
    devices = batch_devices(mesh)
    size = devices * min(ROWS, math.ceil(len(queries) / devices))
    arrays = (_checked(queries, "queries"), *facts)
    for start in range(0, len(queries), size):
        parts = [array[start : start + size] for array in arrays]
        filled = [np.pad(p, [(0, size - len(p))] + [(0, 0)] * (p.ndim - 1)) for p in parts]
        yield tuple(from_host(filled, mesh))


def _joined(parts: list[Array] | tuple[Array, ...], count: int) -> np.ndarray:
    return np.concatenate([np.asarray(part) for part in parts])[:count]


def _checked(vectors: np.ndarray, name: str) -> np.ndarray:
    vectors = np.asarray(vectors, np.float32)
    if np.any(np.einsum("ij,ij->i", vectors, vectors) > 1.01):
        raise ValueError(f"{name} must be unit vectors; some are longer than 1")
    return vectors
