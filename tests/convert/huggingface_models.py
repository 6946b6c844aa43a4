"""Hugging Face models with random weights, and what our towers must give for the same inputs."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping

import numpy as np
from safetensors.numpy import save_file

from rc3_jax.config import default_config
from rc3_jax.data.tokenizer import PAD_ID
from rc3_jax.models.towers import build_visual_tower
from tests.towers import text_tower
from tests.vision_reference import randomise, require

torch = require("torch")
transformers = require("transformers")

ODD = dict(
    hidden_size=60,
    num_hidden_layers=3,
    num_attention_heads=3,
    intermediate_size=70,
)
EVEN = dict(
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=128,
)
TEXT = dict(odd=ODD | dict(vocab_size=37, max_position_embeddings=21))
TEXT |= dict(even=EVEN | dict(vocab_size=101, max_position_embeddings=40, layer_norm_eps=1e-5))
# 30 pixels are no multiple of the patch; other norms and activations than the types' own.
PATCH = dict(odd=ODD | dict(image_size=30, patch_size=7, layer_norm_eps=1e-3))
PATCH |= dict(even=EVEN | dict(image_size=32, patch_size=16))
KINDS = {
    "xlm-roberta": ("XLMRobertaConfig", "XLMRobertaModel", dict(add_pooling_layer=False)),
    "vit": ("ViTConfig", "ViTModel", dict(add_pooling_layer=False)),
    "clip": ("CLIPVisionConfig", "CLIPVisionModel", {}),
    "siglip": ("SiglipVisionConfig", "SiglipVisionModel", {}),
    "beit": ("BeitConfig", "BeitModel", {}),
}
ACTIVATIONS = {"vit": "gelu_pytorch_tanh", "clip": "gelu", "siglip": "gelu", "beit": "quick_gelu"}
SCALES = {"odd": 0.15, "even": 0.04}
"""Of the weights: large ones make attention sharp, small ones make the norms' epsilons matter."""


def config_of(family: str, size: str, **more):
    settings = dict((TEXT if family == "xlm-roberta" else PATCH)[size])
    if size == "odd" and family in ACTIVATIONS:
        settings["hidden_act"] = ACTIVATIONS[family]
    if family == "beit":
        settings["use_relative_position_bias"] = True
    settings |= more
    return getattr(transformers, KINDS[family][0])(**settings, attn_implementation="eager")


def model_of(family: str, size: str, **more):
    """The tower's model of Hugging Face; `more` are settings of its config."""
    _, name, options = KINDS[family]
    model = getattr(transformers, name)(config_of(family, size, **more), **options)
    return randomise(model, torch, SCALES[size])


def inputs_of(family: str, size: str) -> np.ndarray:
    """Ids, one row padded and one of a single token; or pixels, channels last."""
    if family != "xlm-roberta":
        side = PATCH[size]["image_size"]
        return np.random.default_rng(2).normal(size=(2, side, side, 3)).astype(np.float32)
    sizes = TEXT[size]
    length = sizes["max_position_embeddings"] - PAD_ID - 1
    ids = np.random.default_rng(0).integers(PAD_ID + 1, sizes["vocab_size"], (3, length))
    ids[1, length // 2 :] = PAD_ID
    ids[2, 1:] = PAD_ID
    return ids


def states_of(model, family: str, inputs: np.ndarray):
    """What our tower must give; states of padding are 0."""
    tensor = torch.from_numpy(inputs)
    if family == "xlm-roberta":
        mask = tensor != PAD_ID
        states = model(input_ids=tensor, attention_mask=mask.long()).last_hidden_state
        return states * mask[..., None]
    states = model(pixel_values=tensor.permute(0, 3, 1, 2)).last_hidden_state
    if family == "clip":
        states = getattr(model, "vision_model", model).post_layernorm(states)
    if family == "beit":
        states = model.pooler.layernorm(states[:, 1:])
    if family in ("siglip", "beit"):
        states = torch.cat([states.mean(dim=1, keepdim=True), states], dim=1)
    return states


def our_tower(part: str, settings: Mapping, params: Mapping | None = None):
    """The tower of such settings in float32; `params` tell the vocabulary of a text tower."""
    if part == "text":
        return text_tower(len(params["word_embedding"]["embedding"]), **settings)
    config = default_config().model
    config.update(dtype="float32", dropout=0.0)
    config.patch.update({k: v for k, v in settings.items() if not k.startswith("image_m")})
    return build_visual_tower(config)


def our_inputs(family: str, settings: Mapping, inputs: np.ndarray) -> np.ndarray:
    """Images without the pixels that the convolution leaves out."""
    if family == "xlm-roberta":
        return inputs
    return inputs[:, : settings["image_size"], : settings["image_size"]]


def write_folder(folder: pathlib.Path, tensors: Mapping, config: Mapping) -> pathlib.Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(dict(tensors), folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    return folder
