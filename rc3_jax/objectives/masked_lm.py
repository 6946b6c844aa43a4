"""Masked conditional language modelling (METHOD.md section 2, MCLM) over any vocabulary."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int

from rc3_jax.data.text import IGNORED
from rc3_jax.objectives.tiles import LOWEST, vary
from rc3_jax.parallel.mesh import AXES, BATCH, one_device_mesh

TILE = 8192
"""Words compared at a time."""
WORDS = PartitionSpec(("tensor", "fsdp"))
"""How the vocabulary is spread while the loss is computed."""


def masked_lm_loss(
    hidden: Float[Array, "batch masked width"],
    embedding: Float[Array, "vocab width"],
    bias: Float[Array, " vocab"],
    labels: Int[Array, "batch masked"],
    mesh: Mesh | None = None,
    tile: int = TILE,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Mean cross-entropy over all masked tokens of the batch, and the share predicted right.

    The logits are `hidden embedding^T + bias`. They are computed for `tile` words at a time, and
    again for the gradient, so that memory does not grow with vocabulary times positions. Devices
    along `tensor` and `fsdp` hold a part of the words each; along `fsdp` they collect the tile
    in hand, and along `tensor` they join the statistics of their words.

    Args:
      embedding: in the type that is to be computed with; bias in float32.
      labels: the tokens that stood at the masked positions; `IGNORED` where a row has fewer.
      mesh: where rows and words are spread; None for a single device.
    """
    mesh = mesh or one_device_mesh()
    valid = labels != IGNORED
    target = jnp.where(valid, labels, 0)
    parts = mesh.shape["tensor"] * mesh.shape["fsdp"]
    vocab = len(embedding)
    share = -(-vocab // parts)
    local_tile = min(share, -(-tile // mesh.shape["fsdp"]))
    missing = -(-share // local_tile) * local_tile * parts - vocab
    log_sum, picked, highest = _word_statistics(
        mesh,
        local_tile,
        hidden,
        jnp.pad(embedding, ((0, missing), (0, 0))),
        jnp.pad(bias, (0, missing), constant_values=LOWEST),
        target,
    )
    count = jnp.maximum(valid.sum(), 1)
    right = (picked >= highest) & valid
    return jnp.sum((log_sum - picked) * valid) / count, right.sum() / count


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _word_statistics(mesh, tile, hidden, embedding, bias, target):
    """Returns each position's log-sum-exp of logits, logit of the target, and highest logit."""
    return _forward(mesh, tile, hidden, embedding, bias, target)[0]


def _forward(mesh, tile, hidden, embedding, bias, target):
    def local(hidden, embedding, bias, target):
        def tile_fn(state, words):
            highest, total, picked = state
            logits, hit, _ = _tile_logits(hidden, target, words)
            new = jnp.maximum(highest, logits.max(axis=-1))
            total = total * jnp.exp(highest - new) + jnp.exp(logits - new[..., None]).sum(-1)
            return (new, total, picked + jnp.sum(logits * hit, axis=-1)), None

        zeros = jnp.zeros(target.shape)
        start = vary((jnp.full(target.shape, LOWEST), zeros, zeros), AXES)
        words = _tiles(tile, embedding, bias)
        (mine, total, picked), _ = lax.scan(tile_fn, start, words)
        highest = lax.pmax(mine, "tensor")
        total = lax.psum(total * jnp.exp(mine - highest), "tensor")
        return highest + jnp.log(total), lax.psum(picked, "tensor"), highest

    results = _shard_map(mesh, local, (BATCH, WORDS, WORDS, BATCH), BATCH)(
        hidden, embedding, bias, target
    )
    return results, (hidden, embedding, bias, target, results[0])


def _backward(mesh, tile, residuals, cotangents):
    def local(hidden, embedding, bias, target, log_sum, d_log_sum, d_picked):
        def tile_fn(d_hidden, words):
            logits, hit, e = _tile_logits(hidden, target, words)
            weights = jnp.exp(jnp.minimum(logits - log_sum[..., None], 0.0))
            ds = d_log_sum[..., None] * weights + d_picked[..., None] * hit
            d_bias = ds.sum(range(ds.ndim - 1))
            ds = ds.astype(hidden.dtype)
            d_hidden += _einsum("...v,vw->...w", ds, e)
            d_words = _einsum("bmv,bmw->vw", ds, hidden), d_bias
            return d_hidden, lax.psum_scatter(d_words, "fsdp", tiled=True)

        start = vary(jnp.zeros(hidden.shape, jnp.float32), AXES)
        d_hidden, d_words = lax.scan(tile_fn, start, _tiles(tile, embedding, bias))
        d_words = jax.tree.map(lambda d: d.reshape(-1, *d.shape[2:]), d_words)
        d_embedding, d_bias = lax.psum(d_words, ("replica", "data"))
        d_hidden = lax.psum(d_hidden, "tensor")
        return d_hidden.astype(hidden.dtype), d_embedding.astype(embedding.dtype), d_bias

    specs = (BATCH, WORDS, WORDS, BATCH, BATCH, BATCH, BATCH)
    d_log_sum, d_picked, _ = cotangents
    gradient = _shard_map(mesh, local, specs, (BATCH, WORDS, WORDS))
    return (*gradient(*residuals, d_log_sum, d_picked), None)


_word_statistics.defvjp(_forward, _backward)


def _shard_map(mesh, function, in_specs, out_specs):
    return jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs)


def _tiles(tile, embedding, bias):
    """Tiles of this device's words: first number, embeddings, biases."""
    first = lax.axis_index(WORDS[0]) * len(bias)
    firsts = first + jnp.arange(0, len(bias), tile)
    return firsts, embedding.reshape(-1, tile, embedding.shape[1]), bias.reshape(-1, tile)


def _tile_logits(hidden, target, words):
    """Float32 logits of a tile, which of them are the targets', and the tile's embeddings."""
    first, embedding, bias = words
    numbers = first + jnp.arange(len(bias))
    numbers, embedding, bias = lax.all_gather((numbers, embedding, bias), "fsdp", tiled=True)
    hit = (target[..., None] == numbers).astype(jnp.float32)
    return _einsum("...w,vw->...v", hidden, embedding) + bias, hit, embedding


def _einsum(spec, x, y):
    return jnp.einsum(spec, x, y, preferred_element_type=jnp.float32)
