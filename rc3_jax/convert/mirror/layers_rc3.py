"""Transformer layers and heads that the parts of RC³ share."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ACTIVATIONS = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
}
EPSILON = 1e-5
"""Of all layer norms but those of the patch tower, and of the text tower where it is set."""


class Attention(nn.Module):
    """Multi-head attention.

    Keys are left out where a bool mask `[batch, keys]` is false. A bias, `[batch, heads, queries,
    keys]` or of one row for all, is added to the logits; it excludes a mask.
    """

    def __init__(self, width: int, heads: int, key_bias: bool = True):
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width, bias=key_bias)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(
        self,
        queries: Tensor,
        keys: Tensor,
        mask: Tensor | None = None,
        bias: Tensor | None = None,
    ) -> Tensor:
        def split_heads(x: Tensor) -> Tensor:
            return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

        query = split_heads(self.query(queries))
        key, value = split_heads(self.key(keys)), split_heads(self.value(keys))
        if mask is not None:
            # Finite, so that a row without any key reads the mean of the values, and no NaN.
            lowest = torch.finfo(query.dtype).min / 2
            bias = torch.zeros_like(mask, dtype=query.dtype).masked_fill(~mask, lowest)
            bias = bias[:, None, None]
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        return self.out(attended.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Self-attention, optional cross-attention, feed-forward; each with a norm and a residual.

    `pre_norm` normalises the input of each part (ViT), otherwise its sum with the residual is
    normalised (BERT, XLM-R).
    """

    def __init__(
        self,
        width: int,
        heads: int,
        mlp_width: int,
        epsilon: float,
        activation: str = "gelu",
        dropout: float = 0.0,
        pre_norm: bool = True,
        cross_attention: bool = False,
        key_bias: bool = True,
    ):
        super().__init__()
        self.pre_norm, self.activation = pre_norm, ACTIVATIONS[activation]
        self.self_attention = Attention(width, heads, key_bias)
        self.self_attention_norm = nn.LayerNorm(width, epsilon)
        if cross_attention:
            self.cross_attention = Attention(width, heads)
            self.cross_attention_norm = nn.LayerNorm(width, epsilon)
        self.mlp_in = nn.Linear(width, mlp_width)
        self.mlp_out = nn.Linear(mlp_width, width)
        self.mlp_norm = nn.LayerNorm(width, epsilon)
        self.drop = nn.Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
    ) -> Tensor:
        def attend(y: Tensor) -> Tensor:
            return self.self_attention(y, y, mask)

        def attend_context(y: Tensor) -> Tensor:
            return self.cross_attention(y, context, context_mask)

        x = self.residual(x, self.self_attention_norm, attend)
        if context is not None:
            x = self.residual(x, self.cross_attention_norm, attend_context)
        return self.residual(x, self.mlp_norm, self.feed_forward)

    def residual(self, x: Tensor, norm: nn.Module, function: Callable[[Tensor], Tensor]) -> Tensor:
        if self.pre_norm:
            return x + self.drop(function(norm(x)))
        return norm(x + self.drop(function(x)))

    def feed_forward(self, x: Tensor) -> Tensor:
        return self.mlp_out(self.activation(self.mlp_in(x)))


class Stack(nn.Module):
    """Blocks, one after another."""

    def __init__(self, blocks: Iterable[nn.Module]):
        super().__init__()
        self.layers = nn.ModuleList(blocks)

    def forward(self, x: Tensor, *inputs: Tensor | None) -> Tensor:
        for layer in self.layers:
            x = layer(x, *inputs)
        return x


class DropPath(nn.Module):
    """In training, sets whole rows to zero with probability `rate`; scales the others to fit."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x
        keep = torch.rand(len(x), *[1] * (x.ndim - 1), device=x.device) >= self.rate
        return x * keep / (1 - self.rate)


class Float32Linear(nn.Linear):
    """A linear map computed in float32, whatever the type of its weights, autocast or not."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(x.float(), self.weight.float(), self.bias.float())


def masked_mean(tokens: Tensor, mask: Tensor) -> Tensor:
    """Mean over the tokens that are there, float32; zero where a row has none."""
    weights = mask.float()[..., None]
    return (tokens.float() * weights).sum(1) / weights.sum(1).clamp(min=1)


class Projection(nn.Module):
    """A linear map to the contrastive space, then vectors of length 1; float32 throughout."""

    def __init__(self, width: int, size: int):
        super().__init__()
        self.linear = Float32Linear(width, size)

    def forward(self, x: Tensor) -> Tensor:
        x = self.linear(x)
        return x * torch.rsqrt((x * x).sum(-1, keepdim=True) + 1e-12)


class AttentionPool(nn.Module):
    """One vector a row: a learned query attends over the row's tokens."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.query = nn.Parameter(torch.empty(1, 1, width))
        self.attention = Attention(width, heads)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        query = self.query.expand(tokens.shape[0], -1, -1)
        return self.attention(query, tokens, mask)[:, 0]


class MatchingHead(nn.Module):
    """Two logits of a fused first token, float32; class 1: image and text belong together."""

    def __init__(self, width: int):
        super().__init__()
        self.hidden = nn.Linear(width, 2 * width)
        self.hidden_norm = nn.LayerNorm(2 * width, EPSILON)
        self.logits = Float32Linear(2 * width, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.logits(F.gelu(self.hidden_norm(self.hidden(x))))


class MaskedLMHead(nn.Module):
    """What fused tokens go through before they meet the word embeddings."""

    def __init__(self, width: int):
        super().__init__()
        self.hidden = nn.Linear(width, width)
        self.hidden_norm = nn.LayerNorm(width, EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        return self.hidden_norm(F.gelu(self.hidden(x)))
