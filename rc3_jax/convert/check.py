"""The same inputs through two models: how far their outputs differ, layer by layer.

A model is a folder of ours (a run's, or converted parameters), one that `to_torch` exported, or a
tower of Hugging Face.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import ml_collections
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from rich.table import Table

from rc3_jax.config import ConfigError
from rc3_jax.convert import check_torch
from rc3_jax.convert.output import SETTINGS
from rc3_jax.data.example import example_batch
from rc3_jax.data.tokenizer import BOS_ID, PAD_ID, SPECIAL_TOKENS
from rc3_jax.models.beit import BeitBlock, BeitTower
from rc3_jax.models.layers import Block
from rc3_jax.models.pair import normalise_pixels
from rc3_jax.models.patch import PatchTower
from rc3_jax.models.rc3 import build_rc3
from rc3_jax.models.roi import RoiTower
from rc3_jax.models.swin import SwinBlock, SwinTower
from rc3_jax.models.text import TextTower
from rc3_jax.training.checkpoint import load_some, stored_shapes

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
    """What inputs must fit."""

    model: ml_collections.ConfigDict
    vocab_size: int


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
    settings = [_settings(folder) for folder in folders]
    known = [_sizes(folder, found, step) for folder, found in zip(folders, settings, strict=True)]
    sizes = next((size for size in known if size is not None), None)
    if sizes is None:
        raise ConfigError("neither folder is of RC³; towers of Hugging Face are compared with ours")
    if None not in known and (difference := _different_inputs(*known)):
        raise ConfigError(f"{first} and {second} do not take the same inputs: {difference}")
    inputs = random_inputs(sizes, seed)
    outputs = [_outputs(*given, step, sizes, inputs) for given in zip(folders, settings)]
    names = [name for name in outputs[0] if name in outputs[1]]
    if not names:
        raise ConfigError(f"{first} and {second} have no output in common")
    return [_difference(name, *(found[name] for found in outputs)) for name in names]


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


def random_inputs(sizes: Sizes, seed: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Visual rows and token ids: padded texts, missing regions, boxes with features and without."""
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
    ids = rng.integers(len(SPECIAL_TOKENS), sizes.vocab_size, (ROWS, length)).astype(np.int32)
    ids[:, 0] = BOS_ID
    ids[1, length // 2 :] = PAD_ID
    return rows, ids


def _settings(folder: pathlib.Path) -> dict[str, Any]:
    path = folder / SETTINGS
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(settings, dict):
            raise TypeError("it holds no object")
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"{path} cannot be read as settings of a model: {error!r}") from error
    if settings.get("system", "rc3") != "rc3":
        raise ConfigError(f"{folder} is of {settings['system']}; models of rc3 can be checked")
    return settings


def _sizes(folder, settings: Mapping[str, Any], step: int | None) -> Sizes | None:
    """None for a tower of Hugging Face."""
    if "system" not in settings and settings.get("model_type") != "rc3":
        return None
    model = ml_collections.ConfigDict(settings["model"])
    model.update(dtype="float32", dropout=0.0)
    if "system" not in settings:
        return Sizes(model, settings["vocab_size"])
    shapes = stored_shapes(folder, step)
    words = "text/word_embedding/embedding"
    return Sizes(model, shapes[words][0] if words in shapes else settings["vocab_size"])


def _different_inputs(one: Sizes, other: Sizes) -> str:
    def inputs(sizes):
        model = sizes.model
        regions = (model.roi.regions, model.roi.feature_size if model.roi.regions else 0)
        return {
            "vocabulary": sizes.vocab_size,
            "image_size": model.patch.image_size,
            "regions and their features": regions,
            "image_mean": tuple(model.image_mean),
            "image_std": tuple(model.image_std),
        }

    pairs = zip(inputs(one).items(), inputs(other).values(), strict=True)
    return ", ".join(f"{name} {x} and {y}" for (name, x), y in pairs if x != y)


def _outputs(folder, settings, step, sizes: Sizes, inputs) -> Outputs:
    """The outputs of a model, without those of padding."""
    rows, ids = inputs
    if "system" in settings:
        found = _own_outputs(folder, step, sizes, rows, ids)
    else:
        pixels = normalise_pixels(rows["image"], sizes.model.image_mean, sizes.model.image_std)
        run = check_torch.mirror if settings.get("model_type") == "rc3" else check_torch.tower
        found = run(folder, rows | {"pixels": np.asarray(pixels)}, ids)
    masks = {"text": ids != PAD_ID, "fusion": ids != PAD_ID, "roi": rows.get("region_mask")}
    return {
        name: value[masks[part]] if (part := name.split(".")[0]) in masks else value
        for name, value in found.items()
    }


def _own_outputs(folder, step, sizes: Sizes, rows, ids) -> Outputs:
    shapes = stored_shapes(folder, step)
    params = unflatten_dict(load_some(folder, list(shapes), step), sep="/")
    model = build_rc3(sizes.model, sizes.vocab_size)
    if "temperature_fused" in params:
        return _captured(model, params, "", rows, ids, method=_everything)
    found = {}  # towers alone, as another checkpoint gave them
    if "text" in params:
        found |= _captured(model.text, params["text"], "text", ids)
    if "patch" in params:
        pixels = normalise_pixels(rows["image"], sizes.model.image_mean, sizes.model.image_std)
        found |= _captured(model.patch, params["patch"], "patch", pixels)
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
