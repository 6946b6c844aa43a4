"""What a run starts from: the folder that `config.init` names."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import ml_collections
from flax.traverse_util import flatten_dict

from rc3_jax.config import ConfigError, stored_settings
from rc3_jax.data.tokenizer import FILE_NAME, Tokenizer, load_tokenizer
from rc3_jax.models.text import text_epsilon
from rc3_jax.models.towers import STYLES
from rc3_jax.training.checkpoint import load_params, stored_shapes

FREE = ("dtype", "remat", "unroll", "dropout", "patch.drop_path")
"""Settings that do not change what parameters mean."""


def load_start(config: ml_collections.ConfigDict, abstract: dict[str, Any]) -> dict[str, Any]:
    """The parameters that the folder `config.init` gives, laid out as `abstract` says.

    A folder that was made of pre-trained towers says so and lacks the other parts; any other must
    hold all of them.

    Args:
      abstract: the model's parameters as `jax.ShapeDtypeStruct` with shardings.

    Raises:
      ConfigError: if the folder holds no parameters, or those of another model.
    """
    folder = pathlib.Path(config.init)
    parts = start_parts(folder)
    unknown = set(parts or ()) - abstract.keys()
    if unknown:
        raise ConfigError(
            f"{folder} holds {', '.join(sorted(unknown))}, which a model of {config.system} does "
            "not have; convert the towers for it with --system"
        )
    wanted = abstract if parts is None else {part: abstract[part] for part in parts}
    given = load_params(folder, wanted)
    check_init(config)
    return given


def start_parts(folder: pathlib.Path) -> list[str] | None:
    """The parts that a folder of pre-trained towers holds; None where it is of a whole model."""
    parts = _settings(folder).get("parts")
    return None if parts is None else sorted({path.split("/")[0] for path in stored_shapes(folder)})


def start_settings(config: ml_collections.ConfigDict, folder: str) -> None:
    """Sets `config.init`, and the model's sizes and the vocabulary to those of the folder.

    Raises:
      ConfigError: if it has no settings, those of another system, or some that no model has.
    """
    path = pathlib.Path(folder)
    settings = _settings(path)
    if "model" not in settings:
        raise ConfigError(f"{path} has no config.json of a model; name one that convert.py made")
    if settings.get("system", config.system) != config.system:
        raise ConfigError(
            f"{path} is of {settings['system']}; this configuration is of {config.system}"
        )
    config.init = folder
    set_sizes(config.model, settings["model"], path)
    if (path / FILE_NAME).is_file():
        config.data.tokenizer.path = str(path / FILE_NAME)


def set_sizes(
    model: ml_collections.ConfigDict, stored: Mapping[str, Any], folder: pathlib.Path
) -> None:
    """Sets `config.model` to what is stored of it; what is not stored stays as it is.

    Args:
      folder: where it is stored, for messages.

    Raises:
      ConfigError: for settings that the model does not have, or of other types.
    """
    if unknown := stored.keys() - model.keys():
        raise ConfigError(f"{folder}: a model has no settings {', '.join(sorted(unknown))}")
    try:
        for name, value in stored.items():
            own = model[name]
            if not isinstance(value, dict):
                model[name] = value
            elif value.get("type") == own.get("type"):
                own.update(value)
            else:  # towers of two types have different settings
                model[name] = ml_collections.ConfigDict(value)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{folder}: model.{name} cannot be {value!r}: {error}") from error


def check_vocabulary(folder: pathlib.Path, tokenizer: Tokenizer) -> None:
    """Raises ConfigError unless the vocabulary stored in the folder is that of the run."""
    file = folder / FILE_NAME
    if not file.is_file():
        raise ConfigError(f"{folder} has no {FILE_NAME}, which tells that it reads the run's ids")
    if load_tokenizer(str(file), tokenizer.max_length).to_json() != tokenizer.to_json():
        raise ConfigError(
            f"{file} is not the vocabulary of the run; set data.tokenizer.path to it, or convert "
            "both from the same vocabulary and corpus"
        )


def check_init(config: ml_collections.ConfigDict) -> None:
    """Raises ConfigError if `config.init` holds the weights of a model that computes otherwise.

    Shapes do not tell of the number of heads, of positions, of an epsilon.
    """
    stored = _settings(pathlib.Path(config.init))
    ours, theirs = map(_computed, (config.model.to_dict(), stored.get("model", {})))
    names = [name for name in ours if name not in FREE and name in theirs]
    differing = [
        f"model.{name} is {ours[name]}, there {theirs[name]}"
        for name in names
        if ours[name] != theirs[name]
    ]
    if differing:
        raise ConfigError(f"{config.init} holds another model: {'; '.join(differing)}")


def _computed(model: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by flat name, with what the towers compute with where it is not set."""
    parts = json.loads(json.dumps(model))
    text, patch = (parts.get(name) for name in ("text", "patch"))
    if isinstance(text, dict):
        text["epsilon"] = text_epsilon(text)
    if isinstance(patch, dict) and (own := STYLES.get(patch.get("type", "vit"))):
        patch |= {k: value for k, value in own._asdict().items() if patch.get(k) is None}
    return flatten_dict(parts, sep=".")


def _settings(folder: pathlib.Path) -> dict[str, Any]:
    """`config.json` of the folder; empty where it has none."""
    return stored_settings(folder) if (folder / "config.json").is_file() else {}
