"""The towers of RC³: text and patches, which are models of transformers, and regions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel

from .layers_rc3 import EPSILON, Block, Float32Linear, Stack

BINS = 7
GEOMETRIES = {"7d": 7, "5d": 5}
"""Numbers of a region's place: x1, y1, x2, y2, (w, h,) area."""


def build_tower(settings: Mapping[str, Any]) -> Any:
    """A model of transformers without what reads a single vector from it.

    Args:
      settings: as in the model's own `config.json`, with its `model_type`.
    """
    tower = AutoModel.from_config(AutoConfig.for_model(**settings))
    tower = getattr(tower, "vision_model", tower)  # CLIP and SigLIP in transformers 4
    if hasattr(getattr(tower, "pooler", None), "dense"):
        tower.pooler = None
    if settings["model_type"] == "swin":
        _narrow_windows(tower)
    return tower


def _narrow_windows(tower: Any) -> None:
    """Gives a Swin stage smaller than the window one window; transformers refuses to compute it."""
    config = tower.config
    side = config.image_size // config.patch_size
    for number, stage in enumerate(tower.encoder.layers):
        for block in stage.blocks if side < config.window_size else ():
            width, heads = config.embed_dim * 2**number, config.num_heads[number]
            block.attention = type(block.attention)(config, width, heads, side)
        side //= 2


def encode_patches(
    tower: nn.Module, pixels: Tensor, grid: int, last_norm: str, pooled_mean: bool
) -> Tensor:
    """One token for the whole image, then the patches row by row.

    Args:
      pixels: `[batch, 3, image_size, image_size]`.
      grid: patches along a side.
      last_norm: the tower's module that normalises its last states, empty if they are already.
      pooled_mean: the first token is the mean of the patches; otherwise the tower's own.

    Returns:
      `[batch, 1 + grid * grid, width]`.
    """
    tokens = tower(pixels).last_hidden_state
    if last_norm:
        tokens = tower.get_submodule(last_norm)(tokens)
    patches = tokens[:, -grid * grid :]
    mean = patches.float().mean(dim=1, keepdim=True).to(patches.dtype)
    return torch.cat([mean if pooled_mean else tokens[:, :1], patches], dim=1)


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
        self.feature_embedding = nn.Linear(roi["feature_size"], width)
        self.aligned_embedding = nn.Linear(width, width)
        self.geometry_embedding = Float32Linear(GEOMETRIES[self.geometry], width)
        self.feature_norm = nn.LayerNorm(width, EPSILON)
        self.geometry_norm = nn.LayerNorm(width, EPSILON)
        self.drop = nn.Dropout(dropout)
        sizes = (width, text["heads"], text["mlp_width"], dropout)
        self.encoder = Stack(Block(*sizes, pre_norm=True) for _ in range(roi["depth"]))
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
        return self.final_norm(self.encoder(self.drop(x), mask))
