"""Transformer layers and heads that the parts of RC³ share."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPSILON = 1e-5
"""Of all layer norms outside of the text and patch towers."""


class Attention(nn.Module):
    """Multi-head attention; keys are left out where the bool mask `[batch, keys]` is false."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, queries: Tensor, keys: Tensor, mask: Tensor) -> Tensor:
        def split_heads(x: Tensor) -> Tensor:
            return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

        query = split_heads(self.query(queries))
        key, value = split_heads(self.key(keys)), split_heads(self.value(keys))
        # Finite, so that a row without any key reads the mean of the values instead of NaN.
        bias = torch.zeros_like(mask, dtype=query.dtype)
        bias = bias.masked_fill(~mask, torch.finfo(query.dtype).min / 2)[:, None, None]
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        return self.out(attended.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Self-attention, optional cross-attention, feed-forward; each with a norm and a residual.

    `pre_norm` normalises the input of each part (ROI tower); otherwise its sum with the residual is
    normalised (fusion encoder).
    """

    def __init__(
        self,
        width: int,
        heads: int,
        mlp_width: int,
        dropout: float,
        pre_norm: bool = False,
        cross_attention: bool = False,
    ):
        super().__init__()
        self.pre_norm = pre_norm
        self.self_attention = Attention(width, heads)
        self.self_attention_norm = nn.LayerNorm(width, EPSILON)
        if cross_attention:
            self.cross_attention = Attention(width, heads)
            self.cross_attention_norm = nn.LayerNorm(width, EPSILON)
        self.mlp_in = nn.Linear(width, mlp_width)
        self.mlp_out = nn.Linear(mlp_width, width)
        self.mlp_norm = nn.LayerNorm(width, EPSILON)
        self.drop = nn.Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        mask: Tensor,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
    ) -> Tensor:
        """Each context is read by as many rows in succession as there are rows for each context."""

        def attend(y: Tensor) -> Tensor:
            return self.self_attention(y, y, mask)

        def feed_forward(y: Tensor) -> Tensor:
            return self.mlp_out(F.gelu(self.mlp_in(y)))

        x = self.add(x, self.self_attention_norm, attend)
        if context is not None:
            contexts = context.shape[0]

            def attend_context(y: Tensor) -> Tensor:
                reading = y.reshape(contexts, -1, y.shape[-1])
                return self.cross_attention(reading, context, context_mask).reshape(y.shape)

            x = self.add(x, self.cross_attention_norm, attend_context)
        return self.add(x, self.mlp_norm, feed_forward)

    def add(self, x: Tensor, norm: nn.Module, function: Callable[[Tensor], Tensor]) -> Tensor:
        if self.pre_norm:
            return x + self.drop(function(norm(x)))
        return norm(x + self.drop(function(x)))


class Stack(nn.Module):
    """Blocks, one after another."""

    def __init__(self, blocks: Iterable[nn.Module]):
        super().__init__()
        self.layers = nn.ModuleList(blocks)

    def forward(self, x: Tensor, *inputs: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x, *inputs)
        return x


class Float32Linear(nn.Linear):
    """A linear map computed in float32, whatever the type of its weights, autocast or not."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(x.float(), self.weight.float(), self.bias.float())


def masked_mean(tokens: Tensor, mask: Tensor) -> Tensor:
    """Mean of the tokens under the mask, float32; zero where a row has none."""
    weights = mask.float()[..., None]
    return (tokens.float() * weights).sum(1) / weights.sum(1).clamp(min=1)


class Projection(nn.Module):
    """A linear map to the contrastive space, then division by the length; float32 throughout."""

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
    """Maps fused tokens to what is multiplied with the word embeddings."""

    def __init__(self, width: int):
        super().__init__()
        self.hidden = nn.Linear(width, width)
        self.hidden_norm = nn.LayerNorm(width, EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        return self.hidden_norm(F.gelu(self.hidden(x)))
