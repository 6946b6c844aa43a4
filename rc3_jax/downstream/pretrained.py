"""The model that fine-tuning starts from: of a run, converted, or fine-tuned before."""

from __future__ import annotations

import hashlib
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import ml_collections
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from rc3_jax.config import ConfigError, stored_max_words, stored_settings
from rc3_jax.convert.output import reasons
from rc3_jax.data.text import clean_caption
from rc3_jax.data.tokenizer import FILE_NAME, Tokenizer, from_json, load_tokenizer
from rc3_jax.downstream.config import TASKS
from rc3_jax.systems import SYSTEMS, abstract_params
from rc3_jax.training.checkpoint import check_fit, load_some, shapes_of, stored_shapes


class Pretrained(NamedTuple):
    """A model and its vocabulary.

    Attributes:
      system: `rc3` or `cclm`.
      model: `config.model`.
      params: nested dict of arrays.
      task: that it was fine-tuned for, whose head is among the parameters; None before.
      classes: of that task.
      max_words: that cleaned captions have at most; None where they stay as they are.
      finetuning: settings that it was fine-tuned with; empty before.
    """

    system: str
    model: ml_collections.ConfigDict
    tokenizer: Tokenizer
    params: dict[str, Any]
    task: str | None
    classes: tuple[str, ...]
    max_words: int | None
    finetuning: Mapping[str, Any]


def load_pretrained(
    folder: pathlib.Path, max_length: int, max_words: int | None = None
) -> Pretrained:
    """Reads the parameters, settings and vocabulary of a folder.

    Args:
      max_length: tokens of a text, cut down to what the model's table of positions holds.
      max_words: that cleaned texts have at most; 0 leaves texts as they are, None cleans them as in
        the model's training.

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
    words = stored_max_words(stored) if max_words is None else max_words or None
    if words is not None:
        length, text = tokenizer.max_length, tokenizer.to_json()
        tokenizer = from_json(text, length, lambda caption: clean_caption(caption, words))
    shapes, task = stored_shapes(folder), stored.get("task")
    if task not in TASKS or TASKS[task].retrieval:  # other tasks have models of their own
        with reasons(file):
            wanted = abstract_params(system, model, tokenizer.vocab_size)
        check_fit(folder, shapes, shapes_of(wanted))
    params = unflatten_dict(load_some(folder, list(shapes)), sep="/")
    classes, tuned = tuple(stored.get("classes", ())), stored.get("finetuning", {})
    return Pretrained(system, model, tokenizer, params, task, classes, words, tuned)


def params_checksum(params: Mapping[str, Any]) -> str:
    """SHA-256 of parameters: paths, shapes, types and values."""
    digest = hashlib.sha256()
    for path, value in sorted(flatten_dict(params, sep="/").items()):
        digest.update(f"{path} {value.shape} {value.dtype}".encode())
        digest.update(np.ascontiguousarray(value).view(np.uint8))
    return digest.hexdigest()
