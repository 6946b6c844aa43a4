"""Checkpoints of the published CCLM code: names, tied copies and buffers (CCLM.md section 7).

The layout of 2022 (Swin, text and fusion layers in one stack, tied decoder) and that of
CCLM-X²VLM (BEiT-v2, a cross encoder of its own, a decoder of its own).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import ml_collections
import numpy as np

from rc3_jax.convert.mapping import to_flax, to_torch
from rc3_jax.convert.names import BERT_EMBEDDINGS, BERT_LAYER, Layers, Row, Table
from rc3_jax.convert.vision_names import (
    BEIT_LAYER,
    BEIT_OUTER,
    BEIT_SAVED_LAYER,
    PREFIX,
    swin_rows,
)
from rc3_jax.models.beit import class_relative_index
from rc3_jax.models.layers import relative_index
from rc3_jax.models.swin import shift_bias

CROSS_LAYER = (
    *BERT_LAYER,
    Row("dense", "cross_attention/query", "crossattention.self.query"),
    Row("dense", "cross_attention/key", "crossattention.self.key"),
    Row("dense", "cross_attention/value", "crossattention.self.value"),
    Row("dense", "cross_attention/out", "crossattention.output.dense"),
    Row("norm", "cross_attention_norm", "crossattention.output.LayerNorm"),
)
HEADS = (
    Row("array", "temperature", "temp"),
    Row("dense", "image_projection/linear", "vision_proj"),
    Row("dense", "text_projection/linear", "text_proj"),
    *(
        Row(kind, f"{ours}/{part}", f"{saved}.{number}")
        for ours, saved in (("matching_head", "itm_head"), ("box_head", "bbox_head"))
        for number, kind, part in (
            (0, "dense", "hidden"),
            (1, "norm", "hidden_norm"),
            (3, "dense", "logits"),
        )
    ),
)
TOWERS = {"swin": "text_encoder.bert.", "beit": "text_encoder."}
"""What the text tower's names begin with, by the type of the vision tower."""

WORDS = "embeddings.word_embeddings.weight"


class Layout(NamedTuple):
    """How the published code names a model's tensors.

    Attributes:
      copies: tensors that the published model holds twice: the second name → the first.
      buffers: name → what the published model computes and saves too.
    """

    table: Table
    copies: Mapping[str, str]
    buffers: Mapping[str, np.ndarray]


def layout_of(model: ml_collections.ConfigDict) -> Layout:
    """The layout for `config.model`: that of 2022 with Swin, that of X²-VLM with BEiT.

    Raises:
      ValueError: for a tower that no published model has.
    """
    patch, text = model.patch, model.text
    if patch.type not in ("swin", "beit"):
        raise ValueError(f"published checkpoints have a Swin or a BEiT tower, not {patch.type!r}")
    if model.tied_decoder != (patch.type == "swin"):
        raise ValueError("published models tie the decoder with a Swin tower, and not with BEiT")
    tower = TOWERS[patch.type]
    if patch.type == "swin":
        head = "text_encoder.cls.predictions."
        vision, vision_layers, buffers = swin_rows(patch.depths), (), _swin_buffers(patch)
        fusion = Layers(
            "fusion/layers/", f"{tower}encoder.layer.{{}}.", CROSS_LAYER, None, text.depth
        )
    else:
        head = "mlm_head.predictions."
        vision, buffers = BEIT_OUTER, _beit_buffers(patch)
        vision_layers = (Layers("vision/encoder/layers/", PREFIX + BEIT_SAVED_LAYER, BEIT_LAYER),)
        fusion = Layers("fusion/layers/", "cross_encoder.encoder.layer.{}.", CROSS_LAYER)
    words = (
        Row("array", "word_bias", f"{head}bias"),
        Row("dense", "masked_lm_head/hidden", f"{head}transform.dense"),
        Row("norm", "masked_lm_head/hidden_norm", f"{head}transform.LayerNorm"),
    )
    copies = {f"{head}decoder.bias": f"{head}bias"}
    if model.tied_decoder:
        copies[f"{head}decoder.weight"] = f"{tower}{WORDS}"
    else:
        words += (Row("array", "decoder", f"{head}decoder.weight"),)
    embeddings = _within("text/", tower, BERT_EMBEDDINGS)
    outer = (*HEADS, *_within("vision/", PREFIX, vision), *embeddings, *words)
    layers = (
        *vision_layers,
        Layers("text/encoder/layers/", f"{tower}encoder.layer.{{}}.", BERT_LAYER),
        fusion,
    )
    buffers[f"{tower}embeddings.position_ids"] = np.arange(text.max_positions)[None]
    return Layout(Table("", (), outer, layers), copies, buffers)


def from_published(
    tensors: Mapping[str, np.ndarray], model: ml_collections.ConfigDict, template: Mapping
) -> dict:
    """Our parameters from the state dict of a published model.

    Args:
      tensors: by their published names; tied copies and buffers may be there or not.
      model: `config.model`.
      template: parameters of the model, or `jax.eval_shape` of them.

    Raises:
      ValueError: lists every missing, extra and mis-shaped tensor, and copies that differ.
    """
    layout = layout_of(model)
    return to_flax(own_tensors(tensors, layout), layout.table, template)


def own_tensors(tensors: Mapping[str, np.ndarray], layout: Layout) -> dict[str, np.ndarray]:
    """The tensors without the layout's copies and buffers.

    Raises:
      ValueError: lists copies that differ, and tensors that hold no floating-point numbers.
    """
    known = {**layout.copies, **layout.buffers}
    own = {name: tensor for name, tensor in tensors.items() if name not in known}
    problems = [
        f"{copy} is not equal to {name}, to which the model ties it"
        for copy, name in layout.copies.items()
        if copy in tensors and name in tensors and not np.array_equal(tensors[copy], tensors[name])
    ]
    problems += [
        f"{name} holds {tensor.dtype}, must hold floating-point numbers"
        for name, tensor in own.items()
        if not np.issubdtype(tensor.dtype, np.floating)
    ]
    if problems:
        raise ValueError(
            "\n  ".join(["the checkpoint contradicts itself or the model:", *problems])
        )
    return own


def to_published(params: Mapping, model: ml_collections.ConfigDict) -> dict[str, np.ndarray]:
    """The state dict that the published model loads with `strict=True`: copies, buffers and all."""
    return published_tensors(params, layout_of(model))


def published_tensors(params: Mapping, layout: Layout) -> dict[str, np.ndarray]:
    """Our parameters by published names, with the layout's copies and buffers."""
    tensors = to_torch(params, layout.table)
    tensors |= {copy: tensors[name] for copy, name in layout.copies.items()}
    return tensors | layout.buffers


def _within(ours: str, saved: str, rows: tuple[Row, ...]) -> tuple[Row, ...]:
    return tuple(row._replace(ours=ours + row.ours, saved=saved + row.saved) for row in rows)


def _swin_buffers(patch) -> dict[str, np.ndarray]:
    """Index of the relative positions of each block, and the mask of each shifted one."""
    buffers = {}
    for stage, depth in enumerate(patch.depths):
        side = patch.image_size // patch.patch // 2**stage
        window = min(patch.window, side)
        for block in range(depth):
            name = f"{PREFIX}layers.{stage}.blocks.{block}."
            buffers[f"{name}attn.relative_position_index"] = relative_index(window)
            if block % 2 and window < side:
                buffers[f"{name}attn_mask"] = shift_bias(side, window, window // 2)
    return buffers


def _beit_buffers(patch) -> dict[str, np.ndarray]:
    index = class_relative_index(patch.image_size // patch.patch)
    return {
        f"{PREFIX}blocks.{block}.attn.relative_position_index": index
        for block in range(patch.depth)
    }
