"""The same inputs through two models: how far their outputs differ, layer by layer.

A model is a folder of ours (a run's, or converted parameters), one that `to_torch` exported, or a
tower of Hugging Face.
"""

from __future__ import annotations

import math
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import ml_collections
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from rich.table import Table

from rc3_jax.config import ConfigError, default_config, stored_settings
from rc3_jax.convert import check_torch
from rc3_jax.convert.output import SETTINGS, reasons
from rc3_jax.data.example import example_batch
from rc3_jax.data.tokenizer import BOS_ID, PAD_ID, SPECIAL_TOKENS
from rc3_jax.models.beit import BeitBlock, BeitTower
from rc3_jax.models.layers import Block
from rc3_jax.models.pair import normalise_pixels
from rc3_jax.models.patch import PatchTower
from rc3_jax.models.rc3 import build_rc3
from rc3_jax.models.roi import RoiTower
from rc3_jax.models.sentence import build_sentence_encoder
from rc3_jax.models.swin import SwinBlock, SwinTower
from rc3_jax.models.text import TextTower
from rc3_jax.models.towers import build_visual_tower
from rc3_jax.systems import abstract_params
from rc3_jax.training.checkpoint import (
    PARAMS,
    check_fit,
    load_some,
    shapes_of,
    stored_shapes,
)
from rc3_jax.training.start import set_sizes, start_parts

Outputs = dict[str, np.ndarray]
"""By name: `text.encoder.layers.0` for what that layer gives, `text` for the tower, ..."""

BLOCKS = (Block, BeitBlock, SwinBlock)
TOWERS = (TextTower, PatchTower, BeitTower, SwinTower, RoiTower)
ENDS = ("image_vector", "text_vector", "fused_vector", "matching_logits", "word_logits")
"""What a whole model gives at last."""
ROWS = 3


class Difference(NamedTuple):
    """Of one output: `largest` is the largest absolute value, `difference` the largest of them."""

    name: str
    shape: tuple[int, ...]
    largest: float
    difference: float

    @property
    def relative(self) -> float:
        """The difference against the largest value."""
        return self.difference / self.largest if self.largest else self.difference


class Sizes(NamedTuple):
    """A model's settings.

    Attributes:
      model: `config.model`, with defaults for what the folder does not tell.
      vocab_size: None for a patch tower alone.
      told: the settings of `model` that the folder tells.
    """

    model: ml_collections.ConfigDict
    vocab_size: int | None
    told: frozenset[str]


class Inputs(NamedTuple):
    """Visual rows, their normalised pixels `[rows, size, size, 3]`, and ids `[rows, length]`."""

    rows: dict[str, np.ndarray]
    pixels: np.ndarray
    ids: np.ndarray


def check(
    first: pathlib.Path, second: pathlib.Path, *, step: int | None = None, seed: int = 0
) -> list[Difference]:
    """How the outputs that both models have differ on random inputs.

    Args:
      step: of the checkpoint, of folders that are runs'; the newest by default.

    Raises:
      ConfigError: if a folder is no model, the two do not take the same inputs, or have no output
        in common.
    """
    folders = [pathlib.Path(first), pathlib.Path(second)]
    steps = [None if (folder / PARAMS).is_dir() else step for folder in folders]
    settings = [_settings(folder) for folder in folders]
    known = [_sizes(*given) for given in zip(folders, settings, steps, strict=True)]
    if known == [None, None]:
        raise ConfigError("neither folder is of RC³; towers of Hugging Face are compared with ours")
    if None not in known and (difference := _different_inputs(*known)):
        raise ConfigError(f"{first} and {second} do not take the same inputs: {difference}")
    inputs = random_inputs(max(filter(None, known), key=lambda sizes: len(sizes.told)), seed)
    outputs = [
        _outputs(*given, inputs) for given in zip(folders, settings, steps, known, strict=True)
    ]
    names = [name for name in outputs[0] if name in outputs[1]]
    if not names:
        raise ConfigError(f"{first} and {second} have no output in common")
    return [_difference(name, *(found[name] for found in outputs)) for name in names]


def largest_of(differences: list[Difference]) -> Difference:
    """The one that differs most, relative to its values; NaN is more than any number."""
    return max(differences, key=lambda item: (math.isnan(item.relative), item.relative))


def table_of(differences: list[Difference]) -> Table:
    """For the console."""
    table = Table("output", "shape", "largest value", "difference", "relative")
    for column in table.columns[1:]:
        column.justify = "right"
    table.columns[0].no_wrap = True
    for item in differences:
        shape = " x ".join(map(str, item.shape))
        numbers = (f"{x:.3g}" for x in (item.largest, item.difference, item.relative))
        table.add_row(item.name, shape, *numbers)
    return table


def random_inputs(sizes: Sizes, seed: int) -> Inputs:
    """Padded texts and full ones, missing regions, boxes with features and without."""
    rng = np.random.default_rng(seed)
    length = min(24, sizes.model.text.max_positions - PAD_ID - 1)
    config = ml_collections.ConfigDict(dict(model=sizes.model, data=dict(max_length=length)))
    rows, _ = example_batch(config)
    rows = {name: np.resize(value, (ROWS, *value.shape[1:])) for name, value in rows.items()}
    rows["image"] = rng.integers(0, 256, rows["image"].shape).astype(np.uint8)
    if "region_boxes" in rows:
        features, boxes = rows["region_features"], rows["region_boxes"]
        rows["region_features"] = rng.normal(size=features.shape).astype(np.float32)
        corners = np.sort(rng.random((*boxes.shape[:2], 2, 2)), axis=2)
        rows["region_boxes"] = corners.reshape(boxes.shape).astype(np.float32)
        rows["region_mask"][1, 1:] = False
        rows["has_features"][2] = False
    pieces = sizes.vocab_size or len(SPECIAL_TOKENS) + 1
    ids = rng.integers(len(SPECIAL_TOKENS), pieces, (ROWS, length)).astype(np.int32)
    ids[:, 0] = BOS_ID
    ids[1, length // 2 :] = PAD_ID
    pixels = normalise_pixels(rows["image"], sizes.model.image_mean, sizes.model.image_std)
    return Inputs(rows, np.asarray(pixels), ids)


def _settings(folder: pathlib.Path) -> dict[str, Any]:
    settings = stored_settings(folder)
    if settings.get("system", "rc3") != "rc3":
        raise ConfigError(f"{folder} is of {settings['system']}; models of rc3 can be checked")
    return settings


def _sizes(folder, settings: Mapping[str, Any], step: int | None) -> Sizes | None:
    """None for a tower of Hugging Face."""
    own = "system" in settings
    if not own and settings.get("model_type") != "rc3":
        return None
    told, model = settings.get("model", {}), default_config().model
    set_sizes(model, told, folder / SETTINGS)
    model.update(dtype="float32", dropout=0.0)
    if own:
        words = stored_shapes(folder, step).get("text/word_embedding/embedding")
        return Sizes(model, words and words[0], frozenset(told))
    if not isinstance(vocab_size := settings.get("vocab_size"), int):
        raise ConfigError(f"{folder / SETTINGS}: vocab_size={vocab_size!r} must be a number")
    return Sizes(model, vocab_size, frozenset(told))


def _different_inputs(one: Sizes, other: Sizes) -> str:
    """What two models read that differs, as far as both tell."""

    def inputs(sizes):
        model = sizes.model
        regions = (model.roi.regions, model.roi.feature_size if model.roi.regions else 0)
        found = {
            "patch": ("image_size", model.patch.image_size),
            "roi": ("regions and their features", regions),
            "image_mean": ("image_mean", tuple(model.image_mean)),
            "image_std": ("image_std", tuple(model.image_std)),
        }
        found = {name: value for part, (name, value) in found.items() if part in sizes.told}
        return found if sizes.vocab_size is None else {"vocabulary": sizes.vocab_size} | found

    ours, theirs = inputs(one), inputs(other)
    return ", ".join(
        f"{name} {x} and {theirs[name]}" for name, x in ours.items() if x != theirs.get(name, x)
    )


def _outputs(folder, settings, step, sizes: Sizes | None, inputs: Inputs) -> Outputs:
    """The outputs of a model, without those of padding."""
    if sizes is None:
        found = check_torch.tower(folder, settings.get("model_type"), inputs.pixels, inputs.ids)
    elif "system" in settings:
        found = _own_outputs(folder, step, sizes, inputs)
    else:
        found = check_torch.mirror(folder, inputs.rows, inputs.pixels, inputs.ids)
    known = inputs.ids != PAD_ID
    masks = {"text": known, "fusion": known, "roi": inputs.rows.get("region_mask")}
    return {
        name: value[masks[part]] if (part := name.split(".")[0]) in masks else value
        for name, value in found.items()
    }


def _own_outputs(folder, step, sizes: Sizes, inputs: Inputs) -> Outputs:
    model, vocab_size, _ = sizes
    shapes = stored_shapes(folder, step)
    whole = start_parts(folder) is None
    if whole:
        with reasons(folder):
            check_fit(folder, shapes, shapes_of(abstract_params("rc3", model, vocab_size or 0)))
    params = unflatten_dict(load_some(folder, list(shapes), step), sep="/")
    if whole:
        rc3 = build_rc3(model, vocab_size)
        return _captured(rc3, params, "", inputs.rows, inputs.ids, method=_everything)
    found = {}  # towers alone, as another checkpoint gave them
    if "text" in params:
        text = build_sentence_encoder(model.text, "mean", model, vocab_size).text
        found |= _captured(text, params["text"], "text", inputs.ids)
    if "patch" in params:
        patch = build_visual_tower(model)
        found |= _captured(patch, params["patch"], "patch", inputs.pixels)
    return found


def _everything(model, rows, ids) -> dict[str, jax.Array]:
    """`ENDS` of our model."""
    visual = model.encode_visual(rows)
    states, text_vector = model.encode_text(ids)
    fused = model.fusion(states, ids != PAD_ID, visual.tokens, visual.mask)
    return {
        "image_vector": visual.vector,
        "text_vector": text_vector,
        "fused_vector": model.fused_vector(fused, ids != PAD_ID),
        "matching_logits": model.match(fused),
        "word_logits": model.predict_tokens(fused, np.tile(np.arange(4), (len(ids), 1))),
    }


def _captured(
    module: nn.Module, params, prefix: str, *inputs, method: Callable | None = None
) -> Outputs:
    """What a module gives, and what its towers and their layers give on the way."""

    def kept(part: nn.Module, name: str) -> bool:
        return name == "__call__" and isinstance(part, BLOCKS + TOWERS)

    @jax.jit
    def run(params, *inputs):
        return module.apply(
            {"params": params},
            *inputs,
            method=method,
            capture_intermediates=kept,
            mutable=["intermediates"],
        )

    result, captured = run(params, *inputs)
    found: Outputs = {}
    for path, (value, *_) in flatten_dict(captured["intermediates"]).items():
        name = ".".join(filter(None, [prefix, *path[:-1]]))
        layers = np.asarray(value)
        if path[-2:-1] == ("layers",):
            found |= {f"{name}.{number}": layer for number, layer in enumerate(layers)}
        else:
            found[name] = layers
    ordered = sorted(found, key=_order)
    ends = {name: np.asarray(result[name]) for name in ENDS} if method else {}
    return {name: found[name] for name in ordered} | ends


def _order(name: str) -> list[tuple[int, int, str]]:
    """Sorts layer 10 after layer 9, and a tower after its layers."""
    parts = [(0, int(x), "") if x.isdecimal() else (1, 0, x) for x in name.split(".")]
    return [*parts, (2, 0, "")]


def _difference(name: str, one: np.ndarray, other: np.ndarray) -> Difference:
    if one.shape != other.shape:
        raise ConfigError(f"{name} is {one.shape} in one model and {other.shape} in the other")
    one, other = one.astype(np.float64), other.astype(np.float64)
    return Difference(
        name, one.shape, float(np.max(np.abs(one))), float(np.max(np.abs(one - other)))
    )
