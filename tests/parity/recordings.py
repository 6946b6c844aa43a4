"""Outputs of the published code, recorded with random weights, and our model of the same weights.

The folders come from the environment variable RC3_PARITY_DIRS, separated by colons; by default they
are those of ../shared/parity that hold a config.json.
"""

from __future__ import annotations

import functools
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
import pytest
from safetensors.numpy import load_file

from rc3_jax.config_cclm import cclm_config
from rc3_jax.convert.cclm import layout_of
from rc3_jax.models.base import PairModel
from rc3_jax.models.cclm import CCLM, build_cclm

SHARED = pathlib.Path(__file__).resolve().parents[3] / "shared" / "parity"
PRETRAINING = ("CCLM (2022)", "CCLM-X2VLM (2023)")
DOWNSTREAM = ("CCLM (2022), fine-tuning models",)


def folders(families: tuple[str, ...]) -> list[pathlib.Path]:
    """The recordings of some families."""
    given = os.environ.get("RC3_PARITY_DIRS")
    found = [pathlib.Path(f) for f in given.split(":") if f] if given else sorted(SHARED.glob("*"))
    if given:
        missing = [str(folder) for folder in found if not (folder / "config.json").is_file()]
        assert not missing, f"RC3_PARITY_DIRS: no config.json in {', '.join(missing)}"
    found = [folder for folder in found if (folder / "config.json").is_file()]
    return [folder for folder in found if _read_config(folder)["model"]["family"] in families]


def output_names(families: tuple[str, ...]) -> list[Any]:
    """A pytest parameter (folder, name) for each recorded output; one that tells of none."""
    found = [
        pytest.param(folder, name, id=f"{folder.name}-{name}")
        for folder in folders(families)
        for name in np.load(folder / "outputs.npz").files
    ]
    return found or [pytest.param(None, None, id="no-recordings")]


def require_folder(folder: pathlib.Path | None) -> None:
    """Skips, or in CI fails, a test that has no recordings; those asked for may be of one family."""
    if folder is not None:
        return
    reason = "no recordings of this family in ../shared/parity or RC3_PARITY_DIRS"
    if os.environ.get("CI") and not os.environ.get("RC3_PARITY_DIRS"):
        pytest.fail(reason)
    pytest.skip(reason)


class Recording(NamedTuple):
    """Attributes: config: as recorded; inputs: images as ours, `[..., height, width, 3]`."""

    config: Mapping[str, Any]
    weights: dict[str, np.ndarray]
    inputs: dict[str, np.ndarray]
    outputs: dict[str, np.ndarray]
    settings: ml_collections.ConfigDict
    model: PairModel
    params: dict


@functools.cache
def read(folder: pathlib.Path) -> Recording:
    """A recording, and our model with its weights."""
    config = _read_config(folder)
    weights = load_file(folder / "weights.safetensors")
    inputs = dict(np.load(folder / "inputs.npz"))
    for name, value in inputs.items():
        if value.ndim == 4 and value.shape[1] == 3:
            inputs[name] = value.transpose(0, 2, 3, 1)
    settings = settings_of(config["model"])
    model = build_cclm(settings.model, config["model"]["text"]["vocab_size"])
    params = layout_of(settings.model).names.to_ours(weights, template_of(model, settings))
    outputs = dict(np.load(folder / "outputs.npz"))
    return Recording(config, weights, inputs, outputs, settings, model, params)


def template_of(model: CCLM, settings) -> dict:
    """Shapes of the model's parameters."""
    size = settings.model.patch.image_size
    rows = {"image": np.zeros((1, size, size, 3), np.uint8)}
    shapes = jax.eval_shape(model.init, jax.random.key(0), rows, np.zeros((1, 4), np.int32))
    return shapes["params"]


def settings_of(recorded: Mapping[str, Any]) -> ml_collections.ConfigDict:
    """The configuration that a recording's sizes and options describe, as published."""
    vision, text = recorded["vision"], recorded["text"]
    swin = vision["type"] == "swin"
    config = cclm_config("cclm_3m" if swin else "cclm_x2vlm_base")
    model = config.model
    if swin:
        model.patch.update(
            image_size=vision["image_res"],
            patch=vision["patch_size"],
            width=vision["embed_dim"],
            depths=tuple(vision["depths"]),
            heads=tuple(vision["num_heads"]),
            window=vision["window_size"],
        )
    else:
        model.patch.update(
            image_size=vision["image_res"],
            patch=vision["patch_size"],
            width=vision["width"],
            depth=vision["depth"],
            heads=vision["heads"],
            mlp_width=vision["mlp_ratio"] * vision["width"],
        )
    cross = recorded.get("cross", {})
    model.text.update(
        width=text["hidden"],
        depth=text.get("text_layers", text["layers"]),
        heads=text["heads"],
        mlp_width=text["intermediate"],
        max_positions=text["max_position_embeddings"],
        epsilon=text["layer_norm_eps"],
    )
    model.fusion.update(
        depth=text.get("fusion_layers", cross.get("layers")),
        epsilon=cross.get("layer_norm_eps", text["layer_norm_eps"]),
    )
    model.projection_size = recorded["heads"]["embed_dim"]
    # Recorded images are normalised already; these read them as they are, but for the last bit.
    model.update(dtype="float32", dropout=0.0, image_mean=(0.0,) * 3, image_std=(1 / 255,) * 3)
    config.objective.update(group_positives=False, negative_floor=1e-5)
    config.objective.pairs.transport = "dense"
    return config


def _read_config(folder: pathlib.Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text(encoding="utf-8"))
