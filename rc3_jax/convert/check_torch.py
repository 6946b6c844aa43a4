"""Outputs and layers of PyTorch models, for `check.py`."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from rc3_jax.config import ConfigError
from rc3_jax.convert.output import import_extra

Outputs = dict[str, np.ndarray]
COMPARED = re.compile(r"(?:.*\.)?(?:layers\.\d+|block_\d+)|text|patch|roi")
"""Names of the mirror's modules whose outputs are compared: layers and towers."""
CLASSES = {
    "xlm-roberta": ("text", "XLMRobertaModel"),
    "vit": ("patch", "ViTModel"),
    "clip": ("patch", "CLIPVisionModel"),
    "clip_vision_model": ("patch", "CLIPVisionModel"),
    "siglip": ("patch", "SiglipVisionModel"),
    "siglip_vision_model": ("patch", "SiglipVisionModel"),
    "beit": ("patch", "BeitModel"),
}
"""Type of a Hugging Face model → the tower that it is, and its class."""


def mirror(
    folder: pathlib.Path, rows: Mapping[str, np.ndarray], pixels: np.ndarray, ids: np.ndarray
) -> Outputs:
    """The outputs of an exported model.

    Its weights are read, and computed with our own copy of the mirror: no code of the folder runs.

    Args:
      rows: visual fields, of which those of regions are read.
      pixels: normalised, `[rows, size, size, 3]`.
      ids: `[rows, length]`.
    """
    torch = import_extra("torch", "torch")
    from rc3_jax.convert.mirror.modeling_rc3 import RC3Model

    model = _load(RC3Model, folder)
    found: Outputs = {}

    def keep(name: str) -> Callable:
        def hook(_module, _inputs, output):
            found[name] = output.detach().numpy()

        return hook

    for name, module in model.named_modules():
        if COMPARED.fullmatch(name):
            module.register_forward_hook(keep(name))
    fields = ("region_features", "region_boxes", "region_mask", "has_features")
    given = {name: torch.from_numpy(rows[name]) for name in fields if name in rows}
    given["pixel_values"] = _channels_first(torch, pixels)
    ids = torch.from_numpy(ids.astype(np.int64))
    with torch.no_grad():
        outputs = model(ids, **given)
        words = model.fill_mask(ids, **given)[:, :4]
    names = ("image_vector", "text_vector", "fused_vector", "matching_logits")
    found |= {name: outputs[name].numpy() for name in names}
    return found | {"word_logits": words.numpy()}


def tower(folder: pathlib.Path, kind: Any, pixels: np.ndarray, ids: np.ndarray) -> Outputs:
    """The outputs of a Hugging Face model, by our names; see `mirror`.

    Args:
      kind: the model_type that its `config.json` names.
    """
    torch, transformers = import_extra("torch", "torch"), import_extra("transformers", "torch")
    if not isinstance(kind, str) or kind not in CLASSES:
        raise ConfigError(f"{folder} is of model_type {kind!r}; one of {', '.join(CLASSES)} can be")
    part, name = CLASSES[kind]
    model = _load(getattr(transformers, name), folder)
    with torch.no_grad():
        if part == "text":
            ids = torch.from_numpy(ids.astype(np.int64))
            outputs = model(ids, attention_mask=(ids != 1).long(), output_hidden_states=True)
            last = outputs.last_hidden_state
        else:
            size = model.config.image_size
            if size != pixels.shape[1]:
                raise ConfigError(
                    f"{folder} takes images of {size} pixels a side, the other model of "
                    f"{pixels.shape[1]}"
                )
            outputs = model(_channels_first(torch, pixels), output_hidden_states=True)
            last = _last(torch, kind.split("_")[0], model, outputs.last_hidden_state)
    layers = outputs.hidden_states[1:]
    found = {f"{part}.encoder.layers.{i}": x.numpy() for i, x in enumerate(layers)}
    return found | {part: last.numpy()}


def _last(torch, kind: str, model, states):
    """What our tower makes of the states after the last layer."""
    if kind == "clip":
        return getattr(model, "vision_model", model).post_layernorm(states)
    if kind == "beit":
        states = model.pooler.layernorm(states[:, 1:])
    if kind in ("beit", "siglip"):
        return torch.cat([states.mean(1, keepdim=True), states], 1)
    return states


def _load(kind: Any, folder: pathlib.Path) -> Any:
    """A model in float32, of files that cannot run code."""
    torch = import_extra("torch", "torch")
    try:
        model = kind.from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, local_files_only=True
        )
    except Exception as error:  # transformers raises anything for broken settings
        raise ConfigError(f"{folder} cannot be loaded as {kind.__name__}: {error}") from error
    return model.eval()


def _channels_first(torch, pixels: np.ndarray):
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))
