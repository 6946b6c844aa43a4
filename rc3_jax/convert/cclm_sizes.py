"""Sizes of a published CCLM model: read from its tensors, or changed for another image size."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Mapping
from typing import Any

import ml_collections
import numpy as np

from rc3_jax.config import ConfigError
from rc3_jax.config_cclm import MODELS, cclm_model
from rc3_jax.convert.cclm import TOWERS, WORDS
from rc3_jax.convert.vision_names import PREFIX, resize_relative_positions

POSITION_TABLE = "attn.relative_position_bias_table"
XLM_R_VOCABULARY = 250_002
HEAD_WIDTH = 64
"""Of the published text towers; a checkpoint does not tell it."""


def vocabulary_of(tensors: Mapping[str, np.ndarray], model: ml_collections.ConfigDict) -> int:
    """Rows of the word embeddings; XLM-R's where there are none, which `from_published` tells."""
    table = tensors.get(TOWERS[model.patch.type] + WORDS)
    return XLM_R_VOCABULARY if table is None or table.ndim != 2 else len(table)


def model_of(
    tensors: Mapping[str, np.ndarray], text_heads: int | None = None
) -> ml_collections.ConfigDict:
    """`config.model` of the published model that tensors belong to, its sizes from their shapes.

    Args:
      text_heads: of the text and fusion layers; by default 64 numbers of the width a head.

    Raises:
      ConfigError: if the names are of neither layout, or sizes are missing; it lists them.
    """
    kinds = [kind for kind, tower in TOWERS.items() if tower + WORDS in tensors]
    if len(kinds) != 1:
        raise ConfigError(
            "the tensors are of no published pre-training model of CCLM, which has either "
            f"{' or '.join(tower + WORDS for tower in TOWERS.values())}; name --model to list "
            "all that differs from one"
        )
    (kind,) = kinds
    swin, tower = kind == "swin", TOWERS[kind]
    sizes = _Sizes(tensors)
    model = cclm_model("cclm_3m" if swin else "cclm_x2vlm_base")
    width = sizes.axis(tower + WORDS, 1)
    layers = sizes.count(rf"{re.escape(tower)}encoder\.layer\.(\d+)\.")
    crossing = sizes.count(r".*\.layer\.(\d+)\.crossattention\.")
    model.text.update(
        width=width,
        depth=layers - crossing if swin else layers,
        heads=text_heads or width // HEAD_WIDTH or 1,
        mlp_width=sizes.axis(f"{tower}encoder.layer.0.intermediate.dense.weight", 0),
        max_positions=sizes.axis(f"{tower}embeddings.position_embeddings.weight", 0),
    )
    model.fusion.depth = crossing
    model.projection_size = sizes.axis("text_proj.weight", 0)
    model.patch.update(_swin_sizes(sizes) if swin else _beit_sizes(sizes))
    if text_heads is None and width % HEAD_WIDTH:
        sizes.problems.append(f"heads of a text tower of width {width}; name --text_heads")
    if model.text.depth < 1:
        sizes.problems.append("number of text layers: all have cross-attention")
    if sizes.problems:
        first = "the sizes of the model cannot be read; name --model to compare with one:"
        raise ConfigError("\n  ".join([first, *sizes.problems]))
    return model


def with_image_size(
    tensors: Mapping[str, np.ndarray], model: ml_collections.ConfigDict, image_size: int
) -> tuple[dict[str, np.ndarray], ml_collections.ConfigDict]:
    """Tensors and `config.model` for images of another size: relative positions resized.

    The windows of a Swin tower grow with the image, as published: 7 tokens a side at 224 pixels, 12
    at 384, 15 at 480. The last stage is then one window, and every stage whole windows.

    Raises:
      ConfigError: for a size that gives no whole windows or patches, or smaller ones than the
        checkpoint's.
    """
    model = copy.deepcopy(model)
    patch = model.patch
    swin = patch.type == "swin"
    stride = _stride(patch.patch, patch.depths) if swin else patch.patch
    if image_size < stride or image_size % stride:
        raise ConfigError(
            f"image_size={image_size} must be a multiple of {stride}: "
            + ("windows must divide every stage" if swin else "patches must cover the image")
        )
    window = image_size // stride
    patch.image_size = image_size
    if swin:
        patch.window = window
    resized = dict(tensors)
    for name, table in tensors.items():
        if name.endswith(POSITION_TABLE) and table.ndim == 2:
            try:
                resized[name] = resize_relative_positions(table, window, 0 if swin else 3)
            except ValueError as error:
                raise ConfigError(f"image_size={image_size}: {name}: {error}") from error
    return resized, model


def names_of(model: ml_collections.ConfigDict) -> list[str]:
    """The published models that have these sizes, for whatever image size."""
    return [name for name in MODELS if _sizes_of(cclm_model(name)) == _sizes_of(model)]


def differences_from_published(model: ml_collections.ConfigDict) -> list[str]:
    """Settings with which the published code would compute something else from the same tensors."""
    published = cclm_model("cclm_3m" if model.patch.type == "swin" else "cclm_x2vlm_base")
    return [
        f"model.{part}.{setting}={model[part][setting]}, the published code has {value}"
        for part, setting in (
            ("text", "position_offset"),
            ("text", "epsilon"),
            ("fusion", "epsilon"),
        )
        if model[part][setting] != (value := published[part][setting])
    ]


class _Sizes:
    """Sizes read from the shapes of tensors; `problems` tells which could not be."""

    def __init__(self, tensors: Mapping[str, Any]):
        self.tensors = tensors
        self.problems: list[str] = []

    def axis(self, name: str, axis: int, rank: int = 2) -> int:
        """Length of an axis; 1 where it cannot be read."""
        shape = np.shape(self.tensors[name]) if name in self.tensors else None
        if shape is not None and len(shape) == rank and min(shape) > 0:
            return shape[axis]
        found = "is missing" if shape is None else f"has the shape {shape}"
        self.problems.append(f"{name} {found}, must have {rank} axes")
        return 1

    def count(self, pattern: str) -> int:
        """How many numbers the group of a regular expression takes in the names."""
        found = {m[1] for m in map(re.compile(pattern).match, self.tensors) if m}
        if not found:
            self.problems.append(f"no name begins as {pattern}")
        return len(found)

    def window(self, name: str, extra: int = 0) -> int:
        """Side of the window that a table of relative positions is for."""
        rows = self.axis(name, 0) - extra
        side = math.isqrt(max(rows, 0))
        if side % 2 == 0 or side * side != rows:
            self.problems.append(f"{name} has {rows + extra} rows, of no square window")
        return (side + 1) // 2


def _stride(patch: int, depths) -> int:
    """Pixels per side of a token that a Swin tower returns."""
    return patch * 2 ** (len(depths) - 1)


def _swin_sizes(sizes: _Sizes) -> dict[str, Any]:
    stages = range(sizes.count(rf"{re.escape(PREFIX)}layers\.(\d+)\."))
    prefixes = [f"{PREFIX}layers.{stage}.blocks." for stage in stages]
    depths = tuple(sizes.count(rf"{re.escape(prefix)}(\d+)\.") for prefix in prefixes)
    windows = [sizes.window(f"{prefix}0.{POSITION_TABLE}") for prefix in prefixes]
    patch = sizes.axis(f"{PREFIX}patch_embed.proj.weight", 3, rank=4)
    image_size = (windows or [1])[-1] * _stride(patch, depths)
    for stage, (prefix, depth, window) in enumerate(zip(prefixes, depths, windows, strict=True)):
        # Where masks of shifted windows are stored, their number tells the size for certain.
        for name in (f"{prefix}{block}.attn_mask" for block in range(depth)):
            if name in sizes.tensors:
                count = sizes.axis(name, 0, rank=3)
                image_size = math.isqrt(count) * window * _stride(patch, depths[: stage + 1])
    return dict(
        image_size=image_size,
        patch=patch,
        width=sizes.axis(f"{PREFIX}patch_embed.proj.weight", 0, rank=4),
        depths=depths,
        heads=tuple(sizes.axis(f"{prefix}0.{POSITION_TABLE}", 1) for prefix in prefixes),
        window=max(windows, default=1),
    )


def _beit_sizes(sizes: _Sizes) -> dict[str, Any]:
    table = f"{PREFIX}blocks.0.{POSITION_TABLE}"
    patch = sizes.axis(f"{PREFIX}patch_embed.proj.weight", 3, rank=4)
    return dict(
        image_size=sizes.window(table, extra=3) * patch,
        patch=patch,
        width=sizes.axis(f"{PREFIX}patch_embed.proj.weight", 0, rank=4),
        depth=sizes.count(rf"{re.escape(PREFIX)}blocks\.(\d+)\."),
        heads=sizes.axis(table, 1),
        mlp_width=sizes.axis(f"{PREFIX}blocks.0.mlp.fc1.weight", 0),
    )


def _sizes_of(model: ml_collections.ConfigDict) -> list[Any]:
    sizes = ("type", "patch", "width", "depth", "depths", "heads", "mlp_width", "max_positions")
    parts = (model.patch, model.text, model.fusion)
    found = [[part.get(size) for size in sizes] for part in parts]
    found = [[tuple(x) if isinstance(x, list) else x for x in part] for part in found]
    return [found, model.projection_size]
