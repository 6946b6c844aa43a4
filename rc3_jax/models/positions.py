"""Position tables of the visual towers, resized for images of another size."""

from __future__ import annotations

import math

import numpy as np

SHARPNESS = -0.75
"""Parameter of the cubic convolution kernel (Keys 1981), as in PyTorch."""


def resize_positions(table: np.ndarray, grid: int, extra: int) -> np.ndarray:
    """Interpolates absolute positions bicubically, as ViT, CLIP and SigLIP in transformers do.

    Args:
      table: `[1, extra + old * old, width]`, patches row by row.
      grid: patches along a side of the new images.
      extra: number of first rows that stay as they are, 1 for the class token.

    Returns:
      `[1, extra + grid * grid, width]` of the table's type.

    Raises:
      ValueError: if the table is not that of a square grid.
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
    """The weight of each of `old` points of a line in each of `new` ones: `[new, old]` float64.

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


def resize_relative_positions(table: np.ndarray, window: int, extra: int = 0) -> np.ndarray:
    """A relative-position table for windows of another size.

    The old offsets are spread over the new range in distances that grow by a constant ratio, fine
    around zero, and a cubic spline through them gives the values at the new offsets: the published
    codes of Swin and BEiT do so where a tower gets larger images (CCLM.md section 5).

    Args:
      table: `[(2 * old - 1) ** 2 + extra, heads]`, in the order of `relative_index`.
      window: tokens along a side of the new window; for BEiT, patches along a side.
      extra: number of last rows that stay as they are; 3 for BEiT, those of the class token.

    Returns:
      `[(2 * window - 1) ** 2 + extra, heads]` of the table's type.

    Raises:
      ValueError: if the table is not that of a square window, or the window is smaller than the
        old one, or the old one is below 3, through which no cubic goes.
    """
    size = math.isqrt(len(table) - extra)
    old = (size + 1) // 2
    if size % 2 == 0 or size * size + extra != len(table):
        raise ValueError(f"{len(table)} rows with extra={extra} are no table of a square window")
    if window == old:
        return table
    if window < old or old < 3:
        raise ValueError(f"a table of window {old} cannot be resized to window {window}")
    from scipy import interpolate  # slow to import

    places = _growing_places(old - 1, window - 1)
    offsets = np.arange(1 - window, window)
    images = table[: size * size].astype(np.float64).reshape(size, size, -1)
    columns = [
        interpolate.RectBivariateSpline(places, places, images[:, :, head])(offsets, offsets)
        for head in range(images.shape[-1])
    ]
    resized = np.stack(columns, axis=-1).reshape(-1, len(columns)).astype(table.dtype)
    return np.concatenate([resized, table[size * size :]])


def _growing_places(steps: int, end: int) -> np.ndarray:
    """`[2 * steps + 1]` from -end over 0 to end, each step outwards `ratio` times the last from 1."""
    from scipy import optimize  # slow to import

    powers = np.arange(steps)
    ratio = optimize.brentq(lambda ratio: np.sum(ratio**powers) - end, 1.0, end, xtol=1e-15)
    half = np.cumsum(ratio**powers)
    half[-1] = end
    return np.concatenate([-half[::-1], [0.0], half])
