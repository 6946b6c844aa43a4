"""Names of the published downstream models (CCLM of 2022; CCLM.md sections 5 and 7.1).

Downstream checkpoints name the text encoder `text_encoder.` without `bert.` and leave out the heads
that the task does not need.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from rc3_jax.convert.cclm import CROSS_LAYER, HEAD, Layout, layout_of, own_tensors
from rc3_jax.convert.cclm import to_published as tensors_of
from rc3_jax.convert.cclm_tasks import ENCODERS, WORD_HEAD, split_pairs
from rc3_jax.param_map import ParamMap

RETRIEVAL = (*ENCODERS, "temperature", "image_projection", "text_projection", "matching_head")


def from_published(
    tensors: Mapping[str, np.ndarray],
    model: ml_collections.ConfigDict,
    task: str,
    template: Mapping,
) -> dict:
    """Our parameters of a task's model from the published one's state dict.

    Args:
      tensors: by name, with or without tied copies, buffers, and heads that the task does not need.
      template: parameters of the model, or their shapes. For `retrieval`, heads that the published
        model lacks are taken from here.
    """
    layout, shared, unused = _task_layout(model, task)
    tensors = {name: x for name, x in tensors.items() if not name.startswith(unused)}
    own = own_tensors(tensors, layout._replace(copies={**layout.copies, **shared}))
    own |= {copy: own[name] for copy, name in shared.items() if name in own}
    wanted = _parts(template, task)
    if task == "two_images":
        wanted["fusion"] = jax.eval_shape(_join_pairs, wanted["fusion"])
    params = layout.names.to_ours(own, wanted)
    if task == "two_images":
        params["fusion"] = split_pairs(params["fusion"])
    return {**template, **params}


def to_published(
    params: Mapping, model: ml_collections.ConfigDict, task: str
) -> dict[str, np.ndarray]:
    """The state dict of the published model, copies and buffers too."""
    layout, _, _ = _task_layout(model, task)
    params = _parts(params, task)
    if task == "two_images":
        params["fusion"] = _join_pairs(params["fusion"])
    return tensors_of(params, layout)


def _task_layout(
    model: ml_collections.ConfigDict, task: str
) -> tuple[Layout, dict[str, str], tuple[str, ...]]:
    """A task's layout; tensors of two images that are those of an earlier layer; unused names."""
    names, copies, buffers = layout_of(model)
    parts = RETRIEVAL if task == "retrieval" else ENCODERS
    plain = {ours: name._replace(theirs=_plain(name.theirs)) for ours, name in names.rows.items()}
    rows = {ours: name for ours, name in plain.items() if ours.split("/")[0] in parts}
    unused = [name.theirs for ours, name in plain.items() if ours not in rows]
    unused += map(_plain, copies)
    buffers = {_plain(name): value for name, value in buffers.items()}
    found, shared, ties = ParamMap(rows), {}, {}
    if task in ("classifier", "two_images"):
        found |= HEAD.within("class_head", "cls_head")
    if task == "two_images":
        first, name = model.text.depth, "text_encoder.encoder.layer.{}.crossattention.self.{}"
        shared = {
            name.format(layer + 1, leaf): name.format(layer, leaf)
            for layer in range(first, first + 2 * model.fusion.depth, 2)
            for leaf in ("key.weight", "key.bias", "value.weight", "value.bias")
        }
    if task == "answers":
        found |= ParamMap(
            {
                "decoder/" + ours.removeprefix("text/"): name._replace(theirs=_decoder(name.theirs))
                for ours, name in names.rows.items()
                if ours.split("/")[0] in ("text", *WORD_HEAD) and "layers" not in ours
            }
        )
        layer = "text_decoder.bert.encoder.layer.{}"
        found |= CROSS_LAYER.within("decoder/encoder/layers", layer)
        ties = {_decoder(copy): _decoder(name) for copy, name in copies.items()}
        positions = "text_encoder.embeddings.position_ids"
        buffers["text_decoder.bert.embeddings.position_ids"] = buffers[positions]
    return Layout(found, ties, buffers), shared, tuple(unused)


def _join_pairs(paired: Mapping) -> dict:
    """Parameters of a `Stack` of all layers from those of a `PairedStack`."""
    layers = paired["layers"]
    shared = {name: layers[name] for name in ("key", "value")}
    first, second = (
        {**layers[half], "cross_attention": {**layers[half]["cross_attention"], **shared}}
        for half in ("first", "second")
    )

    def alternate(x, y):
        return jnp.stack([x, y], axis=1).reshape(-1, *x.shape[1:])

    return {"layers": jax.tree.map(alternate, first, second)}


def _parts(params: Mapping, task: str) -> dict:
    """Those that the published model has too."""
    return {k: v for k, v in params.items() if task != "retrieval" or k in RETRIEVAL}


def _plain(name: str) -> str:
    return name.replace("text_encoder.bert.", "text_encoder.")


def _decoder(name: str) -> str:
    return name.replace("text_encoder.", "text_decoder.")
