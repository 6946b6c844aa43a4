"""Tensors of Hugging Face checkpoints brought to what the tables of names describe."""

from __future__ import annotations

import pathlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from rc3_jax.config import ConfigError
from rc3_jax.convert.huggingface_names import INDEX, MASKED_LM, TABLE, BeitNames
from rc3_jax.convert.mapping import to_flax
from rc3_jax.convert.names import XLM_ROBERTA, Table
from rc3_jax.convert.torch_file import TensorFileError, check_floats
from rc3_jax.models.text import EPSILON

Tensors = Mapping[str, np.ndarray]

TYPES = "embeddings.token_type_embeddings.weight"
WORDS = "embeddings.word_embeddings.weight"
HEAD = "lm_head."
DECODER = "lm_head.decoder."


def fitted(path: pathlib.Path, tensors: Tensors, table: Table, template: Mapping) -> dict[str, Any]:
    """`to_flax` of a checkpoint's tensors.

    Args:
      path: of the checkpoint, for messages.

    Raises:
      TensorFileError: lists every tensor that does not fit, or holds no floating-point numbers.
    """
    check_floats(path, {name: x for name, x in tensors.items() if not _is_ignored(name, table)})
    try:
        return to_flax(tensors, table, template)
    except ValueError as error:
        raise TensorFileError(f"{path}: {error}") from error


def left_out(tensors: Tensors, table: Table, heads: Mapping) -> list[str]:
    """A note of the tensors that the tower has no use for; none without such tensors."""
    names = [name for name in tensors if _is_ignored(name, table)]
    if heads:
        names = [name for name in names if not name.startswith(HEAD)]
    short = (name.removeprefix(table.prefix) for name in names)
    counts = Counter(name.partition(".")[0] for name in short if "position_ids" not in name)
    parts = ", ".join(f"{name} ({count})" for name, count in counts.items())
    return [f"tensors that are not the tower's are left out: {parts}"] if counts else []


def first_type(tensors: Tensors, notes: list[str]) -> Tensors:
    """With one row of the embeddings of token types, as our text tower has it."""
    found = {}
    for name in (TYPES, XLM_ROBERTA.prefix + TYPES):
        table = tensors.get(name)
        if table is not None and table.ndim == 2 and len(table) > 1:
            notes.append(f"embeddings of token types: the first of {len(table)} rows is taken")
            found[name] = table[:1]
    return {**tensors, **found}


def picked_layers(tensors: Tensors, layers: Sequence[int], depth: int) -> Tensors:
    """The tensors with the chosen of `depth` text layers, numbered anew.

    Raises:
      ConfigError: for layers that are not there or are chosen twice.
    """
    layers = list(layers)
    if not layers or len(set(layers)) < len(layers) or not set(layers) <= set(range(depth)):
        raise ConfigError(f"layers={layers} must be different numbers from 0 to {depth - 1}")
    found = {}
    for name, tensor in tensors.items():
        match = re.match(r"(.*encoder\.layer\.)(\d+)(\..*)", name)
        number = int(match[2]) if match else depth
        if number in layers:
            found[f"{match[1]}{layers.index(number)}{match[3]}"] = tensor
        elif number >= depth:
            found[name] = tensor  # of no layer, or of one too many, which is told later
    return found


def masked_lm_head(
    path: pathlib.Path,
    tensors: Tensors,
    settings: Mapping[str, Any],
    vocab_size: int,
    notes: list[str],
) -> dict[str, Any]:
    """`masked_lm_head` and `word_bias` of XLM-R, empty where the checkpoint has none.

    Raises:
      TensorFileError: lists missing, extra and mis-shaped tensors of the head.
    """
    head = {name: tensor for name, tensor in tensors.items() if name.startswith(HEAD)}
    copies = {name: head.pop(name) for name in list(head) if name.startswith(DECODER)}
    if not head:
        return {}
    words = tensors.get(WORDS, tensors.get(XLM_ROBERTA.prefix + WORDS))
    originals = {"weight": words, "bias": head.get("lm_head.bias")}
    if any(
        not np.array_equal(copy, originals.get(name.removeprefix(DECODER)))
        for name, copy in copies.items()
    ):
        notes.append(
            "the head of masked words is left out: it has word embeddings of its own, and ours "
            "takes those of the text tower"
        )
        return {}
    if settings["epsilon"] is not None:
        notes.append(
            f"the head of masked words has a norm of epsilon {settings['epsilon']}; ours keeps "
            f"{EPSILON}"
        )
    width = settings["width"]
    shapes = dict(
        masked_lm_head=dict(
            hidden=dict(kernel=(width, width), bias=(width,)),
            hidden_norm=dict(scale=(width,), bias=(width,)),
        ),
        word_bias=(vocab_size,),
    )
    template = jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, np.float32),
        shapes,
        is_leaf=lambda x: isinstance(x, tuple),
    )
    return fitted(path, head, MASKED_LM, template)


def complete_beit(
    path: pathlib.Path,
    tensors: Tensors,
    prefix: str,
    names: BeitNames,
    settings: Mapping[str, Any],
    notes: list[str],
    *,
    scaled: bool,
) -> dict[str, np.ndarray]:
    """Tensors of BEiT with all that our tower holds in each layer.

    A table of relative positions that the layers share becomes each one's, and where parts of the
    layers are not scaled they get factors of 1.

    Args:
      prefix: that all names may have; it is removed.
      scaled: whether the layers must have their scales.

    Raises:
      TensorFileError: for absolute positions, for none, and for names that occur twice.
    """
    found = {
        name.removeprefix(prefix): x for name, x in tensors.items() if not name.endswith(INDEX)
    }
    if len(found) < sum(not name.endswith(INDEX) for name in tensors):
        raise TensorFileError(f"{path} holds tensors twice, with and without {prefix}")
    if names.absolute in found:
        raise TensorFileError(
            f"{path} has absolute positions ({names.absolute}); the BEiT tower has relative ones "
            "alone: take a checkpoint with use_absolute_position_embeddings=false"
        )
    shared = found.pop(names.shared, None)
    if shared is None and not any(name.endswith(TABLE) for name in found):
        raise TensorFileError(
            f"{path} has no relative positions ({names.layer.format(0)}{names.table} or "
            f"{names.shared}), which the BEiT tower needs"
        )
    layers = [names.layer.format(number) for number in range(settings["depth"])]
    if shared is not None:
        notes.append("the layers share a table of relative positions: each gets a copy")
        for layer in layers:
            own = found.get(layer + names.table)
            found[layer + names.table] = shared if own is None else own + shared
    if not scaled and not any(name.endswith(names.scales) for name in found):
        notes.append("the layers have no scales: they are 1")
        ones = np.ones(settings["width"], np.float32)
        found |= {layer + scale: ones for layer in layers for scale in names.scales}
    given, ours = names.norms
    if not any(name.startswith(ours) for name in found):
        notes.append(
            f"the norm of the patch tokens is {given[:-1]}, which was trained on all tokens; the "
            "mean of the patch tokens stands for the image"
        )
        found = {
            ours + name.removeprefix(given) if name.startswith(given) else name: tensor
            for name, tensor in found.items()
        }
    return found


def _is_ignored(name: str, table: Table) -> bool:
    return name.removeprefix(table.prefix).startswith(table.ignored)
