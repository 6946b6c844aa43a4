"""Sums over all pairs of rows, tile by tile: nothing of size batch x batch is ever stored.

A `Form` turns the similarities of some rows and some columns into matrices; `pair_statistics`
gives the log-sum-exps, softmax means and sums of those matrices along both axes. One sweep over the
tiles serves both directions; the backward sweep computes each tile again instead of keeping it.
With b rows on each device of B in all, memory is O(b * (size + tile)), and O(B * size) more where
the columns are gathered. A tile takes one matrix product forward and three backward; a sweep for
each direction would take twice as many.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float

from rc3_jax.parallel.mesh import BATCH, BATCH_AXES, one_device_mesh

TRANSPORTS = ("dense", "gather", "ring")
LOWEST = -1e30
"""In place of minus infinity, whose differences are not numbers."""


class Tiling(NamedTuple):
    """How the pairs of a batch are gone through.

    Attributes:
      transport: `gather` collects all columns on each device; `ring` passes each device's columns
        around, so that nothing of the batch's size exists; `dense` builds the whole matrix and
        leaves the rest to the compiler: the reference for the others.
      tile: columns compared at a time.
      mesh: where rows are spread; None for a single device.
    """

    transport: str = "dense"
    tile: int = 512
    mesh: Mesh | None = None


class Softmax(NamedTuple):
    """A matrix of logits whose log-sum-exp is wanted, and the mean of each of `values` under its
    softmax.
    """

    logits: Float[Array, "rows columns"]
    values: tuple[Float[Array, "rows columns"], ...] = ()


class Matrices(NamedTuple):
    """What a form makes of similarities: softmaxes, and matrices to be summed."""

    softmaxes: tuple[Softmax, ...] = ()
    sums: tuple[Float[Array, "rows columns"], ...] = ()


class Statistics(NamedTuple):
    """Of each row (or column), float32 `[n]`: per softmax its log-sum-exp and means; the sums."""

    softmaxes: tuple[tuple[Array, ...], ...]
    sums: tuple[Array, ...]


Form = Callable[[Array, Any, Any, Any], Matrices]
"""(similarities `[rows, columns]`, parameters, rows' and columns' facts) to matrices; elementwise.
Differentiable in the similarities and the parameters."""


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
    form: Form,
    tiling: Tiling,
    x: Float[Array, "batch size"],
    y: Float[Array, "batch size"],
    parameters: Any,
    facts: tuple[Any, Any],
) -> tuple[Statistics, Statistics]:
    """The statistics of `form`'s matrices, of each row and of each column.

    Args:
      x: rows, y: columns, float32 or bfloat16; row for row on the same device.
      parameters: scalars that the form reads (a pytree).
      facts: what else the form reads of each row and of each column: two pytrees of arrays
        `[batch, ...]`. No gradient flows into them.
    """
    if tiling.transport == "dense":
        matrices = form(similarities(x, y), parameters, *lax.stop_gradient(facts))
        return tuple(_finish(_reduce(matrices, True, axis)) for axis in (1, 0))
    return _tiled(form, tiling, x, y, parameters, facts)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _tiled(form, tiling, x, y, parameters, facts):
    return _forward(form, tiling, x, y, parameters, facts)[0]


def _forward(form, tiling, x, y, parameters, facts):
    def local(x, y, parameters, facts):
        def fold(rows, columns, valid):
            y, fact = columns
            matrices = form(similarities(x, y), parameters, facts[0], fact)
            return _merge(rows, _reduce(matrices, valid, 1)), _reduce(matrices, valid, 0)

        def empty(length):
            shape = jax.eval_shape(
                lambda: _reduce(form(similarities(x, y), parameters, *facts), True, 1)
            )
            filled = jax.tree.map(lambda leaf: jnp.zeros(length, leaf.dtype), shape)
            return filled._replace(
                maxima=jax.tree.map(lambda leaf: jnp.full(length, LOWEST), filled.maxima)
            )

        return visit(
            tiling, fold, vary(empty(len(x))), (y, facts[1]), empty, _merge, _merge_devices
        )

    partial = on_devices(tiling, local, (BATCH, BATCH, None, BATCH))(x, y, parameters, facts)
    return tuple(map(_finish, partial)), (x, y, parameters, facts, partial)


def _backward(form, tiling, residuals, cotangents):
    def local(x, y, parameters, facts, partial, cotangents):
        parameters = vary(parameters)

        def fold(carry, columns, valid):
            dx, dparameters = carry
            y, fact, *column = columns
            matrices, pull = jax.vjp(
                lambda s, p: form(s, p, facts[0], fact), similarities(x, y), parameters
            )
            ds, dp = pull(_cotangent(matrices, valid, (partial[0], cotangents[0]), column))
            ds = ds.astype(x.dtype)
            dx += _einsum("ij,jd->id", ds, y)
            return (dx, jax.tree.map(jnp.add, dparameters, dp)), _einsum("ij,id->jd", ds, x)

        nothing = (vary(jnp.zeros(x.shape)), jax.tree.map(jnp.zeros_like, parameters))
        (dx, dparameters), dy = visit(
            tiling,
            fold,
            nothing,
            (y, facts[1], partial[1], cotangents[1]),
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
    """`function` on each device's rows; arguments whose spec is None are the same everywhere."""

    def spec(given):
        return PartitionSpec() if given is None else given

    mesh = tiling.mesh or one_device_mesh()
    out_specs = tuple(map(spec, out_specs)) if type(out_specs) is tuple else out_specs
    return jax.shard_map(function, mesh=mesh, in_specs=tuple(map(spec, specs)), out_specs=out_specs)


def visit(
    tiling: Tiling,
    fold: Callable,
    rows: Any,
    columns: Any,
    empty: Callable[[int], Any],
    merge: Callable,
    merge_devices: Callable,
) -> tuple[Any, Any]:
    """Shows the columns of all devices to this device's rows; runs inside `on_devices`.

    Args:
      fold: `(rows, columns of one tile, which of them are real) -> (rows, of each column)`.
      rows: what `fold` carries along.
      columns: this device's columns, a pytree of `[b, ...]`.
      empty: what nothing has been folded into yet, for a number of columns.
      merge: joins what two devices' rows told of the same columns.
      merge_devices: what each device told of all columns, to what all told of this device's.

    Returns:
      The rows after all columns, and what the rows of all devices told of this device's columns.
    """
    devices = lax.axis_size(BATCH_AXES)
    if tiling.transport == "gather":
        everything = lax.all_gather(columns, BATCH_AXES, tiled=True)
        rows, told = _scan_tiles(fold, rows, everything, tiling.tile)
        return rows, merge_devices(told)

    ring = [(i, (i + 1) % devices) for i in range(devices)]

    def hop(carry, _):
        rows, columns, told = carry
        rows, new = _scan_tiles(fold, rows, columns, tiling.tile)
        passed = lax.ppermute((columns, merge(told, new)), BATCH_AXES, ring)
        return (rows, *passed), None

    told = vary(empty(len(jax.tree.leaves(columns)[0])))
    (rows, _, told), _ = lax.scan(hop, (rows, columns, told), None, length=devices)
    return rows, told


def _scan_tiles(fold, rows, columns, tile):
    count = len(jax.tree.leaves(columns)[0])
    tile = min(tile, count)
    number = math.ceil(count / tile)

    def cut(leaf):
        padding = [(0, number * tile - count)] + [(0, 0)] * (leaf.ndim - 1)
        return jnp.pad(leaf, padding).reshape(number, tile, *leaf.shape[1:])

    def step(rows, part):
        first, columns = part
        return fold(rows, columns, first + jnp.arange(tile) < count)

    firsts = jnp.arange(number) * tile
    rows, told = lax.scan(step, rows, (firsts, jax.tree.map(cut, columns)))
    return rows, jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[:count], told)


class _Partial(NamedTuple):
    """Statistics of some pairs: per softmax the maximum, and the sums of exp(logit - maximum)
    alone and times each value; the sums.
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


def _merge_devices(told: _Partial) -> _Partial:
    def own(leaf):
        count = len(leaf) // lax.axis_size(BATCH_AXES)
        return lax.dynamic_slice_in_dim(leaf, lax.axis_index(BATCH_AXES) * count, count)

    maxima = lax.pmax(told.maxima, BATCH_AXES)
    sums = (_rescale(told, maxima), told.sums)
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
    """Of a tile's matrices, from the statistics of its rows and columns and their cotangents."""
    spread = (lambda leaf: leaf[:, None], lambda leaf: leaf[None, :])
    sides = [jax.tree.map(s, tuple(side)) for s, side in zip(spread, (row, column), strict=True)]
    softmaxes = []
    for number, (logits, values) in enumerate(matrices.softmaxes):
        d_logits, d_values = 0.0, [0.0] * len(values)
        for partial, cotangents in sides:
            # From maximum and sum: a log-sum-exp is rounded by more than its weights may be.
            highest, (total, *sums) = partial.maxima[number], partial.exponentials[number]
            means = [value / total for value in sums]
            d_log_sum, *d_means = cotangents.softmaxes[number]
            weights = jnp.exp(jnp.minimum(logits - highest, 0.0)) / total
            weights = jnp.where(valid, weights, 0.0)
            pull = d_log_sum
            for i, (value, mean, d_mean) in enumerate(zip(values, means, d_means, strict=True)):
                pull = pull + d_mean * (value - mean)
                d_values[i] = d_values[i] + d_mean * weights
            d_logits = d_logits + pull * weights
        softmaxes.append(Softmax(d_logits, tuple(d_values)))
    sums = tuple(
        jnp.where(valid, sum(cotangents.sums[i] for _, cotangents in sides), 0.0) + 0 * matrix
        for i, matrix in enumerate(matrices.sums)
    )
    return Matrices(tuple(softmaxes), sums)


def vary(tree: Any, axes: Sequence[str] = BATCH_AXES) -> Any:
    """Marks values that are the same on all devices as values that may differ."""
    return jax.tree.map(lambda leaf: lax.pcast(leaf, tuple(axes), to="varying"), tree)
