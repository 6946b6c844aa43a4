"""Tables of absolute positions for images of another size."""

from __future__ import annotations

import math

import numpy as np

SHARPNESS = -0.75
"""Of the cubic convolution kernel (Keys 1981), as PyTorch has it."""


def resize_positions(table: np.ndarray, grid: int, extra: int) -> np.ndarray:
    """A position table for another number of patches, interpolated bicubically.

    As `interpolate_pos_encoding` of ViT, CLIP and SigLIP in transformers computes it.

    Args:
      table: `[1, extra + old * old, width]`, patches row by row.
      grid: patches per side of the new images.
      extra: first rows that stay as they are, 1 for the class token.

    Returns:
      `[1, extra + grid * grid, width]` of the table's type; the table itself where the grid is the
      old one.

    Raises:
      ValueError: if the table is none of a square grid, or `grid` is below 1.
    """
    count, width = table.shape[1] - extra, table.shape[2]
    old = math.isqrt(max(count, 0))
    if old < 1 or old * old != count or grid < 1:
        raise ValueError(f"{count} positions of patches cannot become {grid} x {grid}")
    if grid == old:
        return table
    weights = bicubic_weights(old, grid)
    image = table[0, extra:].astype(np.float64).reshape(old, old, width)
    image = np.einsum("yh,xw,hwc->yxc", weights, weights, image, optimize=True)
    resized = image.reshape(1, grid * grid, width).astype(table.dtype)
    return np.concatenate([table[:, :extra], resized], axis=1)


def bicubic_weights(old: int, new: int) -> np.ndarray:
    """`[new, old]` float64: what each old point of a line gives to each new one.

    Points are centres of equal cells (`align_corners=False`); beyond the ends the last point
    repeats, and making a line shorter smooths nothing, both as in
    `torch.nn.functional.interpolate(mode="bicubic")`.
    """
    # In float32, as PyTorch for tables of this type: it shows in the sixth digit.
    scale = np.float32(old) / np.float32(new)
    places = scale * (np.arange(new, dtype=np.float32) + np.float32(0.5)) - np.float32(0.5)
    first = np.floor(places).astype(int) - 1
    weights = np.zeros((new, old))
    for tap in range(4):
        distance = np.abs(places - (first + tap).astype(np.float32)).astype(np.float64)
        near = ((SHARPNESS + 2) * distance - (SHARPNESS + 3)) * distance**2 + 1
        far = SHARPNESS * (((distance - 5) * distance + 8) * distance - 4)
        share = np.where(distance <= 1, near, np.where(distance < 2, far, 0.0))
        np.add.at(weights, (np.arange(new), np.clip(first + tap, 0, old - 1)), share)
    return weights
