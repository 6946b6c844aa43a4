"""Towers from Hugging Face checkpoints, and back to what `from_pretrained` reads.

XLM-R, ViT, CLIP's and SigLIP's vision towers, BEiT; BEiT-v2 also from its authors' files. Names are
in `names.py` and `huggingface_names.py`.
"""

from __future__ import annotations

import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from rc3_jax.config import ConfigError, check_choice, default_config
from rc3_jax.convert.huggingface_names import (
    ACTIVATIONS,
    BEIT,
    BEIT_NAMES,
    BEIT_V2,
    BEIT_V2_NAMES,
    FAMILIES,
    MASKED_LM,
    TABLE,
)
from rc3_jax.convert.huggingface_settings import model_config, patch_settings, text_settings
from rc3_jax.convert.huggingface_source import image_normalisation, locate, sentence_encoder
from rc3_jax.convert.huggingface_tensors import (
    Tensors,
    complete_beit,
    first_type,
    fitted,
    left_out,
    masked_lm_head,
    picked_layers,
)
from rc3_jax.convert.mapping import to_torch
from rc3_jax.convert.names import XLM_ROBERTA
from rc3_jax.convert.resize import resize_positions
from rc3_jax.convert.torch_file import TensorFileError, TensorFolder, read_tensors
from rc3_jax.convert.vision_names import resize_relative_positions
from rc3_jax.models.layers import Stack
from rc3_jax.models.text import POSITION_OFFSETS, TextTower, text_epsilon
from rc3_jax.models.towers import build_visual_tower, style_of

PARTS = ("text", "patch")


class Tower(NamedTuple):
    """A tower of a checkpoint.

    Attributes:
      part: `text` or `patch`.
      family: model_type of a text tower, `model.patch.type` of a patch tower.
      settings: for `config.model.text` or `config.model.patch`; a patch tower's also have
        `image_mean` and `image_std`, which are `config.model`'s, where the checkpoint tells them.
        `epsilon` and `activation` are None where they are the tower's own.
      params: nested dict of float32 arrays: the tower's parameters.
      heads: further parameters of the model, `masked_lm_head` and `word_bias`; empty if none.
      pooling: how a sentence encoder's vector is read, `mean` or `cls`; None for other models.
      notes: what the user should know.
    """

    part: str
    family: str
    settings: dict[str, Any]
    params: dict[str, Any]
    heads: dict[str, Any]
    pooling: str | None
    notes: list[str]


def read_tower(
    source: str | pathlib.Path,
    *,
    part: str,
    image_size: int | None = None,
    layers: Sequence[int] | None = None,
    allow_pickle: bool = False,
) -> Tower:
    """The text or patch tower of a checkpoint.

    Args:
      source: a folder as `save_pretrained` writes it, of a tower alone, with a head or of CLIP and
        SigLIP as a whole; a folder of sentence-transformers; a name on the Hugging Face hub; or a
        file of BEiT-v2 by its authors.
      image_size: pixels per side that a patch tower is to take; its positions are interpolated.
        By default the checkpoint's own.
      layers: numbers of the text layers to take, from 0 on and in their new order; all by default.
      allow_pickle: reads folders with pickled tensors alone, without running what they name.

    Raises:
      ConfigError: for settings that no tower can have, and for a source that is not there.
      TensorFileError: for broken or missing files, and tensors that are missing, extra or
        mis-shaped, with a list of all.
    """
    check_choice("part", part, PARTS)
    if (image_size if part == "text" else layers) is not None:
        raise ConfigError("image_size is for patch towers alone, and layers for text towers")
    path, pooling = locate(source, allow_pickle), None
    if path.is_file():
        if part != "patch":
            raise _refused(path)
        return _read_beit_v2(path, image_size)
    if part == "patch":
        return _read_patch_tower(path, image_size, allow_pickle)
    path, pooling = sentence_encoder(path)
    family, config = model_config(path, part)
    settings, vocab_size = text_settings(config), config.number("vocab_size")
    config.check(family.required)
    config.raise_problems()
    notes: list[str] = []
    tensors: Tensors = TensorFolder(path, allow_pickle).tensors
    heads = masked_lm_head(path, tensors, settings, vocab_size, notes)
    tensors = first_type(tensors, notes)
    if layers is not None:
        tensors = picked_layers(tensors, layers, settings["depth"])
        settings["depth"] = len(layers)
    params = fitted(path, tensors, XLM_ROBERTA, _text_template(settings, vocab_size))
    notes += left_out(tensors, XLM_ROBERTA, heads)
    return Tower(part, family.type, settings, params, heads, pooling, notes)


def tower_tensors(
    params: Mapping, settings: Mapping[str, Any], *, part: str, heads: Mapping | None = None
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """What a Hugging Face folder of a tower holds: the inverse of `read_tower`.

    Args:
      params: nested dict of the tower's parameters.
      settings: `config.model.text` or `config.model.patch`.
      heads: `masked_lm_head` and `word_bias` of a text tower; with them the model is
        `XLMRobertaForMaskedLM`, without `XLMRobertaModel`.

    Returns:
      The tensors for `model.safetensors`, C-ordered copies, and the object for `config.json`.
      `from_pretrained` of transformers 4 and 5 reads them.

    Raises:
      ConfigError: for a tower that transformers has not.
      ValueError: for parameters that are not the tower's.
    """
    check_choice("part", part, PARTS)
    name = "xlm-roberta" if part == "text" else settings["type"]
    if name not in FAMILIES:
        raise ConfigError(
            f"model.patch.type={name!r} has no model of transformers to be written as"
        )
    family = FAMILIES[name]
    config = {
        "architectures": [family.architecture],
        "model_type": family.saved_type,
        "hidden_size": settings["width"],
        "num_hidden_layers": settings["depth"],
        "num_attention_heads": settings["heads"],
        "intermediate_size": settings["mlp_width"],
        **family.extra,
    }
    if part == "text":
        if settings.get("position_offset", POSITION_OFFSETS[1]) != POSITION_OFFSETS[1]:
            raise ConfigError(
                f"model.text.position_offset={settings['position_offset']}: XLM-R numbers positions "
                f"from {POSITION_OFFSETS[1]} on and computes something else"
            )
        config |= dict(
            vocab_size=len(params["word_embedding"]["embedding"]),
            max_position_embeddings=settings["max_positions"],
            type_vocab_size=1,
            hidden_act="gelu",
            layer_norm_eps=text_epsilon(settings),
        )
    else:
        style = style_of(settings)
        config |= dict(
            image_size=settings["image_size"],
            patch_size=settings["patch"],
            num_channels=3,
            hidden_act={ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}[
                style.activation
            ],
            layer_norm_eps=style.epsilon,
        )
    if family.type == "beit":
        config["drop_path_rate"] = settings["drop_path"]
    if not heads:
        return to_torch(params, family.table, prefix=family.saved_prefix), config
    config["architectures"] = ["XLMRobertaForMaskedLM"]
    tensors = to_torch(params, family.table, prefix=family.table.prefix)
    return tensors | to_torch(heads, MASKED_LM), config


def _read_patch_tower(path: pathlib.Path, image_size: int | None, allow_pickle: bool) -> Tower:
    """See `read_tower`; `path` is a folder."""
    notes: list[str] = []
    family, config = model_config(path, "patch")
    settings = patch_settings(config, family, notes)
    config.check(family.required)
    scaled = family.type != "beit" or config.real("layer_scale_init_value") > 0
    config.raise_problems()
    tensors: Tensors = TensorFolder(path, allow_pickle).tensors
    if family.type == "beit":
        tensors = complete_beit(
            path, tensors, BEIT.prefix, BEIT_NAMES, settings, notes, scaled=scaled
        )
    params = fitted(path, tensors, family.table, _patch_template(settings))
    notes += left_out(tensors, family.table, {})
    _resize(params, settings, image_size)
    settings |= image_normalisation(path)
    return Tower("patch", family.type, settings, params, {}, None, notes)


def _read_beit_v2(path: pathlib.Path, image_size: int | None) -> Tower:
    """See `read_tower`; sizes are those of the tensors."""
    tensors = read_tensors(path)
    try:
        width, _, _, patch = tensors["patch_embed.proj.weight"].shape
        rows, heads = next(x for name, x in tensors.items() if name.endswith(TABLE)).shape
        mlp_width, _ = tensors["blocks.0.mlp.fc1.weight"].shape
        numbers = [name.split(".")[1] for name in tensors if name.startswith("blocks.")]
        depth = len(set(numbers))
    except (KeyError, StopIteration, ValueError) as error:
        raise _refused(path) from error
    # Offsets go from 1 - grid to grid - 1 both ways; three rows are the class token's.
    grid = (math.isqrt(max(rows - 3, 1)) + 1) // 2
    sizes = dict(width=width, depth=depth, heads=heads, mlp_width=mlp_width)
    settings = dict(type="beit", image_size=grid * patch, patch=patch, **sizes, drop_path=0.1)
    settings |= dict(epsilon=None, activation=None)
    notes = ["the file tells neither epsilon nor normalisation of pixels; epsilon is 1e-6"]
    tensors = complete_beit(path, tensors, "", BEIT_V2_NAMES, settings, notes, scaled=False)
    params = fitted(path, tensors, BEIT_V2, _patch_template(settings))
    notes += left_out(tensors, BEIT_V2, {})
    _resize(params, settings, image_size)
    return Tower("patch", "beit", settings, params, {}, None, notes)


def _refused(path: pathlib.Path) -> TensorFileError:
    return TensorFileError(
        f"{path} is a single file, and none of BEiT-v2, whose tensors are enough; name the folder "
        "that holds config.json and the tensors"
    )


def _resize(params: dict[str, Any], settings: dict[str, Any], image_size: int | None) -> None:
    """Changes positions and `settings` to another size of images."""
    if image_size is None or image_size == settings["image_size"]:
        return
    patch = settings["patch"]
    if image_size < patch or image_size % patch:
        raise ConfigError(f"image_size={image_size} must be a multiple of the patch, {patch}")
    grid = image_size // patch
    settings["image_size"] = image_size
    try:
        if settings["type"] == "beit":
            layers = params["encoder"]["layers"]
            tables = [resize_relative_positions(x, grid, 3) for x in layers["relative_positions"]]
            layers["relative_positions"] = np.stack(tables)
        else:
            table, extra = params["position_embedding"], int("class_token" in params)
            params["position_embedding"] = resize_positions(table, grid, extra)
    except ValueError as error:
        raise ConfigError(f"image_size={image_size}: {error}") from error


def _text_template(settings: Mapping[str, Any], vocab_size: int) -> dict[str, Any]:
    """The shapes of a text tower's parameters."""
    sizes = (settings[name] for name in ("depth", "heads", "mlp_width"))
    encoder = Stack(*sizes, pre_norm=False, epsilon=text_epsilon(settings))
    tower = TextTower(encoder, vocab_size, settings["width"], settings["max_positions"])
    return _template(tower, jax.ShapeDtypeStruct((1, 4), np.int32))


def _patch_template(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The shapes of a patch tower's parameters."""
    model = default_config().model
    model.patch.update(settings)
    images = (1, settings["image_size"], settings["image_size"], 3)
    return _template(build_visual_tower(model), jax.ShapeDtypeStruct(images, np.float32))


def _template(tower, batch: jax.ShapeDtypeStruct) -> dict[str, Any]:
    return jax.eval_shape(tower.init, jax.random.key(0), batch)["params"]
