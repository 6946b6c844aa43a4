"""Sizes of a published CCLM model: read from its tensors, or changed for another image size."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Mapping
from typing import Any

import ml_collections
import numpy as np

from rc3_jax.config_cclm import cclm_model
from rc3_jax.convert.cclm import TOWERS, VISION, WORDS
from rc3_jax.models.positions import resize_relative_positions
from rc3_jax.param_map import common_prefix
from rc3_jax.settings import ConfigError

TABLE = "attn.relative_position_bias_table"
HEAD_WIDTH = 64
"""Width of an attention head of the published text towers; no tensor shows it."""


def model_of(
    tensors: Mapping[str, np.ndarray], text_heads: int | None = None
) -> ml_collections.ConfigDict:
    """`config.model` of the published model that tensors belong to, with sizes from their shapes.

    Args:
      text_heads: attention heads of the text and fusion layers; by default one for 64 numbers of
        the width.

    Raises:
      ConfigError: if the names are of neither layout, or sizes are missing.
    """
    kinds = [kind for kind, tower in TOWERS.items() if f"{tower}.{WORDS}" in tensors]
    if len(kinds) != 1:
        words = [f"{tower}.{WORDS}" for tower in TOWERS.values()]
        prefix = common_prefix(tensors, words)
        raise ConfigError(
            f"the tensors are of no published pre-training model of CCLM, which has either "
            f"{' or '.join(words)}; "
            + (
                f"store them without the prefix {prefix!r}"
                if prefix
                else "name --model to list all that differs from one"
            )
        )
    (kind,) = kinds
    tower = TOWERS[kind]

    def size(name: str, axis: int) -> int:
        return tensors[name].shape[axis]

    def count(pattern: str) -> int:
        return len({found[1] for found in map(re.compile(pattern).match, tensors) if found})

    model = cclm_model("cclm_3m" if kind == "swin" else "cclm_x2vlm_base")
    try:
        width = size(f"{tower}.{WORDS}", 1)
        crossing = count(r".*\.layer\.(\d+)\.crossattention\.")
        layers = count(rf"{re.escape(tower)}\.encoder\.layer\.(\d+)\.")
        if text_heads is None and width % HEAD_WIDTH:
            raise ValueError(f"heads of a text tower of width {width}; name --text_heads")
        model.text.update(
            width=width,
            depth=layers - crossing if kind == "swin" else layers,
            heads=text_heads or width // HEAD_WIDTH,
            mlp_width=size(f"{tower}.encoder.layer.0.intermediate.dense.weight", 0),
            max_positions=size(f"{tower}.embeddings.position_embeddings.weight", 0),
        )
        model.fusion.depth = crossing
        model.projection_size = size("text_proj.weight", 0)
        patch = f"{VISION}.patch_embed.proj.weight"
        model.patch.update(patch=size(patch, 3), width=size(patch, 0))
        if kind == "swin":
            _set_swin_sizes(model.patch, tensors, count)
        else:
            table = f"{VISION}.blocks.0.{TABLE}"
            model.patch.update(
                image_size=_window(table, tensors, 3) * model.patch.patch,
                depth=count(rf"{VISION}\.blocks\.(\d+)\."),
                heads=size(table, 1),
                mlp_width=size(f"{VISION}.blocks.0.mlp.fc1.weight", 0),
            )
    except (KeyError, IndexError, ValueError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else error
        raise ConfigError(
            f"the sizes of the model cannot be read: {reason}; name --model to list all that "
            "differs from one"
        ) from error
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
    patch, swin = model.patch, model.patch.type == "swin"
    stride = patch.patch * 2 ** (len(patch.depths) - 1) if swin else patch.patch
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
        if name.endswith(TABLE) and table.ndim == 2:
            try:
                resized[name] = resize_relative_positions(table, window, 0 if swin else 3)
            except ValueError as error:
                raise ConfigError(f"image_size={image_size}: {name}: {error}") from error
    return resized, model


def differences_from_published(model: ml_collections.ConfigDict) -> list[str]:
    """Settings with which the published code would compute something else from the same tensors."""
    published = cclm_model("cclm_3m" if model.patch.type == "swin" else "cclm_x2vlm_base")
    settings = (("text", "position_offset"), ("text", "epsilon"), ("fusion", "epsilon"))
    return [
        f"model.{part}.{name}={model[part][name]}, the published code has {published[part][name]}"
        for part, name in settings
        if model[part][name] != published[part][name]
    ]


def _set_swin_sizes(patch: ml_collections.ConfigDict, tensors: Mapping, count: Any) -> None:
    """Sets depths, heads, window and image size of a Swin tower."""
    stages = [f"{VISION}.layers.{i}.blocks." for i in range(count(rf"{VISION}\.layers\.(\d+)\."))]
    depths = [count(rf"{re.escape(stage)}(\d+)\.") for stage in stages]
    windows = [_window(f"{stage}0.{TABLE}", tensors) for stage in stages]
    grid = windows[-1] * 2 ** (len(stages) - 1)
    for number, stage in enumerate(stages):
        # The number of masks of shifted windows, where they are stored, is certain.
        for block in range(depths[number]):
            if (mask := tensors.get(f"{stage}{block}.attn_mask")) is not None:
                grid = math.isqrt(len(mask)) * windows[number] * 2**number
    heads = tuple(tensors[f"{stage}0.{TABLE}"].shape[1] for stage in stages)
    patch.update(depths=tuple(depths), heads=heads, window=max(windows))
    patch.image_size = grid * patch.patch


def _window(name: str, tensors: Mapping[str, np.ndarray], extra: int = 0) -> int:
    """Side of the window that a table of relative positions is for."""
    rows = len(tensors[name]) - extra
    side = math.isqrt(max(rows, 0))
    if side % 2 == 0 or side * side != rows:
        raise ValueError(f"{name} has {rows + extra} rows, of no square window")
    return (side + 1) // 2
