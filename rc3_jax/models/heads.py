"""Heads on top of the towers (METHOD.md sections 1.6 and 1.7)."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from rc3_jax.models.layers import l2_normalise
from rc3_jax.models.linear import dense, gelu


class Projection(nn.Module):
    """A linear map to the contrastive space, L2-normalised; float32 throughout."""

    size: int = 256

    @nn.compact
    def __call__(self, x: Float[Array, "*batch width"]) -> Float[Array, "*batch size"]:
        return l2_normalise(dense(self.size, jnp.float32, "linear")(x.astype(jnp.float32)))


class MLPHead(nn.Module):
    """A hidden layer, twice as wide as its input, and `outputs` numbers in float32.

    It predicts whether an image and a text belong together (two logits, class 1 = yes), where in an
    image a text belongs, and to which class a pair belongs.
    """

    outputs: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "batch width"]) -> Float[Array, "batch outputs"]:
        y = dense(2 * x.shape[-1], self.dtype, "hidden")(x)
        y = gelu(nn.LayerNorm(1e-5, self.dtype, name="hidden_norm")(y))
        return dense(self.outputs, jnp.float32, "logits")(y.astype(jnp.float32))


class MaskedLMHead(nn.Module):
    """What the states of masked tokens go through before they meet the word embeddings."""

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*batch width"]) -> Float[Array, "*batch width"]:
        y = gelu(dense(x.shape[-1], self.dtype, "hidden")(x))
        return nn.LayerNorm(1e-5, self.dtype, name="hidden_norm")(y)


def word_logits(
    hidden: Float[Array, "*batch width"],
    words: Float[Array, "vocab width"],
    bias: Float[Array, " vocab"],
) -> Float[Array, "*batch vocab"]:
    """What a masked-language-model head predicts, of every word; float32."""
    logits = jnp.einsum("...w,vw->...v", hidden, words, preferred_element_type=jnp.float32)
    return logits + bias
