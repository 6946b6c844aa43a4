"""Downstream models of the published CCLM code (2022): names, and how they start from the trunk.

The trunk is a pre-trained `CCLM`. Downstream checkpoints name the text encoder `text_encoder.`
without `bert.` and leave out the heads that the task does not need (CCLM.md sections 5 and 7.1).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from rc3_jax.config import check_choice
from rc3_jax.convert.cclm import (
    CROSS_LAYER,
    HEADS,
    Layout,
    layout_of,
    own_tensors,
    published_tensors,
)
from rc3_jax.convert.mapping import to_flax
from rc3_jax.convert.names import Layers, Row, Table

ENCODERS = ("text", "vision", "fusion")
TASKS = ("retrieval", "classifier", "two_images", "answers")
"""`CCLM` itself, `PairClassifier`, `TwoImageClassifier`, `QuestionAnswering`."""
WORD_HEAD = ("masked_lm_head", "word_bias", "decoder")
"""`decoder`: the words' own table, of X²VLM only."""
RETRIEVAL = (*ENCODERS, "temperature", "image_projection", "text_projection", "matching_head")
CLASS_HEAD = tuple(
    row._replace(
        ours=row.ours.replace("matching_head", "class_head"),
        saved=row.saved.replace("itm_head", "cls_head"),
    )
    for row in HEADS
    if row.ours.startswith("matching_head/")
)


class TaskLayout(NamedTuple):
    """How the published code names the tensors of a downstream model.

    Attributes:
      layout: see `Layout`; of the pairs of two images, the table names every layer.
      shared: tensors of the second layer of each pair → those of the first that they are.
    """

    layout: Layout
    shared: Mapping[str, str]


def task_layout(model: ml_collections.ConfigDict, task: str) -> TaskLayout:
    """The names of a downstream model.

    Args:
      model: `config.model`.
      task: one of `TASKS`.

    Raises:
      ConfigError: for another task.
      ValueError: for a model of another layout than that of 2022.
    """
    check_choice("the task", task, TASKS)
    if model.patch.type != "swin" or not model.tied_decoder:
        raise ValueError("names of downstream models are known for CCLM of 2022 (Swin) only")
    table, copies, buffers = layout_of(model)
    parts = RETRIEVAL if task == "retrieval" else ENCODERS
    outer = [_plain(row) for row in table.outer if row.ours.split("/")[0] in parts]
    layers = [_plain(stack) for stack in table.layers]
    ignored = {_plain(row).saved for row in table.outer if row.ours.split("/")[0] not in parts}
    ignored |= {_strip(name) for name in copies}
    named, shared = {}, {}
    if task in ("classifier", "two_images"):
        outer += CLASS_HEAD
    if task == "two_images":
        shared = _shared(model.text.depth, model.fusion.depth)
    if task == "answers":
        outer += [_decoder_row(row) for row in table.outer if _in_decoder(row)]
        layers.append(
            Layers("decoder/encoder/layers/", "text_decoder.bert.encoder.layer.{}.", CROSS_LAYER)
        )
        named = {_decoder_name(copy): _decoder_name(name) for copy, name in copies.items()}
    plain_buffers = {_strip(name): value for name, value in buffers.items()}
    if task == "answers":
        positions = "text_encoder.bert.embeddings.position_ids"
        plain_buffers[_decoder_name(positions)] = buffers[positions]
    found = Table("", tuple(sorted(ignored)), tuple(outer), tuple(layers))
    return TaskLayout(Layout(found, named, plain_buffers), shared)


def from_published(
    tensors: Mapping[str, np.ndarray],
    model: ml_collections.ConfigDict,
    task: str,
    template: Mapping,
) -> dict:
    """Our parameters of a downstream model from the published one's state dict.

    Args:
      tensors: by name, with or without tied copies, buffers, and those heads of the trunk that the
        task does not need.
      template: parameters of the model, or `jax.eval_shape` of them. For `retrieval`, heads that
        the published model lacks are taken from here.

    Raises:
      ValueError: lists every missing, extra and mis-shaped tensor, and copies that differ.
    """
    layout, shared = task_layout(model, task)
    own = own_tensors(tensors, layout._replace(copies={**layout.copies, **shared}))
    own |= {copy: own[name] for copy, name in shared.items() if name in own}
    wanted = _parts(template, task)
    if task == "two_images":
        wanted["fusion"] = jax.eval_shape(join_pairs, wanted["fusion"])
    params = to_flax(own, layout.table, wanted)
    if task == "two_images":
        params["fusion"] = split_pairs(params["fusion"])
    return {**template, **params}


def to_published(
    params: Mapping, model: ml_collections.ConfigDict, task: str
) -> dict[str, np.ndarray]:
    """The state dict of the published model: copies, buffers and all."""
    layout, _ = task_layout(model, task)
    params = _parts(params, task)
    if task == "two_images":
        params["fusion"] = join_pairs(params["fusion"])
    return published_tensors(params, layout)


def from_trunk(trunk: Mapping, task: str, fresh: Mapping) -> dict:
    """The parameters that training of a task starts from.

    Each fusion layer becomes both layers of a pair that reads two images, and a layer of the
    answer decoder, which also starts with the text tower's embeddings and the word head.

    Args:
      trunk: parameters of `CCLM`.
      task: one of `TASKS`.
      fresh: new parameters of the task's model, for what the trunk does not have.

    Raises:
      ConfigError: for another task.
    """
    check_choice("the task", task, TASKS)
    if task == "retrieval":
        return dict(trunk)
    params = {**fresh, **{part: trunk[part] for part in ENCODERS}}
    if task == "two_images":
        twice = jax.tree.map(lambda x: np.repeat(np.asarray(x), 2, axis=0), trunk["fusion"])
        params["fusion"] = split_pairs(twice)
    if task == "answers":
        params["decoder"] = decoder_from_trunk(trunk)
    return params


def decoder_from_trunk(trunk: Mapping) -> dict:
    """The parameters that an `AnswerDecoder` starts from, of `CCLM` or `RC3`."""
    head = {name: trunk[name] for name in WORD_HEAD if name in trunk}
    return {**trunk["text"], "encoder": trunk["fusion"], **head}


def split_pairs(stack: Mapping) -> dict:
    """Parameters of a `PairedStack` from those of a `Stack` of all layers.

    The keys and values are those of the first layer of each pair.
    """
    layers = stack["layers"]
    first = jax.tree.map(lambda x: x[::2], layers)
    second = jax.tree.map(lambda x: x[1::2], layers)
    shared = {name: first["cross_attention"][name] for name in ("key", "value")}
    own = {
        name: {**half, "cross_attention": {k: half["cross_attention"][k] for k in ("query", "out")}}
        for name, half in (("first", first), ("second", second))
    }
    return {"layers": {**shared, **own}}


def join_pairs(paired: Mapping) -> dict:
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
    """What the published model has too."""
    return {k: v for k, v in params.items() if task != "retrieval" or k in RETRIEVAL}


def _shared(text_depth: int, pairs: int) -> dict[str, str]:
    name = "text_encoder.encoder.layer.{}.crossattention.self.{}.{}"
    return {
        name.format(layer + 1, role, leaf): name.format(layer, role, leaf)
        for layer in range(text_depth, text_depth + 2 * pairs, 2)
        for role in ("key", "value")
        for leaf in ("weight", "bias")
    }


def _strip(name: str) -> str:
    return name.replace("text_encoder.bert.", "text_encoder.")


def _plain(entry: Row | Layers) -> Row | Layers:
    return entry._replace(saved=_strip(entry.saved))


def _in_decoder(row: Row) -> bool:
    return row.ours.split("/")[0] in ("text", *WORD_HEAD)


def _decoder_row(row: Row) -> Row:
    return Row(row.kind, "decoder/" + row.ours.removeprefix("text/"), _decoder_name(row.saved))


def _decoder_name(name: str) -> str:
    return name.replace("text_encoder.", "text_decoder.")
