"""Linear maps and GELU whose gradients are written out, since XLA's own are slower on a CPU.

docs/performance.md says what each of them saves.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Float

DENSE_INIT = nn.initializers.variance_scaling(1 / 3, "fan_in", "truncated_normal")
"""BERT's standard deviation of 0.02 at width 768, and its equal at other widths."""


PRODUCT = "product"
"""Checkpoint name of a `Linear`'s product, for rematerialization policies."""


class Linear(nn.Module):
    """`x kernel + bias`, computed in `dtype` with float32 parameters."""

    width: int
    dtype: DTypeLike = jnp.float32
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "*batch inputs"]) -> Float[Array, "*batch width"]:
        kernel = self.param("kernel", DENSE_INIT, (x.shape[-1], self.width))
        y = checkpoint_name(product(x.astype(self.dtype), kernel.astype(self.dtype)), PRODUCT)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.width,))
            y = add_bias(y, bias.astype(self.dtype))
        return y


def dense(width: int, dtype: DTypeLike, name: str | None = None, use_bias: bool = True) -> Linear:
    """A linear map computed in `dtype` with float32 parameters."""
    return Linear(width, dtype, use_bias, name=name)


@jax.custom_vjp
def product(
    x: Float[Array, "*batch inputs"], kernel: Float[Array, "inputs width"]
) -> Float[Array, "*batch width"]:
    """`x kernel`; on a CPU the gradient of a tall kernel is computed transposed, which is faster."""
    return (_rows(x) @ kernel).reshape(*x.shape[:-1], kernel.shape[1])


def _product_gradients(inputs, dy):
    x, kernel = inputs
    dx = jax.lax.dot_general(_rows(dy), kernel, (((1,), (1,)), ((), ()))).reshape(x.shape)
    if kernel.shape[0] <= kernel.shape[1]:
        return dx, _rows(x).T @ _rows(dy)

    def transposed(x, dy):  # without the barrier, XLA would undo the transposition
        return jax.lax.optimization_barrier(dy.T @ x).T

    return dx, _on_cpu(transposed, lambda x, dy: x.T @ dy, _rows(x), _rows(dy))


product.defvjp(lambda x, kernel: (product(x, kernel), (x, kernel)), _product_gradients)


@jax.custom_vjp
def add_bias(y: Float[Array, "*batch width"], bias: Float[Array, " width"]) -> Array:
    """`y + bias`; on a CPU the bias's gradient is a product, which is faster than a sum over rows."""
    return y + bias


def _bias_gradients(_, dy):
    def as_product(rows):
        return (jnp.ones((1, len(rows)), rows.dtype) @ rows)[0]

    return dy, _on_cpu(as_product, lambda rows: rows.sum(axis=0), _rows(dy))


add_bias.defvjp(lambda y, bias: (add_bias(y, bias), None), _bias_gradients)


@jax.custom_vjp
def gelu(x: Float[Array, ...]) -> Float[Array, ...]:
    """Exact GELU, `x Φ(x)` (Hendrycks and Gimpel, arXiv 1606.08415), computed in float32.

    As in PyTorch, Φ is `(1 + erf(x / √2)) / 2`, whose error is of the size of float32's rounding of
    1, not of Φ. The backward pass keeps `x` alone.
    """
    y = x.astype(jnp.float32)
    return (y * _normal_cdf(y)).astype(x.dtype)


def _gelu_gradient(x, dy):
    y = x.astype(jnp.float32)
    density = jnp.exp(-0.5 * y * y) / math.sqrt(2 * math.pi)
    return ((dy * (_normal_cdf(y) + y * density)).astype(x.dtype),)


gelu.defvjp(lambda x: (gelu(x), x), _gelu_gradient)


def _on_cpu(there: Callable[..., Array], elsewhere: Callable[..., Array], *arrays: Array) -> Array:
    """What `there` gives in a program compiled for a CPU, and `elsewhere` in others; both are equal."""
    return jax.lax.platform_dependent(*arrays, cpu=there, default=elsewhere)


def _normal_cdf(x: Float[Array, ...]) -> Float[Array, ...]:
    return 0.5 * (1 + jax.lax.erf(x * math.sqrt(0.5)))


def _rows(x: Float[Array, "*batch width"]) -> Float[Array, "rows width"]:
    return x.reshape(-1, x.shape[-1])
