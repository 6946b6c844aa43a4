"""The model that fine-tuning starts from: of a run, converted, or fine-tuned before."""

from __future__ import annotations

import pathlib
from typing import Any, NamedTuple

import ml_collections
from flax.traverse_util import unflatten_dict

from rc3_jax.config import ConfigError, stored_settings
from rc3_jax.data.text import clean_caption
from rc3_jax.data.tokenizer import FILE_NAME, Tokenizer, from_json, load_tokenizer
from rc3_jax.systems import SYSTEMS
from rc3_jax.training.checkpoint import load_some, stored_shapes


class Pretrained(NamedTuple):
    """A model and its vocabulary.

    Attributes:
      system: `rc3` or `cclm`.
      model: `config.model`.
      params: nested dict of arrays.
      task: that it was fine-tuned for, whose head is among the parameters; None before.
      classes: of that task.
    """

    system: str
    model: ml_collections.ConfigDict
    tokenizer: Tokenizer
    params: dict[str, Any]
    task: str | None
    classes: tuple[str, ...]


def load_pretrained(folder: pathlib.Path, max_length: int) -> Pretrained:
    """Reads the parameters, settings and vocabulary of a folder.

    Args:
      max_length: tokens of a text, cut down to what the model's table of positions holds.

    Raises:
      ConfigError, DataError: if anything is missing or cannot be read.
    """
    stored, file = stored_settings(folder), folder / "config.json"
    try:
        system, model = stored["system"], ml_collections.ConfigDict(stored["model"])
        room = model.text.max_positions - model.text.get("position_offset", 2)
    except (KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{file} cannot be read as settings of a model ({error!r}); name the folder of a run, "
            "or one that launch/convert.py or launch/finetune.py made"
        ) from error
    if system not in SYSTEMS:
        raise ConfigError(f"{file} is of system {system!r}; one of {', '.join(SYSTEMS)} can be")
    if parts := stored.get("parts"):
        raise ConfigError(f"{folder} holds {', '.join(parts)} alone; train a model from it first")
    if not (folder / FILE_NAME).is_file():
        raise ConfigError(f"{folder} has no {FILE_NAME}; copy there the vocabulary of the weights")
    tokenizer = load_tokenizer(str(folder / FILE_NAME), min(max_length, room))
    data = stored.get("data", {})
    if data.get("clean_captions"):
        words = data["max_words"]
        length, text = tokenizer.max_length, tokenizer.to_json()
        tokenizer = from_json(text, length, lambda caption: clean_caption(caption, words))
    params = unflatten_dict(load_some(folder, list(stored_shapes(folder))), sep="/")
    classes = tuple(stored.get("classes", ()))
    return Pretrained(system, model, tokenizer, params, stored.get("task"), classes)
