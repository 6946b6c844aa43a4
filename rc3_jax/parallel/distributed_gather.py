"""Gathers rows of a batch from the devices that hold them."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Int

from rc3_jax.parallel.mesh import BATCH, BATCH_AXES


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def gather_rows(mesh: Mesh | None, rows: Any, wanted: Int[Array, " batch"]) -> Any:
    """`rows[wanted]` of arrays whose rows are spread over a mesh; differentiable in `rows`.

    In a round each device asks each other for up to ceil(b / n) of its rows, b rows on each of n
    devices, and gets them by one all-to-all: a round brings in n * ceil(b / n) rows, b or n,
    whichever is more, where collecting the batch would bring in n * b. There are as many rounds
    as the most rows that one device asks of another need: three or four where draws are spread,
    min(n, b) where a device wants one device's rows alone. The gradient takes the same ways back.

    Args:
      mesh: None where one device holds all rows.
      rows: a pytree of arrays `[batch, ...]`.
      wanted: row numbers within the batch.
    """
    if mesh is None or mesh.size == 1:
        return jax.tree.map(lambda leaf: leaf[wanted], rows)
    return _shard_map(mesh, _gather)(rows, wanted)


def _forward(mesh, rows, wanted):
    shapes = jax.tree.map(lambda leaf: jnp.zeros((0, *leaf.shape[1:]), leaf.dtype), rows)
    return gather_rows(mesh, rows, wanted), (shapes, wanted)


def _backward(mesh, residuals, gradients):
    shapes, wanted = residuals
    leaves, structure = jax.tree.flatten(gradients)
    real = [leaf for leaf in leaves if leaf.dtype != jax.dtypes.float0]  # masks have no gradient
    if mesh is None or mesh.size == 1:
        summed = [jnp.zeros(g.shape, jnp.float32).at[wanted].add(g) for g in real]
    else:
        summed = _shard_map(mesh, _scatter_add)(real, wanted)
    given = iter(summed)
    leaves = [leaf if leaf.dtype == jax.dtypes.float0 else next(given) for leaf in leaves]
    typed = (
        g.astype(s.dtype) if g.dtype != jax.dtypes.float0 else g
        for g, s in zip(leaves, jax.tree.leaves(shapes), strict=True)
    )
    return jax.tree.unflatten(structure, typed), None


gather_rows.defvjp(_forward, _backward)


def _shard_map(mesh, function):
    return jax.shard_map(function, mesh=mesh, in_specs=(BATCH, BATCH), out_specs=BATCH)


def _rounds(wanted):
    """Rounds in all; capacity; of each request its owner, place there, round, and slot."""
    devices, count = lax.axis_size(BATCH_AXES), len(wanted)
    capacity = math.ceil(count / devices)
    owner, place = jnp.divmod(wanted, count)
    asked = jax.nn.one_hot(owner, devices, dtype=jnp.int32)
    rank = jnp.take_along_axis(jnp.cumsum(asked, axis=0), owner[:, None], axis=1)[:, 0] - 1
    number, slot = jnp.divmod(rank, capacity)
    rounds = lax.pmax(number.max() + 1, BATCH_AXES)
    return rounds, (devices, capacity), owner, place, number, slot


def _swap(leaf):
    return lax.all_to_all(leaf, BATCH_AXES, 0, 0, tiled=True)


def _gather(rows, wanted):
    rounds, shape, owner, place, number, slot = _rounds(wanted)

    def one_round(state):
        i, gathered = state
        now = number == i
        requests = (
            jnp.zeros(shape, jnp.int32)
            .at[jnp.where(now, owner, shape[0]), slot]
            .set(place, mode="drop")
        )
        requests = _swap(requests)
        answers = jax.tree.map(lambda leaf: _swap(leaf[requests]), rows)

        def put(old, answer):
            mask = now.reshape(-1, *[1] * (old.ndim - 1))
            return jnp.where(mask, answer[owner, slot], old)

        return i + 1, jax.tree.map(put, gathered, answers)

    start = jax.tree.map(jnp.zeros_like, rows)
    return lax.while_loop(lambda s: s[0] < rounds, one_round, (jnp.int32(0), start))[1]


def _scatter_add(gradients, wanted):
    rounds, shape, owner, place, number, slot = _rounds(wanted)

    def one_round(state):
        i, summed = state
        target = (jnp.where(number == i, owner, shape[0]), slot)
        # Slots that nobody uses point behind the last row and are dropped.
        places = jnp.full(shape, len(wanted), jnp.int32).at[target].set(place, mode="drop")
        places = _swap(places)

        def add(total, gradient):
            slots = jnp.zeros((*shape, *gradient.shape[1:]), gradient.dtype)
            slots = _swap(slots.at[target].set(gradient, mode="drop"))
            return total.at[places].add(slots.astype(total.dtype), mode="drop")

        return i + 1, jax.tree.map(add, summed, gradients)

    start = jax.tree.map(lambda g: jnp.zeros_like(g, jnp.float32), gradients)
    return lax.while_loop(lambda s: s[0] < rounds, one_round, (jnp.int32(0), start))[1]
