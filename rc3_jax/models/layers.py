"""Transformer layers shared by every tower: attention, block, stack."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from rc3_jax.models.attention import XLA, Attend
from rc3_jax.models.linear import PRODUCT, Linear, apply_together, dense, gelu
from rc3_jax.parallel.mesh import BATCH_AXES, constrain

REMAT_POLICIES = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.save_only_these_names(PRODUCT),
}

TOKEN_INIT = nn.initializers.truncated_normal(0.02)

ACTIVATIONS = {
    "gelu": gelu,
    "gelu_tanh": functools.partial(nn.gelu, approximate=True),
    "quick_gelu": lambda x: x * nn.sigmoid(1.702 * x),
}


class Attention(nn.Module):
    """Multi-head attention.

    Attributes:
      key_bias: False leaves out the keys' bias (BEiT).
      causal: each query reads the keys up to its own place only.
      key_value: what projects keys and values; None for projections of its own.
      attend: what computes it.
    """

    heads: int
    dtype: DTypeLike = jnp.float32
    key_bias: bool = True
    causal: bool = False
    key_value: tuple[Linear, Linear] | None = None
    attend: Attend = XLA

    @nn.compact
    def __call__(
        self,
        queries: Float[Array, "batch q width"],
        keys: Float[Array, "batch k kv_width"],
        key_mask: Bool[Array, "batch k"] | None = None,
        bias: Float[Array, "rows heads q k"] | None = None,
    ) -> Float[Array, "batch q width"]:
        """Args: bias: float32, added to the scaled products, of one row for all or of each."""
        width = queries.shape[-1]

        def split_heads(x):
            return x.reshape(*x.shape[:-1], self.heads, width // self.heads)

        of_query = dense(width, self.dtype, "query")
        of_key, of_value = self.key_value or (
            dense(width, self.dtype, "key", self.key_bias),
            dense(width, self.dtype, "value"),
        )
        if keys is queries:
            parts = apply_together(queries, of_query, of_key, of_value)
        else:
            parts = [of_query(queries), *apply_together(keys, of_key, of_value)]
        query, key, value = map(split_heads, parts)
        attended = self.attend(query, key, value, key_mask, bias, self.causal)
        return dense(width, self.dtype, "out")(attended.reshape(queries.shape))


class Block(nn.Module):
    """Self-attention, optional cross-attention, feed-forward; each with a residual.

    `pre_norm` normalises the input of each part (ViT), otherwise its sum with the residual
    is normalised (BERT, XLM-R). Cross-attention is left out where there is no context.
    `causal` and `key_bias` are those of the self-attention, `key_value` that of the cross-attention.
    `layer_scale` is the initial value of learned factors of the channels that a part adds (Touvron
    et al., arXiv 2103.17239); None for no factors.
    """

    heads: int
    mlp_width: int
    pre_norm: bool
    epsilon: float
    cross_attention: bool = False
    dropout: float = 0.0
    dtype: DTypeLike = jnp.float32
    activation: str = "gelu"
    causal: bool = False
    key_value: tuple[Linear, Linear] | None = None
    key_bias: bool = True
    layer_scale: float | None = None
    attention: Attend = XLA

    @nn.compact
    def __call__(
        self, x, mask=None, context=None, context_mask=None, deterministic=True, drop_rate=None
    ):
        """Runs the layer.

        Args:
          context: see `Stack.__call__`.
          drop_rate: chance of each row to leave out what a part adds; None for never.
        """

        def residual(x, name, function):
            norm = nn.LayerNorm(self.epsilon, self.dtype, name=f"{name}_norm")
            y = function(norm(x) if self.pre_norm else x)
            y = nn.Dropout(self.dropout)(y, deterministic=deterministic)
            if self.layer_scale is not None:
                init = nn.initializers.constant(self.layer_scale)
                y = y * self.param(f"{name}_scale", init, x.shape[-1:]).astype(self.dtype)
            if drop_rate is not None:
                y = drop_path(y, drop_rate, self.make_rng("dropout"))
            return x + y if self.pre_norm else norm(x + y)

        def feed_forward(y):
            y = ACTIVATIONS[self.activation](dense(self.mlp_width, self.dtype, "mlp_in")(y))
            return dense(x.shape[-1], self.dtype, "mlp_out")(y)

        x = residual(x, "self_attention", lambda y: self.attend(y, mask))
        if self.cross_attention and context is not None:
            cross = Attention(
                self.heads,
                self.dtype,
                key_value=self.key_value,
                attend=self.attention,
                name="cross_attention",
            )

            if len(x) % len(context):
                raise ValueError(f"{len(x)} rows cannot share {len(context)} contexts evenly")

            def read(y):
                reading = y.reshape(len(context), -1, y.shape[-1])
                return cross(reading, context, context_mask).reshape(y.shape)

            x = residual(x, "cross_attention", read)
        return residual(x, "mlp", feed_forward)

    def attend(self, y: Array, mask: Array | None, bias: Array | None = None) -> Array:
        """Self-attention; subclasses arrange the tokens or add a bias of their places."""
        attention = Attention(
            self.heads,
            self.dtype,
            self.key_bias,
            self.causal,
            attend=self.attention,
            name="self_attention",
        )
        return attention(y, y, mask, bias)


class Stack(nn.Module):
    """`depth` blocks, compiled once by `scan`; parameters carry a leading layer axis.

    Attributes:
      remat: what the backward pass recomputes: `none`, `dots` (all but matrix products),
        `full` (everything).
      unroll: layers a loop iteration holds; `depth` or more unrolls the loop, which compiles
        slower and can run faster.
      mesh: rows stay spread over it between the layers, where the compiler might rather collect
        them than parameters; None leaves all to the compiler.
      activation: of the feed-forward layers, one of `ACTIVATIONS`.
      causal: tokens read themselves and those before them only.
      drop_path: chance to leave out what a part of the last layer adds; it grows linearly from 0 at
        the first layer (stochastic depth).
      attention: what computes it.
    """

    depth: int
    heads: int
    mlp_width: int
    pre_norm: bool
    epsilon: float
    cross_attention: bool = False
    dropout: float = 0.0
    remat: str = "none"
    unroll: int = 1
    dtype: DTypeLike = jnp.float32
    mesh: Mesh | None = None
    activation: str = "gelu"
    causal: bool = False
    drop_path: float = 0.0
    attention: Attend = XLA

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch length width"],
        mask: Bool[Array, "batch length"] | None = None,
        context: Float[Array, "contexts keys kv_width"] | None = None,
        context_mask: Bool[Array, "contexts keys"] | None = None,
        deterministic: bool = True,
    ) -> Float[Array, "batch length width"]:
        """Runs the layers.

        Args:
          context: what cross-attention reads: each is read by `batch / contexts` rows in succession,
            and its keys and values are computed once for all of them.

        Raises:
          ValueError: if the rows cannot share the contexts evenly.
        """

        def step(block, x, mask, context, context_mask, drop_rate=None):
            return block(x, mask, context, context_mask, deterministic, drop_rate)

        drops = self.drop_path > 0 and not deterministic
        rates = jnp.linspace(0.0, self.drop_path, self.depth) if drops else None
        block = self.make_block(name="layers")
        return self.loop(step, block, x, mask, context, context_mask, scanned=rates)

    @nn.nowrap
    def make_block(self, kind: type[Block] = Block, **more: Any) -> Block:
        """A layer of the module that asks for it; `more` are further attributes of its kind."""
        return kind(
            self.heads,
            self.mlp_width,
            self.pre_norm,
            self.epsilon,
            self.cross_attention,
            self.dropout,
            self.dtype,
            self.activation,
            self.causal,
            attention=self.attention,
            **more,
        )

    def loop(
        self,
        step: Callable,
        block: nn.Module,
        x: Array,
        *constants: Any,
        scanned: Array | None = None,
    ) -> Array:
        """`x` after `x = step(block, x, *constants)` for each of `depth` such blocks.

        Args:
          scanned: `[depth, ...]`; each block's part of it is a last argument of `step`.
        """

        def layer(block, x, own, *constants):
            last = () if own is None else (own,)
            return step(block, constrain(x, self.mesh, BATCH_AXES), *constants, *last), None

        if self.remat != "none":
            layer = nn.remat(layer, prevent_cse=False, policy=REMAT_POLICIES[self.remat])
        layers = nn.scan(
            layer,
            variable_axes={"params": 0, "intermediates": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(0, *(nn.broadcast,) * len(constants)),
            length=self.depth,
            unroll=min(self.unroll, self.depth),
        )
        x, _ = layers(block, x, scanned, *constants)
        return constrain(x, self.mesh, BATCH_AXES)


class AttentionPool(nn.Module):
    """One vector a row: a learned query attends over the row's tokens."""

    heads: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, tokens: Float[Array, "batch length width"], mask: Bool[Array, "batch length"]
    ) -> Float[Array, "batch width"]:
        batch, _, width = tokens.shape
        query = self.param("query", TOKEN_INIT, (1, 1, width)).astype(self.dtype)
        query = jnp.broadcast_to(query, (batch, 1, width))
        return Attention(self.heads, self.dtype, name="attention")(query, tokens, mask)[:, 0]


def relative_index(window: int) -> Int[np.ndarray, "area area"]:
    """Row of a relative-position table for each query and key of a square window, row by row.

    The table has a row for every offset (dy, dx) = query - key, from (-(w - 1), -(w - 1)) on,
    dx fastest (Swin, arXiv 2103.14030, section 3.2; BEiT).
    """
    rows, columns = np.divmod(np.arange(window * window), window)
    offset_rows = rows[:, None] - rows + window - 1
    offset_columns = columns[:, None] - columns + window - 1
    return offset_rows * (2 * window - 1) + offset_columns


def drop_path(
    x: Float[Array, "batch ..."], rate: float | Float[Array, ""], key: PRNGKeyArray
) -> Float[Array, "batch ..."]:
    """Sets whole rows to zero with probability `rate`, and scales the others to the same mean.

    Stochastic depth (Huang et al., arXiv 1603.09382), `x` being what a layer adds.
    """
    keep = jax.random.bernoulli(key, 1 - rate, (len(x),) + (1,) * (x.ndim - 1))
    return jnp.where(keep, x / (1 - rate), 0).astype(x.dtype)


def prepend_mean(tokens: Float[Array, "batch n width"]) -> Float[Array, "batch n+1 width"]:
    """The mean of each row's tokens, taken in float32, before the tokens."""
    mean = jnp.mean(tokens, axis=1, keepdims=True, dtype=jnp.float32)
    return jnp.concatenate([mean.astype(tokens.dtype), tokens], axis=1)


def masked_mean(
    tokens: Float[Array, "batch length width"], mask: Bool[Array, "batch length"]
) -> Float[Array, "batch width"]:
    """Mean over the unmasked tokens in float32; zero where a row has none."""
    weights = mask.astype(jnp.float32)[..., None]
    total = jnp.sum(tokens.astype(jnp.float32) * weights, axis=1)
    return total / jnp.maximum(weights.sum(axis=1), 1.0)


def l2_normalise(x: Float[Array, "*batch width"]) -> Float[Array, "*batch width"]:
    """Unit vectors in float32; the gradient is finite at zero too."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) + 1e-12)
