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

    def __call__(self, x: Float[Array, "*batch inputs"]) -> Float[Array, "*batch width"]:
        kernel, bias = self.weights(x.shape[-1])
        return _with_bias(_named_product(x, kernel), bias)

    @nn.compact
    def weights(
        self, inputs: int
    ) -> tuple[Float[Array, "inputs width"], Float[Array, " width"] | None]:
        """The kernel and the bias, None without one, in `dtype`."""
        kernel = self.param("kernel", DENSE_INIT, (inputs, self.width))
        bias = self.param("bias", nn.initializers.zeros, (self.width,)) if self.use_bias else None
        return kernel.astype(self.dtype), None if bias is None else bias.astype(self.dtype)


def apply_together(
    x: Float[Array, "*batch inputs"], *maps: Linear
) -> list[Float[Array, "*batch width"]]:
    """What each of several maps of one width makes of `x`, by one product of `x` and all kernels."""
    kernels, biases = zip(*(one.weights(x.shape[-1]) for one in maps), strict=True)
    # An axis of their own keeps columns on the devices that share them.
    y = _named_product(x, jnp.stack(kernels, axis=1))
    return [_with_bias(y[..., i, :], bias) for i, bias in enumerate(biases)]


def _named_product(x: Float[Array, "*batch inputs"], kernel: Float[Array, "inputs ..."]) -> Array:
    return checkpoint_name(product(x.astype(kernel.dtype), kernel), PRODUCT)


def _with_bias(y: Float[Array, "*batch width"], bias: Float[Array, " width"] | None) -> Array:
    return y if bias is None else add_bias(y, bias)


def dense(width: int, dtype: DTypeLike, name: str | None = None, use_bias: bool = True) -> Linear:
    """A linear map computed in `dtype` with float32 parameters."""
    return Linear(width, dtype, use_bias, name=name)


@jax.custom_vjp
def product(
    x: Float[Array, "*batch inputs"], kernel: Float[Array, "inputs ..."]
) -> Float[Array, ...]:
    """`x kernel`; on a CPU the gradient of a tall kernel is computed transposed, which is faster."""
    y = jax.lax.dot_general(_rows(x), kernel, (((1,), (0,)), ((), ())))
    return y.reshape(*x.shape[:-1], *kernel.shape[1:])


def _product_gradients(inputs, dy):
    x, kernel = inputs
    dy = dy.reshape(-1, *kernel.shape[1:])
    columns = tuple(range(1, kernel.ndim))
    dx = jax.lax.dot_general(dy, kernel, ((columns, columns), ((), ()))).reshape(x.shape)

    def plain(x, dy):
        return jax.lax.dot_general(x, dy, (((0,), (0,)), ((), ())))

    def transposed(x, dy):  # without the barrier, XLA would undo the transposition
        return jnp.moveaxis(jax.lax.optimization_barrier(plain(dy, x)), -1, 0)

    if kernel.shape[0] <= math.prod(kernel.shape[1:]):
        return dx, plain(_rows(x), dy)
    return dx, _on_cpu(transposed, plain, _rows(x), dy)


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
