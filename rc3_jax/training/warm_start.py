"""What a run starts from: the folder that `config.init` names."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

from rc3_jax.data.tokenizer import FILE_NAME, Tokenizer, load_tokenizer
from rc3_jax.paths import as_path
from rc3_jax.settings import ConfigError
from rc3_jax.stored_config import CONFIG_FILE, read_config
from rc3_jax.training.checkpoint import load_params


def load_warm_start(config: Any, abstract: Mapping[str, Any]) -> dict[str, Any]:
    """Reads the parameters that the folder `config.init` offers.

    A folder of converted pre-trained towers lacks the other parts, which are then drawn at random;
    any other folder must hold all of them.

    Args:
      abstract: the model's parameters as `jax.ShapeDtypeStruct` with shardings.

    Raises:
      ConfigError: if the folder holds no parameters, or those of another model.
    """
    folder = as_path(config.init, "init")
    parts = warm_start_parts(folder)
    if unknown := set(parts or ()) - abstract.keys():
        raise ConfigError(
            f"{folder} holds {', '.join(sorted(unknown))}, which a model of {config.system} does "
            "not have; convert the towers for it with --system"
        )
    wanted = abstract if parts is None else {part: abstract[part] for part in parts}
    return load_params(folder, wanted)


def warm_start_parts(folder: pathlib.Path) -> list[str] | None:
    """The parts that a folder of pre-trained towers holds; None where it holds a whole model."""
    if not (folder / CONFIG_FILE).is_file():
        return None
    parts = read_config(folder).get("parts")
    return None if parts is None else list(parts)


def check_vocabulary(folder: pathlib.Path, tokenizer: Tokenizer) -> None:
    """Raises ConfigError unless the vocabulary stored in the folder is that of the run."""
    file = folder / FILE_NAME
    if not file.is_file():
        raise ConfigError(
            f"{folder} has no {FILE_NAME}, so its token ids may not be the run's; copy there the "
            "vocabulary of the weights"
        )
    if load_tokenizer(str(file), tokenizer.max_length).to_json() != tokenizer.to_json():
        raise ConfigError(
            f"{file} is not the vocabulary of the run; set data.tokenizer.path to it, or convert "
            "both from the same vocabulary and corpus"
        )
