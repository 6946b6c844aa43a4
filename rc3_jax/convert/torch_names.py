"""Names and settings of an exported model, whose text and patch towers are those of transformers."""

from __future__ import annotations

from typing import Any

import ml_collections

from rc3_jax.data.tokenizer import PAD_ID
from rc3_jax.models.text import TextSettings
from rc3_jax.models.towers import visual_settings
from rc3_jax.param_map import ParamMap
from rc3_jax.settings import ConfigError

SAME = ParamMap({"": ""})


def exported_names(model: ml_collections.ConfigDict) -> ParamMap:
    """Our parameters against the tensors of the exported model; `model` is `config.model`."""
    patch = visual_settings(model.patch).hugging_face
    return (
        SAME
        | SAME.within("fusion/layers", "fusion.layers.{}")
        | SAME.within("roi/encoder/layers", "roi.encoder.layers.{}")
        | TextSettings.hugging_face.names.within("text", "text")
        | patch.names.within("patch", "patch")
    )


def exported_towers(model: ml_collections.ConfigDict, vocab_size: int) -> dict[str, Any]:
    """`RC3Config.towers`: settings of both towers, and how the patch tower's states are read.

    Raises:
      ConfigError: for a text tower that transformers would compute otherwise.
    """
    text, patch = TextSettings.parse(model.text, "model.text"), visual_settings(model.patch)
    if text.position_offset != PAD_ID + 1:
        raise ConfigError(
            f"model.text.position_offset={text.position_offset}: XLM-R of transformers numbers "
            f"positions from {PAD_ID + 1} on and computes something else"
        )
    dropout = dict(hidden_dropout_prob=model.dropout, attention_probs_dropout_prob=0.0)
    return {
        "text": text.hugging_face.config(text) | dropout | dict(vocab_size=vocab_size),
        # Towers with drop_path have no dropout.
        "patch": patch.hugging_face.config(patch) | ({} if "drop_path" in model.patch else dropout),
        "readout": dict(
            grid=patch.grid,
            last_norm=patch.hugging_face.last_norm,
            pooled_mean=patch.hugging_face.pooled_mean,
        ),
    }
