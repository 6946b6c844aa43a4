"""A trained model back from its folder: of a run, of converted weights, or of a fine-tuning."""

from __future__ import annotations

import functools
import hashlib
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh

from rc3_jax.config import PretrainSettings, model_settings, settings_class
from rc3_jax.data.text import clean_caption
from rc3_jax.data.tokenizer import FILE_NAME, Tokenizer, from_json, load_tokenizer
from rc3_jax.models.base import PairModel, learned_scalars
from rc3_jax.settings import ConfigError, Settings
from rc3_jax.stored_config import CONFIG_FILE, read_config, stored_max_words
from rc3_jax.systems import SYSTEMS, abstract_params
from rc3_jax.training.checkpoint import check_finite, check_shapes, read_params, shapes_of


class LoadedModel(NamedTuple):
    """A model with its parameters and its vocabulary.

    Attributes:
      system: `rc3` or `cclm`.
      settings: the model's settings, `config.model`.
      params: nested dict of arrays in the host's memory.
      task: the task that it was fine-tuned for, whose head is among the parameters; None before.
      classes: those of that task.
      max_words: the number of words that cleaned captions keep; None where they stay as they are.
      finetuning: the settings of the fine-tuning; empty before.
      config: all settings of the run; None for converted and fine-tuned weights.
    """

    system: str
    settings: Any
    tokenizer: Tokenizer
    params: dict[str, Any]
    task: str | None = None
    classes: tuple[str, ...] = ()
    max_words: int | None = None
    finetuning: Mapping[str, Any] = {}
    config: PretrainSettings | None = None

    def build(self, mesh: Mesh | None = None) -> PairModel:
        """The pre-trained model as a module, for `apply({"params": params}, ...)`."""
        build, words = SYSTEMS[self.system].build, self.tokenizer.vocab_size
        return build(self.settings, words, mesh, **learned_scalars(self.params))

    def with_settings(self, **changes: Any) -> LoadedModel:
        """The same model with other settings of computation, such as `dropout` or `remat`."""
        settings: Settings = self.settings
        return self._replace(settings=settings.model_copy(update=changes))


def load_model(
    folder: pathlib.Path,
    max_length: int | None = None,
    max_words: int | None = None,
    step: int | None = None,
) -> LoadedModel:
    """Reads settings, vocabulary and parameters of a folder.

    Args:
      folder: of a run, which has saved a checkpoint, of converted weights, or of a fine-tuned model.
      max_length: tokens of a text, frame included; by default those of the run, at most what the
        model's table of positions holds.
      max_words: words that cleaned texts keep; 0 leaves texts as they are, None cleans them as in
        the model's training.
      step: the checkpoint of a run; the newest by default.

    Raises:
      ConfigError, DataError: if anything is missing or cannot be read, or the parameters are not
        finite or not those of the settings.
    """
    stored, file = read_config(folder), folder / CONFIG_FILE
    if "model" not in stored or "system" not in stored:
        raise ConfigError(
            f"{file} has no settings of a model; name the folder of a run, or one that "
            "launch/convert.py or launch/finetune.py made"
        )
    if parts := stored.get("parts"):
        raise ConfigError(f"{folder} holds {', '.join(parts)} alone; train a model from it first")
    system = stored["system"]
    settings = model_settings(system, stored["model"], folder)
    config = None
    if "data" in stored:
        config = settings_class(stored).parse(stored, str(file))
        max_length = max_length or config.data.max_length
    words = stored_max_words(stored) if max_words is None else max_words or None
    room = settings.text.room
    tokenizer = _tokenizer(folder, min(max_length or room, room), words)
    params = unflatten_dict(read_params(folder, step=step), sep="/")
    check_finite(folder, params)
    classes = tuple(stored.get("classes") or ())
    if not classes:  # tasks with classes have heads of their own, which they check themselves
        wanted = abstract_params(system, settings, tokenizer.vocab_size, **learned_scalars(params))
        check_shapes(folder, shapes_of(params), shapes_of(wanted))
    return LoadedModel(
        system,
        settings,
        tokenizer,
        params,
        stored.get("task"),
        classes,
        words,
        stored.get("finetuning") or {},
        config,
    )


def _tokenizer(folder: pathlib.Path, length: int, max_words: int | None) -> Tokenizer:
    """The vocabulary of a folder, for texts of so many tokens."""
    if not (folder / FILE_NAME).is_file():
        raise ConfigError(f"{folder} has no {FILE_NAME}; copy there the vocabulary of the weights")
    tokenizer = load_tokenizer(str(folder / FILE_NAME), length)
    if max_words is None:
        return tokenizer
    clean = functools.partial(clean_caption, max_words=max_words)
    return from_json(tokenizer.to_json(), length, clean)


def params_checksum(params: Mapping[str, Any]) -> str:
    """SHA-256 of parameters: paths, shapes, types and values."""
    digest = hashlib.sha256()
    for path, value in sorted(flatten_dict(params, sep="/").items()):
        digest.update(f"{path} {value.shape} {value.dtype}".encode())
        digest.update(np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()
