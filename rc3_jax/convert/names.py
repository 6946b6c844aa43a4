"""Hugging Face PyTorch names against our parameter paths: one table a family.

`mapping.py` reads the tables in both directions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Row(NamedTuple):
    """One module: its kind, our path of it, and its names on the PyTorch side.

    `saved` is the name in every saved file and within a model of transformers 4, `module` the
    name within a model of transformers 5 where that differs. `part` numbers ours of those whose
    tensors PyTorch holds as one, along its first axis (queries, keys and values).
    """

    kind: str
    ours: str
    saved: str
    module: str | None = None
    part: int | None = None


class Layers(NamedTuple):
    """Equal layers, each parameter of which we hold stacked along a leading axis.

    `ours` is what our paths begin with, `saved` and `module` what the names begin with on the
    PyTorch side, with `{}` for the number of a layer; that of our first one is `first`.
    """

    ours: str
    saved: str
    rows: tuple[Row, ...]
    module: str | None = None
    first: int = 0


class Table(NamedTuple):
    """The rows of a family, and its layers.

    `prefix` is what a model with a head adds to every name; `ignored` is how the names begin of
    tensors that we have no use for.
    """

    prefix: str
    ignored: tuple[str, ...]
    outer: tuple[Row, ...]
    layers: tuple[Layers, ...]


BERT_LAYER = (
    Row("dense", "self_attention/query", "attention.self.query"),
    Row("dense", "self_attention/key", "attention.self.key"),
    Row("dense", "self_attention/value", "attention.self.value"),
    Row("dense", "self_attention/out", "attention.output.dense"),
    Row("norm", "self_attention_norm", "attention.output.LayerNorm"),
    Row("dense", "mlp_in", "intermediate.dense"),
    Row("dense", "mlp_out", "output.dense"),
    Row("norm", "mlp_norm", "output.LayerNorm"),
)
BERT_EMBEDDINGS = (
    Row("embedding", "word_embedding", "embeddings.word_embeddings"),
    Row("embedding", "position_embedding", "embeddings.position_embeddings"),
    Row("embedding", "type_embedding", "embeddings.token_type_embeddings"),
    Row("norm", "embedding_norm", "embeddings.LayerNorm"),
)

XLM_ROBERTA = Table(
    prefix="roberta.",
    ignored=(
        "pooler.",
        "lm_head.",
        "classifier.",
        "qa_outputs.",
        "embeddings.position_ids",
        "embeddings.token_type_ids",
    ),
    outer=BERT_EMBEDDINGS,
    layers=(Layers("encoder/layers/", "encoder.layer.{}.", BERT_LAYER),),
)

VIT = Table(
    prefix="vit.",
    ignored=(
        "pooler.",
        "classifier.",
        "decoder.",
        "embeddings.mask_token",
        "embeddings.position_ids",
    ),
    outer=(
        Row("array", "class_token", "embeddings.cls_token"),
        Row("array", "position_embedding", "embeddings.position_embeddings"),
        Row("patches", "patch_embedding", "embeddings.patch_embeddings.projection"),
        Row("norm", "final_norm", "layernorm"),
    ),
    layers=(
        Layers(
            "encoder/layers/",
            "encoder.layer.{}.",
            module="layers.{}.",
            rows=(
                Row("norm", "self_attention_norm", "layernorm_before"),
                Row(
                    "dense", "self_attention/query", "attention.attention.query", "attention.q_proj"
                ),
                Row("dense", "self_attention/key", "attention.attention.key", "attention.k_proj"),
                Row(
                    "dense", "self_attention/value", "attention.attention.value", "attention.v_proj"
                ),
                Row("dense", "self_attention/out", "attention.output.dense", "attention.o_proj"),
                Row("norm", "mlp_norm", "layernorm_after"),
                Row("dense", "mlp_in", "intermediate.dense", "mlp.fc1"),
                Row("dense", "mlp_out", "output.dense", "mlp.fc2"),
            ),
        ),
    ),
)


def _conv_to_dense(x: np.ndarray) -> np.ndarray:
    """`[out, 3, patch, patch]` to `[patch * patch * 3, out]`, in the order of `to_patches`."""
    return x.transpose(2, 3, 1, 0).reshape(-1, x.shape[0])


def _dense_to_conv(x: np.ndarray) -> np.ndarray:
    patch = math.isqrt(x.shape[0] // 3)
    return x.reshape(patch, patch, 3, -1).transpose(3, 2, 0, 1)


class Leaf(NamedTuple):
    """One tensor of a module: how its name ends on both sides, and the changes of its axes."""

    torch: str
    ours: str
    to_flax: Callable[[np.ndarray], np.ndarray] = np.asarray
    to_torch: Callable[[np.ndarray], np.ndarray] = np.asarray


LEAVES = {
    "dense": (Leaf(".weight", "/kernel", np.transpose, np.transpose), Leaf(".bias", "/bias")),
    "patches": (Leaf(".weight", "/kernel", _conv_to_dense, _dense_to_conv), Leaf(".bias", "/bias")),
    "kernel": (Leaf(".weight", "/kernel", np.transpose, np.transpose),),
    "norm": (Leaf(".weight", "/scale"), Leaf(".bias", "/bias")),
    "embedding": (Leaf(".weight", "/embedding"),),
    "array": (Leaf("", ""),),
    "positions": (Leaf(".weight", "", lambda x: x[None], lambda x: x[0]),),
    "token": (Leaf("", "", lambda x: x[None, None], lambda x: x[0, 0]),),
    "patch_kernel": (Leaf(".weight", "/kernel", _conv_to_dense, _dense_to_conv),),
}
"""What tensors a module of each kind holds."""
