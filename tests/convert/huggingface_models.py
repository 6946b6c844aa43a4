"""Hugging Face models with random weights, and what our towers must give for the same inputs."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from rc3_jax.data.tokenizer import PAD_ID
from rc3_jax.models.compute import Compute
from rc3_jax.models.text import TextSettings
from rc3_jax.models.towers import TOWERS
from tests.vision_reference import randomise, require

torch = require("torch")
transformers = require("transformers")

ODD = dict(hidden_size=60, num_hidden_layers=3, num_attention_heads=3, intermediate_size=70)
EVEN = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128)
TEXT = dict(odd=ODD | dict(vocab_size=37, max_position_embeddings=21))
TEXT |= dict(even=EVEN | dict(vocab_size=101, max_position_embeddings=40, layer_norm_eps=1e-5))
# 30 pixels are no multiple of the patch; other norms and activations than the types' own.
PATCH = dict(odd=ODD | dict(image_size=30, patch_size=7, layer_norm_eps=1e-3))
PATCH |= dict(even=EVEN | dict(image_size=32, patch_size=16))
SWIN = dict(
    # 12 tokens a side, then 6, then 3: an odd window, shifted twice, and one that is the image.
    odd=dict(image_size=48, embed_dim=12, depths=[2, 2, 1], num_heads=[3, 2, 4], window_size=3),
    even=dict(image_size=64, embed_dim=8, depths=[3, 2], num_heads=[2, 4], window_size=4),
)
KINDS = {
    "xlm-roberta": ("XLMRobertaConfig", TextSettings, dict(add_pooling_layer=False)),
    "vit": ("ViTConfig", TOWERS["vit"], dict(add_pooling_layer=False)),
    "clip": ("CLIPVisionConfig", TOWERS["clip"], {}),
    "siglip": ("SiglipVisionConfig", TOWERS["siglip"], {}),
    "beit": ("BeitConfig", TOWERS["beit"], {}),
    "swin": ("SwinConfig", TOWERS["swin"], dict(add_pooling_layer=False)),
}
CASES = [(family, size) for family in KINDS for size in ("odd", "even")]
ACTIVATIONS = dict(
    vit="gelu_pytorch_tanh", clip="gelu", siglip="gelu", beit="quick_gelu", swin="quick_gelu"
)
SCALES = {"odd": 0.15, "even": 0.04}
"""Of the weights: large ones make attention sharp, small ones make the norms' epsilons matter."""


def part_of(family: str) -> str:
    return "text" if family == "xlm-roberta" else "patch"


def config_of(family: str, size: str, **more: Any):
    """The tower's config of transformers; `more` are further settings of it."""
    settings = dict({"xlm-roberta": TEXT, "swin": SWIN}.get(family, PATCH)[size])
    if size == "odd" and family in ACTIVATIONS:
        settings["hidden_act"] = ACTIVATIONS[family]
    if family == "beit":
        settings["use_relative_position_bias"] = True
    settings |= more
    return getattr(transformers, KINDS[family][0])(**settings, attn_implementation="eager")


def model_of(family: str, size: str, **more: Any):
    """The tower's model of transformers, every parameter random."""
    _, kind, options = KINDS[family]
    model = getattr(transformers, kind.hugging_face.architecture)
    return randomise(model(config_of(family, size, **more), **options), torch, SCALES[size])


def inputs_of(family: str, size: str) -> np.ndarray:
    """Ids, one row padded and one of a single token; or pixels, channels last."""
    if family != "xlm-roberta":
        side = (SWIN if family == "swin" else PATCH)[size]["image_size"]
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
    stored = KINDS[family][1].hugging_face
    model = getattr(model, "vision_model", model)
    if stored.last_norm:
        states = model.get_submodule(stored.last_norm)(states)
    if stored.pooled_mean:
        patches = states[:, 1:] if family == "beit" else states
        states = torch.cat([patches.mean(dim=1, keepdim=True), patches], dim=1)
    return states


def our_states(tower, family: str, inputs: np.ndarray, params: Mapping | None = None):
    """What our tower gives; images lose the pixels that the convolution leaves out."""
    settings = tower.settings
    if family == "xlm-roberta":
        built = settings.build(len(tower.params["word_embedding"]["embedding"]), Compute())
    else:
        built = settings.build(Compute())
        inputs = inputs[:, : settings.image_size, : settings.image_size]
    return built.apply({"params": tower.params if params is None else params}, inputs)


def saved(model, folder: pathlib.Path) -> pathlib.Path:
    model.save_pretrained(folder)
    return folder


def write_folder(folder: pathlib.Path, tensors: Mapping, config: Mapping) -> pathlib.Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(dict(tensors), folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def assert_loads(folder: pathlib.Path, kind: str, **options: Any):
    """The model that `from_pretrained` reads without missing, unexpected or mismatched weights."""
    model, report = getattr(transformers, kind).from_pretrained(
        folder, attn_implementation="eager", output_loading_info=True, **options
    )
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model.eval()
