"""The visual towers of RC³: pixels to tokens of patches, and regions to tokens."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers_rc3 import EPSILON, Block, DropPath, Float32Linear, Stack

# What each type of tower has where its settings do not say otherwise.
EPSILONS = {"vit": 1e-12, "clip": 1e-5, "siglip": 1e-6, "beit": 1e-6, "swin": 1e-5}
TOWER_ACTIVATIONS = {"clip": "quick_gelu", "siglip": "gelu_tanh"}
ACROSS = -100.0
"""Added to the logit of two tokens of a shifted window that are no neighbours in the image."""
BINS = 7
GEOMETRIES = {"7d": 7, "5d": 5}
"""Numbers of a region's place: x1, y1, x2, y2, (w, h,) area."""


def to_patches(pixels: Tensor, patch: int) -> Tensor:
    """`[batch, 3, size, size]` to `[batch, patches, patch * patch * 3]`, colours last."""
    pixels = pixels.unflatten(3, (-1, patch)).unflatten(2, (-1, patch))
    return pixels.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def relative_index(side: int, device: torch.device) -> Tensor:
    """Row of a table of relative positions for each query and key of a square, row by row."""
    place = torch.arange(side * side, device=device)
    rows, columns = place // side, place % side
    offset_rows = rows[:, None] - rows + side - 1
    offset_columns = columns[:, None] - columns + side - 1
    return offset_rows * (2 * side - 1) + offset_columns


def prepend_mean(tokens: Tensor) -> Tensor:
    """The mean of each row's tokens, taken in float32, before the tokens."""
    mean = tokens.float().mean(dim=1, keepdim=True)
    return torch.cat([mean.to(tokens.dtype), tokens], dim=1)


class PatchTower(nn.Module):
    """The vision transformers "vit", "clip" and "siglip".

    "clip" normalises what enters its encoder; "siglip" has the patches' mean as class token.
    """

    def __init__(
        self, settings: Mapping[str, Any], epsilon: float, activation: str, dropout: float
    ):
        super().__init__()
        width, self.patch, self.type = settings["width"], settings["patch"], settings["type"]
        tokens = (settings["image_size"] // self.patch) ** 2
        self.patch_embedding = nn.Linear(3 * self.patch**2, width, bias=self.type != "clip")
        if self.type != "siglip":
            self.class_token = nn.Parameter(torch.empty(1, 1, width))
            tokens += 1
        self.position_embedding = nn.Parameter(torch.empty(1, tokens, width))
        if self.type == "clip":
            self.embedding_norm = nn.LayerNorm(width, epsilon)
        self.drop = nn.Dropout(dropout)
        sizes = (width, settings["heads"], settings["mlp_width"])
        self.encoder = Stack(
            Block(*sizes, epsilon, activation, dropout) for _ in range(settings["depth"])
        )
        self.final_norm = nn.LayerNorm(width, epsilon)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.patch_embedding(to_patches(pixels, self.patch))
        if self.type != "siglip":
            x = torch.cat([self.class_token.expand(x.shape[0], -1, -1), x], dim=1)
        x = x + self.position_embedding
        if self.type == "clip":
            x = self.embedding_norm(x)
        x = self.final_norm(self.encoder(self.drop(x)))
        return prepend_mean(x) if self.type == "siglip" else x


class BeitBlock(Block):
    """With a bias for the places of two patches to one another, and learned scales."""

    def __init__(self, grid: int, width: int, heads: int, *args: Any, drop_path: float):
        super().__init__(width, heads, *args, key_bias=False)
        self.grid = grid
        self.relative_positions = nn.Parameter(torch.empty((2 * grid - 1) ** 2 + 3, heads))
        self.self_attention_scale = nn.Parameter(torch.empty(width))
        self.mlp_scale = nn.Parameter(torch.empty(width))
        self.drop = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        y = self.self_attention_norm(x)
        y = self.self_attention(y, y, bias=self.position_bias())
        x = x + self.drop(self.self_attention_scale * y)
        return x + self.drop(self.mlp_scale * self.feed_forward(self.mlp_norm(x)))

    def position_bias(self) -> Tensor:
        """`[1, heads, tokens, tokens]`; the table ends with three rows of the class token.

        In order: from it to any patch, from any patch to it, and to itself.
        """
        offsets = (2 * self.grid - 1) ** 2
        index = relative_index(self.grid, self.relative_positions.device)
        index = F.pad(index, (0, 0, 1, 0), value=offsets)
        index = F.pad(index, (1, 0, 0, 0), value=offsets + 1)
        index[0, 0] = offsets + 2
        return self.relative_positions[index].permute(2, 0, 1)[None]


class BeitTower(nn.Module):
    """BEiT-v2: the mean of the patch tokens, then these."""

    def __init__(self, settings: Mapping[str, Any], epsilon: float, activation: str):
        super().__init__()
        width, self.patch = settings["width"], settings["patch"]
        self.patch_embedding = nn.Linear(3 * self.patch**2, width)
        self.class_token = nn.Parameter(torch.empty(1, 1, width))
        sizes = (settings["image_size"] // self.patch, width, settings["heads"])
        sizes += (settings["mlp_width"], epsilon, activation)
        rates = drop_path_rates(settings["drop_path"], settings["depth"])
        self.encoder = Stack(BeitBlock(*sizes, drop_path=rate) for rate in rates)
        self.final_norm = nn.LayerNorm(width, epsilon)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.patch_embedding(to_patches(pixels, self.patch))
        x = torch.cat([self.class_token.expand(x.shape[0], -1, -1), x], dim=1)
        return prepend_mean(self.final_norm(self.encoder(x)[:, 1:]))


def drop_path_rates(last: float, depth: int) -> list[float]:
    """Of each block; they grow linearly from 0."""
    return [last * number / max(depth - 1, 1) for number in range(depth)]


def to_windows(x: Tensor, window: int) -> Tensor:
    """`[batch, side, side, width]` to `[batch * windows, window * window, width]`."""
    x = x.unflatten(2, (-1, window)).unflatten(1, (-1, window))
    return x.transpose(2, 3).flatten(0, 2).flatten(1, 2)


def from_windows(windows: Tensor, window: int, side: int) -> Tensor:
    """The inverse of `to_windows`."""
    count = side // window
    x = windows.unflatten(1, (window, window)).unflatten(0, (-1, count, count))
    return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)


class SwinBlock(Block):
    """Attention within windows, moved by `shift` tokens, with a bias for relative positions."""

    def __init__(self, window: int, shift: int, width: int, *args: Any, drop_path: float):
        super().__init__(width, *args)
        heads = self.self_attention.heads
        self.window, self.shift = window, shift
        self.relative_positions = nn.Parameter(torch.empty((2 * window - 1) ** 2, heads))
        self.drop = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.roll(self.self_attention_norm(x), (-self.shift, -self.shift), (1, 2))
        y = to_windows(y, self.window)
        y = self.self_attention(y, y, bias=self.position_bias(*x.shape[:2]))
        y = from_windows(y, self.window, x.shape[1])
        x = x + self.drop(torch.roll(y, (self.shift, self.shift), (1, 2)))
        return x + self.drop(self.feed_forward(self.mlp_norm(x)))

    def position_bias(self, batch: int, side: int) -> Tensor:
        """Of all windows alike `[1, heads, area, area]`, or of each where they are shifted."""
        table = self.relative_positions
        bias = table[relative_index(self.window, table.device)].permute(2, 0, 1)[None]
        if self.shift == 0:
            return bias
        rolled = torch.arange(side, device=table.device) >= side - self.shift
        part = 2 * rolled[:, None].long() + rolled.long()
        part = to_windows(part[None, :, :, None], self.window)
        across = ACROSS * (part != part.transpose(1, 2)).to(table.dtype)
        return (bias + across[:, None]).repeat(batch, 1, 1, 1)


class MergeNeighbours(nn.Module):
    """`[batch, side, side, width]` to `[batch, side / 2, side / 2, 4 * width]`.

    Of four neighbours: upper left, lower left, upper right, lower right.
    """

    def forward(self, x: Tensor) -> Tensor:
        x = x.unflatten(2, (-1, 2)).unflatten(1, (-1, 2))
        return x.permute(0, 1, 3, 4, 2, 5).flatten(3)


class SwinTower(nn.Module):
    """The mean of the last stage's tokens, then these."""

    def __init__(self, settings: Mapping[str, Any], epsilon: float, activation: str):
        super().__init__()
        depths, width, self.patch = settings["depths"], settings["width"], settings["patch"]
        side = settings["image_size"] // self.patch
        self.patch_embedding = nn.Linear(3 * self.patch**2, width)
        self.patch_norm = nn.LayerNorm(width, epsilon)
        rates = iter(drop_path_rates(settings["drop_path"], sum(depths)))
        stages = OrderedDict()
        for number, (depth, heads) in enumerate(zip(depths, settings["heads"], strict=True)):
            window = min(settings["window"], side)
            sizes = (width, heads, 4 * width, epsilon, activation)
            parts = OrderedDict()
            for block in range(depth):
                shift = window // 2 if block % 2 and window < side else 0
                parts[f"block_{block}"] = SwinBlock(window, shift, *sizes, drop_path=next(rates))
            if number < len(depths) - 1:
                parts["neighbours"] = MergeNeighbours()
                parts["merge_norm"] = nn.LayerNorm(4 * width, epsilon)
                parts["merge"] = nn.Linear(4 * width, 2 * width, bias=False)
                side, width = side // 2, 2 * width
            stages[f"stage_{number}"] = nn.Sequential(parts)
        self.stages = list(stages)
        for name, stage in stages.items():
            self.add_module(name, stage)
        self.final_norm = nn.LayerNorm(width, epsilon)

    def forward(self, pixels: Tensor) -> Tensor:
        x = to_patches(pixels, self.patch)
        x = self.patch_norm(self.patch_embedding(x))
        x = x.unflatten(1, (math.isqrt(x.shape[1]), -1))
        for name in self.stages:
            x = self.get_submodule(name)(x)
        return prepend_mean(self.final_norm(x).flatten(1, 2))


def build_tower(settings: Mapping[str, Any], dropout: float) -> nn.Module:
    """The visual tower of the settings `model.patch`.

    Called with pixels `[batch, 3, image_size, image_size]` it returns
    `[batch, 1 + grid * grid, width]`: one token for the whole image, then the patches row by row.

    Raises:
      ValueError: for an unknown type of tower.
    """
    kind = settings.get("type")
    if kind not in EPSILONS:
        raise ValueError(f"model.patch.type={kind!r}: use one of {', '.join(EPSILONS)}")
    epsilon, activation = settings.get("epsilon"), settings.get("activation")
    epsilon = EPSILONS[kind] if epsilon is None else epsilon
    activation = activation or TOWER_ACTIVATIONS.get(kind, "gelu")
    if kind in ("beit", "swin"):
        return (BeitTower if kind == "beit" else SwinTower)(settings, epsilon, activation)
    return PatchTower(settings, epsilon, activation, dropout)


def sampling_weights(low: Tensor, high: Tensor, cells: int) -> Tensor:
    """Mean bilinear weight of each grid cell in 2 samples a bin: `[batch, regions, cells]`."""
    steps = (torch.arange(2 * BINS, device=low.device) + 0.5) / (2 * BINS)
    points = low[..., None] + (high - low)[..., None] * steps
    points = (points * cells - 0.5).clamp(0, cells - 1)
    distance = (points[..., None] - torch.arange(cells, device=low.device)).abs()
    return (1 - distance).clamp(min=0).mean(-2)


def roi_align(grid: Tensor, boxes: Tensor) -> Tensor:
    """Mean RoI-align feature of each box, `[batch, regions, width]`, of 7 x 7 bins.

    Bilinear weights are a product of a row and a column weight, and so is their mean.

    Args:
      grid: `[batch, side, side, width]`.
      boxes: float32 `[batch, regions, 4]`, fractions of the image.
    """
    x1, y1, x2, y2 = boxes.unbind(-1)
    rows = sampling_weights(y1, y2, grid.shape[1]).to(grid.dtype)
    columns = sampling_weights(x1, x2, grid.shape[2]).to(grid.dtype)
    return torch.einsum("bnr,bnc,brcw->bnw", rows, columns, grid)


class RoiTower(nn.Module):
    """`norm(feature) + norm(geometry)` of each region, then a small transformer.

    Rows whose regions have no detector feature use RoI-align over the patch tokens.
    """

    def __init__(self, roi: Mapping[str, Any], text: Mapping[str, Any], dropout: float):
        super().__init__()
        width, self.geometry = text["width"], roi["geometry"]
        if self.geometry not in GEOMETRIES:
            raise ValueError(f"model.roi.geometry={self.geometry!r}: use {' or '.join(GEOMETRIES)}")
        self.feature_embedding = nn.Linear(roi["feature_size"], width)
        self.aligned_embedding = nn.Linear(width, width)
        self.geometry_embedding = Float32Linear(GEOMETRIES[self.geometry], width)
        self.feature_norm = nn.LayerNorm(width, EPSILON)
        self.geometry_norm = nn.LayerNorm(width, EPSILON)
        self.drop = nn.Dropout(dropout)
        sizes = (width, text["heads"], text["mlp_width"], EPSILON)
        self.encoder = Stack(Block(*sizes, dropout=dropout) for _ in range(roi["depth"]))
        self.final_norm = nn.LayerNorm(width, EPSILON)

    def forward(
        self,
        features: Tensor,
        boxes: Tensor,
        mask: Tensor,
        has_features: Tensor,
        grid: Tensor | None,
    ) -> Tensor:
        content = self.feature_embedding(features.to(self.feature_embedding.weight.dtype))
        if grid is not None:
            aligned = self.aligned_embedding(roi_align(grid, boxes))
            content = torch.where(has_features[:, None, None], content, aligned)
        width, height = (boxes[..., 2:] - boxes[..., :2]).split(1, dim=-1)
        sides = [width, height] if self.geometry == "7d" else []
        place = self.geometry_embedding(torch.cat([boxes, *sides, width * height], dim=-1))
        x = self.feature_norm(content) + self.geometry_norm(place.to(content.dtype))
        x = self.encoder(self.drop(x), mask)
        return self.final_norm(x)
