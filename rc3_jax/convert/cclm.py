"""Checkpoints of the published CCLM code: names, tied copies and buffers (CCLM.md section 7).

The layout of 2022 (Swin; text and fusion layers numbered on; tied decoder) and that of
CCLM-X²VLM (BEiT-v2, a cross encoder of its own, a decoder of its own).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import ml_collections
import numpy as np

from rc3_jax.models import beit, swin
from rc3_jax.models.layers import relative_index
from rc3_jax.models.text import BERT_LAYER, BERT_NAMES
from rc3_jax.param_map import ParamMap

VISION = "vision_encoder"
TOWERS = {"swin": "text_encoder.bert", "beit": "text_encoder"}
"""What the text tower's names begin with, by the type of the vision tower."""
WORDS = "embeddings.word_embeddings.weight"
CROSS_LAYER = BERT_LAYER | ParamMap(
    {
        "cross_attention": "crossattention.self",
        "cross_attention/out": "crossattention.output.dense",
        "cross_attention_norm": "crossattention.output.LayerNorm",
    }
)
HEAD = ParamMap({"hidden": "0", "hidden_norm": "1", "logits": "3"})
HEADS = (
    ParamMap(
        {
            "temperature": "temp",
            "image_projection/linear": "vision_proj",
            "text_projection/linear": "text_proj",
        }
    )
    | HEAD.within("matching_head", "itm_head")
    | HEAD.within("box_head", "bbox_head")
)


class Layout(NamedTuple):
    """How the published code names a model's tensors.

    Attributes:
      names: of our parameters.
      copies: tensors that the published model holds twice: the second name → the first.
      buffers: name → array that the published model computes and saves too.
    """

    names: ParamMap
    copies: Mapping[str, str]
    buffers: Mapping[str, np.ndarray]


def layout_of(model: ml_collections.ConfigDict) -> Layout:
    """The layout for `config.model`: that of 2022 with Swin, that of X²-VLM with BEiT.

    Raises:
      ValueError: for a model that is not like any published one.
    """
    patch, text = model.patch, model.text
    if patch.type not in TOWERS or model.tied_decoder != (patch.type == "swin"):
        raise ValueError(
            f"published models have a Swin tower and a tied decoder, or a BEiT tower and an untied "
            f"one; this one has model.patch.type={patch.type!r} and "
            f"model.tied_decoder={model.tied_decoder}"
        )
    tower = TOWERS[patch.type]
    if patch.type == "swin":
        head = "text_encoder.cls.predictions"
        vision, buffers = swin.PUBLISHED_NAMES, _swin_buffers(patch)
        fusion = CROSS_LAYER.within("", f"{tower}.encoder.layer.{{}}", first=text.depth)
    else:
        head = "mlm_head.predictions"
        vision, buffers = beit.PUBLISHED_NAMES, _beit_buffers(patch)
        fusion = CROSS_LAYER.within("", "cross_encoder.encoder.layer.{}")
    words = {
        "word_bias": f"{head}.bias",
        "masked_lm_head/hidden": f"{head}.transform.dense",
        "masked_lm_head/hidden_norm": f"{head}.transform.LayerNorm",
    }
    copies = {f"{head}.decoder.bias": f"{head}.bias"}
    if model.tied_decoder:
        copies[f"{head}.decoder.weight"] = f"{tower}.{WORDS}"
    else:
        words["decoder"] = f"{head}.decoder.weight"
    names = HEADS | ParamMap(words) | vision.within("vision", VISION)
    names |= BERT_NAMES.within("text", tower) | fusion.within("fusion/layers", "")
    buffers[f"{tower}.embeddings.position_ids"] = np.arange(text.max_positions)[None]
    return Layout(names, copies, buffers)


def own_tensors(tensors: Mapping[str, np.ndarray], layout: Layout) -> dict[str, np.ndarray]:
    """The tensors without the layout's copies and buffers, which a checkpoint may have or not.

    A copy whose original is absent is taken for it.

    Raises:
      ValueError: lists copies that differ from their originals.
    """
    differing = [
        f"{copy} is not equal to {name}, to which the model ties it"
        for copy, name in layout.copies.items()
        if copy in tensors and name in tensors and not np.array_equal(tensors[copy], tensors[name])
    ]
    if differing:
        raise ValueError("; ".join(differing))
    only_copy = {
        name: tensors[copy]
        for copy, name in layout.copies.items()
        if copy in tensors and name not in tensors
    }
    known = {**layout.copies, **layout.buffers}
    return only_copy | {name: tensor for name, tensor in tensors.items() if name not in known}


def to_published(params: Mapping, layout: Layout) -> dict[str, np.ndarray]:
    """The state dict that the published model loads with `strict=True`, copies and buffers too."""
    tensors = layout.names.to_theirs(params)
    tensors |= {copy: tensors[name] for copy, name in layout.copies.items()}
    return {**tensors, **layout.buffers}


def _swin_buffers(patch: ml_collections.ConfigDict) -> dict[str, np.ndarray]:
    """Index of the relative positions of each block, and the mask of each shifted one."""
    buffers = {}
    for stage, depth in enumerate(patch.depths):
        side = patch.image_size // patch.patch // 2**stage
        window = min(patch.window, side)
        for block in range(depth):
            name = f"{VISION}.layers.{stage}.blocks.{block}."
            buffers[f"{name}attn.relative_position_index"] = relative_index(window)
            if block % 2 and window < side:
                buffers[f"{name}attn_mask"] = swin.shift_bias(side, window, window // 2)
    return buffers


def _beit_buffers(patch: ml_collections.ConfigDict) -> dict[str, np.ndarray]:
    index = beit.class_relative_index(patch.image_size // patch.patch)
    return {
        f"{VISION}.blocks.{block}.attn.relative_position_index": index
        for block in range(patch.depth)
    }
