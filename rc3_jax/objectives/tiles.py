"""Sums over all pairs of rows, tile by tile: nothing of size batch x batch is ever stored.

A `PairFn` turns the similarities of some rows and some columns into matrices; `pair_statistics`
returns the log-sum-exps, softmax means and sums of those matrices along both axes. One sweep over
the tiles serves both directions; the backward sweep recomputes each tile. With b rows on each
device of B in all, memory is O(b * (size + tile)), and O(B * size) more where the columns are
gathered. A tile takes one matrix product forward and three backward; a sweep for each direction
would take twice as many.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import pydantic
from jax import lax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float

from rc3_jax.parallel.mesh import BATCH, BATCH_AXES, one_device_mesh
from rc3_jax.settings import Settings

LOWEST = -1e30
"""In place of minus infinity, whose differences are not numbers."""


class PairSettings(Settings):
    """How all pairs of a batch are compared; the numbers do not depend on it."""

    transport: Literal["gather", "ring", "dense"] = "gather"
    """`gather` collects one side's vectors on each device; `ring` passes them around and holds
    nothing of the batch's size; `dense` builds the matrix."""
    tile: int = pydantic.Field(512, gt=0)
    """Columns compared at a time."""


class Tiling(NamedTuple):
    """How the pairs of a batch are compared; see `PairSettings`.

    Attributes:
      mesh: the mesh that rows are spread over; None for a single device.
    """

    transport: str = "dense"
    tile: int = 512
    mesh: Mesh | None = None


class Softmax(NamedTuple):
    """Logits whose log-sum-exp is computed, with the mean of each of `values` under their softmax."""

    logits: Float[Array, "rows columns"]
    values: tuple[Float[Array, "rows columns"], ...] = ()


class Matrices(NamedTuple):
    """The result of a `PairFn`: softmaxes, and matrices to be summed."""

    softmaxes: tuple[Softmax, ...] = ()
    sums: tuple[Float[Array, "rows columns"], ...] = ()


class Statistics(NamedTuple):
    """For each row (or column), float32 `[n]`: the log-sum-exp and means of each softmax; the sums."""

    softmaxes: tuple[tuple[Array, ...], ...]
    sums: tuple[Array, ...]


PairFn = Callable[[Array, Any, Any, Any], Matrices]
"""Maps (similarities `[rows, columns]`, parameters, row data, column data) to matrices, elementwise;
differentiable in the similarities and the parameters."""


def similarities(
    x: Float[Array, "rows size"], y: Float[Array, "columns size"]
) -> Float[Array, "rows columns"]:
    """All dot products `x_i . y_j`, accumulated in float32."""
    return _einsum("id,jd->ij", x, y)


def _einsum(spec: str, x: Array, y: Array) -> Array:
    return jnp.einsum(
        spec, x, y, precision=lax.Precision.HIGHEST, preferred_element_type=jnp.float32
    )


def pair_statistics(
    pair_fn: PairFn,
    tiling: Tiling,
    x: Float[Array, "batch size"],
    y: Float[Array, "batch size"],
    parameters: Any,
    row_data: tuple[Any, Any],
) -> tuple[Statistics, Statistics]:
    """Computes the statistics of the matrices of `pair_fn` for each row and for each column.

    Args:
      x, y: vectors of the rows and of the columns, float32 or bfloat16; x_i and y_i are on the same
        device.
      parameters: a pytree of scalars for `pair_fn`.
      row_data: two pytrees of arrays `[batch, ...]`, further inputs of `pair_fn` for the rows and
        for the columns. No gradient flows into them.
    """
    if tiling.transport == "dense":
        matrices = pair_fn(similarities(x, y), parameters, *lax.stop_gradient(row_data))
        return _finish(_reduce(matrices, True, 1)), _finish(_reduce(matrices, True, 0))
    return _tiled(pair_fn, tiling, x, y, parameters, row_data)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _tiled(pair_fn, tiling, x, y, parameters, row_data):
    return _forward(pair_fn, tiling, x, y, parameters, row_data)[0]


def _forward(pair_fn, tiling, x, y, parameters, row_data):
    def local(x, y, parameters, row_data):
        def tile_fn(rows, columns, valid):
            y, column_data = columns
            matrices = pair_fn(similarities(x, y), parameters, row_data[0], column_data)
            return _merge(rows, _reduce(matrices, valid, 1)), _reduce(matrices, valid, 0)

        def init(length):
            shape = jax.eval_shape(
                lambda: _reduce(pair_fn(similarities(x, y), parameters, *row_data), True, 1)
            )
            filled = jax.tree.map(lambda leaf: jnp.zeros(length, leaf.dtype), shape)
            return filled._replace(
                maxima=jax.tree.map(lambda leaf: jnp.full(length, LOWEST), filled.maxima)
            )

        return sweep_tiles(
            tiling, tile_fn, vary(init(len(x))), (y, row_data[1]), init, _merge, _merge_devices
        )

    partial = on_devices(tiling, local, (BATCH, BATCH, None, BATCH))(x, y, parameters, row_data)
    return tuple(map(_finish, partial)), (x, y, parameters, row_data, partial)


def _backward(pair_fn, tiling, residuals, cotangents):
    def local(x, y, parameters, row_data, partial, cotangents):
        parameters = vary(parameters)

        def tile_fn(carry, columns, valid):
            dx, dparameters = carry
            y, column_data, *column = columns
            matrices, pull = jax.vjp(
                lambda s, p: pair_fn(s, p, row_data[0], column_data), similarities(x, y), parameters
            )
            ds, dp = pull(_cotangent(matrices, valid, (partial[0], cotangents[0]), column))
            ds = ds.astype(x.dtype)
            dx += _einsum("ij,jd->id", ds, y)
            return (dx, jax.tree.map(jnp.add, dparameters, dp)), _einsum("ij,id->jd", ds, x)

        nothing = (vary(jnp.zeros(x.shape)), jax.tree.map(jnp.zeros_like, parameters))
        (dx, dparameters), dy = sweep_tiles(
            tiling,
            tile_fn,
            nothing,
            (y, row_data[1], partial[1], cotangents[1]),
            lambda length: jnp.zeros((length, y.shape[1]), jnp.float32),
            jnp.add,
            lambda dy: lax.psum_scatter(dy, BATCH_AXES, tiled=True),
        )
        return dx.astype(x.dtype), dy.astype(y.dtype), lax.psum(dparameters, BATCH_AXES)

    specs = (BATCH, BATCH, None, BATCH, BATCH, BATCH)
    gradient = on_devices(tiling, local, specs, (BATCH, BATCH, None))
    return (*gradient(*residuals, cotangents), None)


_tiled.defvjp(_forward, _backward)


def on_devices(tiling: Tiling, function: Callable, specs: tuple, out_specs: Any = BATCH):
    """Runs `function` on each device's rows; arguments with the spec None are replicated."""

    def spec(given):
        return PartitionSpec() if given is None else given

    mesh = tiling.mesh or one_device_mesh()
    out_specs = tuple(map(spec, out_specs)) if type(out_specs) is tuple else out_specs
    return jax.shard_map(function, mesh=mesh, in_specs=tuple(map(spec, specs)), out_specs=out_specs)


def sweep_tiles(
    tiling: Tiling,
    tile_fn: Callable,
    rows: Any,
    columns: Any,
    init: Callable[[int], Any],
    merge: Callable,
    merge_devices: Callable,
) -> tuple[Any, Any]:
    """Compares this device's rows with the columns of all devices; runs inside `on_devices`.

    Args:
      tile_fn: `(carry, columns of a tile, bool mask without padding) -> (carry, column statistics)`.
      rows: the initial carry.
      columns: this device's columns, a pytree of `[b, ...]`.
      init: maps a number of columns to their initial statistics.
      merge: merges the statistics of the same columns over the rows of two devices.
      merge_devices: reduce-scatters the statistics of all columns.

    Returns:
      The final carry, and the statistics of this device's columns over the rows of all devices.
    """
    devices = lax.axis_size(BATCH_AXES)
    if tiling.transport == "gather":
        everything = lax.all_gather(columns, BATCH_AXES, tiled=True)
        rows, column_stats = _scan_tiles(tile_fn, rows, everything, tiling.tile)
        return rows, merge_devices(column_stats)

    ring = [(i, (i + 1) % devices) for i in range(devices)]

    def hop(carry, _):
        rows, columns, column_stats = carry
        rows, new = _scan_tiles(tile_fn, rows, columns, tiling.tile)
        passed = lax.ppermute((columns, merge(column_stats, new)), BATCH_AXES, ring)
        return (rows, *passed), None

    column_stats = vary(init(len(jax.tree.leaves(columns)[0])))
    (rows, _, column_stats), _ = lax.scan(hop, (rows, columns, column_stats), None, length=devices)
    return rows, column_stats


def _scan_tiles(tile_fn, rows, columns, tile):
    count = len(jax.tree.leaves(columns)[0])
    tile = min(tile, count)
    number = math.ceil(count / tile)

    def cut(leaf):
        padding = [(0, number * tile - count)] + [(0, 0)] * (leaf.ndim - 1)
        return jnp.pad(leaf, padding).reshape(number, tile, *leaf.shape[1:])

    def step(rows, part):
        first, columns = part
        return tile_fn(rows, columns, first + jnp.arange(tile) < count)

    firsts = jnp.arange(number) * tile
    rows, column_stats = lax.scan(step, rows, (firsts, jax.tree.map(cut, columns)))
    return rows, jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[:count], column_stats)


class _Partial(NamedTuple):
    """Statistics over a part of the pairs: for each softmax the maximum and the sums of
    exp(logit - maximum), alone and times each value; the sums.
    """

    maxima: tuple[Array, ...]
    exponentials: tuple[tuple[Array, ...], ...]
    sums: tuple[Array, ...]


def _reduce(matrices: Matrices, valid, axis: int) -> _Partial:
    maxima, exponentials = [], []
    for logits, values in matrices.softmaxes:
        logits = jnp.where(valid, logits, LOWEST)
        highest = lax.stop_gradient(logits.max(axis))
        weights = jnp.exp(logits - jnp.expand_dims(highest, axis))
        maxima.append(highest)
        exponentials.append((weights.sum(axis), *((weights * v).sum(axis) for v in values)))
    sums = tuple(jnp.where(valid, matrix, 0.0).sum(axis) for matrix in matrices.sums)
    return _Partial(tuple(maxima), tuple(exponentials), sums)


def _merge(a: _Partial, b: _Partial) -> _Partial:
    maxima = jax.tree.map(jnp.maximum, a.maxima, b.maxima)
    scaled = [_rescale(part, maxima) for part in (a, b)]
    return _Partial(
        maxima,
        jax.tree.map(jnp.add, *scaled),
        jax.tree.map(jnp.add, a.sums, b.sums),
    )


def _merge_devices(column_stats: _Partial) -> _Partial:
    def own(leaf):
        count = len(leaf) // lax.axis_size(BATCH_AXES)
        return lax.dynamic_slice_in_dim(leaf, lax.axis_index(BATCH_AXES) * count, count)

    maxima = lax.pmax(column_stats.maxima, BATCH_AXES)
    sums = (_rescale(column_stats, maxima), column_stats.sums)
    exponentials, sums = lax.psum_scatter(sums, BATCH_AXES, tiled=True)
    return _Partial(jax.tree.map(own, vary(maxima)), exponentials, sums)


def _rescale(part: _Partial, maxima: tuple[Array, ...]) -> tuple[tuple[Array, ...], ...]:
    return tuple(
        tuple(total * jnp.exp(old - new) for total in totals)
        for totals, old, new in zip(part.exponentials, part.maxima, maxima, strict=True)
    )


def _finish(part: _Partial) -> Statistics:
    softmaxes = tuple(
        (highest + jnp.log(total), *(value / total for value in values))
        for highest, (total, *values) in zip(part.maxima, part.exponentials, strict=True)
    )
    return Statistics(softmaxes, part.sums)


def _cotangent(matrices: Matrices, valid, row, column) -> Matrices:
    """The cotangents of a tile's matrices, given the statistics of its rows and columns and theirs."""
    spread = (lambda leaf: leaf[:, None], lambda leaf: leaf[None, :])
    sides = [jax.tree.map(s, tuple(side)) for s, side in zip(spread, (row, column), strict=True)]
    softmaxes = []
    for number, softmax in enumerate(matrices.softmaxes):
        parts = [_softmax_cotangent(softmax, valid, number, *side) for side in sides]
        softmaxes.append(jax.tree.map(jnp.add, *parts))
    sums = tuple(
        jnp.where(valid, sum(cotangents.sums[i] for _, cotangents in sides), 0.0) + 0 * matrix
        for i, matrix in enumerate(matrices.sums)
    )
    return Matrices(tuple(softmaxes), sums)


def _softmax_cotangent(
    softmax: Softmax, valid, number: int, partial: _Partial, cotangents: Statistics
) -> Softmax:
    """What the statistics of a tile's rows, or those of its columns, pull of its softmax `number`."""
    logits, values = softmax
    # From maximum and sum: a log-sum-exp is rounded by more than its weights may be.
    highest, (total, *sums) = partial.maxima[number], partial.exponentials[number]
    weights = jnp.exp(jnp.minimum(logits - highest, 0.0)) / total
    weights = jnp.where(valid, weights, 0.0)
    pull, *d_means = cotangents.softmaxes[number]
    for value, value_sum, d_mean in zip(values, sums, d_means, strict=True):
        pull = pull + d_mean * (value - value_sum / total)
    return Softmax(pull * weights, tuple(d_mean * weights for d_mean in d_means))


def vary(tree: Any, axes: Sequence[str] = BATCH_AXES) -> Any:
    """Marks replicated values as values that may differ between devices."""
    return jax.tree.map(lambda leaf: lax.pcast(leaf, tuple(axes), to="varying"), tree)
