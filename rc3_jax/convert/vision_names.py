"""The published vision towers of CCLM: names, and position tables for another image size.

The names are those after `vision_encoder.` in checkpoints of CCLM (2022, Swin) and of CCLM-X²VLM
(2023, BEiT-v2), see CCLM.md section 7.1. Queries, keys and values are one tensor there, which
`part` takes apart.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import interpolate

from rc3_jax.convert.names import Row

PREFIX = "vision_encoder."

SWIN_OUTER = (
    Row("patches", "patch_embedding", "patch_embed.proj"),
    Row("norm", "patch_norm", "patch_embed.norm"),
    Row("norm", "final_norm", "norm"),
)

SWIN_BLOCK = (
    Row("norm", "self_attention_norm", "norm1"),
    Row("array", "relative_positions", "attn.relative_position_bias_table"),
    Row("dense", "self_attention/query", "attn.qkv", part=0),
    Row("dense", "self_attention/key", "attn.qkv", part=1),
    Row("dense", "self_attention/value", "attn.qkv", part=2),
    Row("dense", "self_attention/out", "attn.proj"),
    Row("norm", "mlp_norm", "norm2"),
    Row("dense", "mlp_in", "mlp.fc1"),
    Row("dense", "mlp_out", "mlp.fc2"),
)

SWIN_MERGE = (
    Row("norm", "merge_norm", "downsample.norm"),
    Row("kernel", "merge", "downsample.reduction"),
)

BEIT_OUTER = (
    Row("array", "class_token", "cls_token"),
    Row("patches", "patch_embedding", "patch_embed.proj"),
    Row("norm", "final_norm", "fc_norm"),
)

BEIT_SAVED_LAYER = "blocks.{}."

BEIT_LAYER = (
    Row("norm", "self_attention_norm", "norm1"),
    Row("array", "relative_positions", "attn.relative_position_bias_table"),
    Row("kernel", "self_attention/query", "attn.qkv", part=0),
    Row("kernel", "self_attention/key", "attn.qkv", part=1),
    Row("kernel", "self_attention/value", "attn.qkv", part=2),
    Row("array", "self_attention/query/bias", "attn.q_bias"),
    Row("array", "self_attention/value/bias", "attn.v_bias"),
    Row("dense", "self_attention/out", "attn.proj"),
    Row("array", "self_attention_scale", "gamma_1"),
    Row("norm", "mlp_norm", "norm2"),
    Row("dense", "mlp_in", "mlp.fc1"),
    Row("dense", "mlp_out", "mlp.fc2"),
    Row("array", "mlp_scale", "gamma_2"),
)


def swin_rows(depths: Sequence[int]) -> tuple[Row, ...]:
    """Every module of a Swin tower; `depths` are the blocks of each stage."""

    def within(ours: str, saved: str, rows: Sequence[Row]) -> list[Row]:
        return [row._replace(ours=ours + row.ours, saved=saved + row.saved) for row in rows]

    rows = list(SWIN_OUTER)
    for stage, depth in enumerate(depths):
        ours, saved = f"stage_{stage}/", f"layers.{stage}."
        for block in range(depth):
            rows += within(f"{ours}block_{block}/", f"{saved}blocks.{block}.", SWIN_BLOCK)
        if stage < len(depths) - 1:
            rows += within(ours, saved, SWIN_MERGE)
    return tuple(rows)


def resize_relative_positions(table: np.ndarray, window: int, extra: int = 0) -> np.ndarray:
    """A relative-position table for windows of another size.

    The old offsets are spread over the new range in distances that grow by a constant ratio, fine
    around zero, and a cubic spline through them gives the values at the new offsets: the published
    codes of Swin and BEiT do so where a tower gets larger images (CCLM.md section 5).

    Args:
      table: `[(2 * old - 1) ** 2 + extra, heads]`, in the order of `relative_index`.
      window: tokens per side of the new window; for BEiT, patches per side.
      extra: last rows that stay as they are; 3 for BEiT, those of the class token.

    Returns:
      `[(2 * window - 1) ** 2 + extra, heads]` of the table's type; the table itself where the
      window is the old one.

    Raises:
      ValueError: if the table is none of a square window, or the window is smaller than the old
        one, or the old one is below 3, through which no cubic goes.
    """
    size = math.isqrt(len(table) - extra)
    old = (size + 1) // 2
    if size % 2 == 0 or size * size + extra != len(table):
        raise ValueError(f"{len(table)} rows with extra={extra} are no table of a square window")
    if window == old:
        return table
    if window < old or old < 3:
        raise ValueError(f"a table of window {old} cannot be resized to window {window}")
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
    """`[2 * steps + 1]`: from -end over 0 to end, each step outwards `ratio` times the last.

    The first step is 1, and bisection finds the ratio.
    """
    powers = np.arange(steps)
    low, high = 1.0, float(end)
    for _ in range(100):
        ratio = (low + high) / 2
        low, high = (low, ratio) if np.sum(ratio**powers) > end else (ratio, high)
    half = np.cumsum(low**powers)
    half[-1] = end
    return np.concatenate([-half[::-1], [0.0], half])
