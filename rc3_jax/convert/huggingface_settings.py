"""Settings of our towers from the `config.json` of Hugging Face models."""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Collection, Mapping
from typing import Any

from rc3_jax.config import ConfigError
from rc3_jax.convert.huggingface_names import ACTIVATIONS, FAMILIES, Family
from rc3_jax.convert.torch_file import read_json
from rc3_jax.models.text import EPSILON
from rc3_jax.models.towers import STYLES

CONFIG = "config.json"
MOST_PATCHES = 128
"""A side; larger grids are of broken files, and their tables would fill the memory."""


class ModelConfig:
    """Settings of a `config.json`; `problems` collects what cannot be.

    Attributes:
      path: of the file, for messages.
      values: the settings, with defaults.
    """

    def __init__(self, path: pathlib.Path, values: Mapping[str, Any]):
        self.path = path
        self.values = values
        self.problems: list[str] = []

    def number(self, key: str, most: int = 10**7) -> int:
        """A whole number above 0 and up to `most`; 1 where it is none."""
        value = self.values.get(key)
        if isinstance(value, int) and not isinstance(value, bool) and 0 < value <= most:
            return value
        self.problems.append(f"{key}={value!r}, must be a whole number from 1 to {most}")
        return 1

    def real(self, key: str) -> float:
        """A number from 0 on; 0 where it is none."""
        value = self.values.get(key)
        if is_number(value) and value >= 0:
            return float(value)
        self.problems.append(f"{key}={value!r}, must be a number from 0 on")
        return 0.0

    def side(self, key: str) -> int:
        """The side of a square, which may be there as two numbers; 1 where it is none."""
        value = self.values.get(key)
        if isinstance(value, list):
            if len(value) != 2 or value[0] != value[1]:
                self.problems.append(f"{key}={value!r}, must be square")
                return 1
            self.values = {**self.values, key: value[0]}
        return self.number(key)

    def check(self, required: Mapping[str, Any]) -> None:
        """Notes settings with other values than the required ones; they may be missing."""
        for key, needed in required.items():
            if (value := self.values.get(key, needed)) != needed:
                self.problems.append(f"{key}={value!r}, must be {needed!r}")

    def raise_problems(self) -> None:
        """Raises ConfigError with all problems, if there are any."""
        if self.problems:
            what = "; ".join(self.problems)
            raise ConfigError(f"{self.path} is of no model that a tower can be: {what}")


def model_config(folder: pathlib.Path, part: str) -> tuple[Family, ModelConfig]:
    """The family of a folder's model, and the settings of its part `text` or `patch`.

    Raises:
      ConfigError: for a model that has no such part.
      TensorFileError: for a missing or broken file.
    """
    path = folder / CONFIG
    values = read_json(path)
    name = values.get("model_type")
    family = FAMILIES.get(name) if isinstance(name, str) else None
    if family is None or family.part != part:
        known = ", ".join(key for key, family in FAMILIES.items() if family.part == part)
        raise ConfigError(f"{path}: model_type={name!r} has no {part} tower; use one of {known}")
    if name != family.saved_type:
        # A model of images and texts; files of 2021 have the settings of their parts twice.
        parts = [values.get(key) or {} for key in ("vision_config", "vision_config_dict")]
        if not all(isinstance(part, dict) for part in parts):
            raise ConfigError(f"{path}: vision_config must be an object")
        values = parts[0] | parts[1]
    return family, ModelConfig(path, {**family.defaults, **values})


def text_settings(config: ModelConfig) -> dict[str, Any]:
    """For `config.model.text`; what cannot be is in `config.problems`."""
    settings = _sizes(config) | dict(max_positions=config.number("max_position_embeddings"))
    _activation(config, ("gelu",))
    return settings | dict(epsilon=_unless(config.real("layer_norm_eps"), EPSILON))


def patch_settings(config: ModelConfig, family: Family, notes: list[str]) -> dict[str, Any]:
    """For `config.model.patch`; what cannot be is in `config.problems`."""
    size, patch = config.side("image_size"), config.side("patch_size")
    if size < patch:
        config.problems.append(f"patch_size={patch} is larger than image_size={size}")
    elif size // patch > MOST_PATCHES:
        config.problems.append(
            f"image_size={size} has {size // patch} patches a side, more than {MOST_PATCHES}"
        )
    elif size % patch:
        notes.append(
            f"image_size {size} is no multiple of the patch, {patch}: images of "
            f"{size - size % patch} pixels are taken, as the convolution leaves the rest out"
        )
    own = STYLES[family.type]
    settings = dict(type=family.type, image_size=size - size % patch, patch=patch) | _sizes(config)
    settings["epsilon"] = _unless(config.real("layer_norm_eps"), own.epsilon)
    settings["activation"] = _unless(_activation(config, ACTIVATIONS.values()), own.activation)
    if family.type == "beit":
        settings["drop_path"] = config.real("drop_path_rate")
    return settings


def _sizes(config: ModelConfig) -> dict[str, int]:
    sizes = dict(
        width=config.number("hidden_size"),
        depth=config.number("num_hidden_layers", 1000),
        heads=config.number("num_attention_heads"),
        mlp_width=config.number("intermediate_size"),
    )
    if sizes["width"] % sizes["heads"]:
        config.problems.append(
            f"hidden_size={sizes['width']} is not divisible by num_attention_heads={sizes['heads']}"
        )
    return sizes


def _activation(config: ModelConfig, known: Collection[str]) -> str | None:
    """Our name of `hidden_act`."""
    name = config.values.get("hidden_act")
    found = ACTIVATIONS.get(name) if isinstance(name, str) else None
    if found not in known:
        names = ", ".join(theirs for theirs, ours in ACTIVATIONS.items() if ours in known)
        config.problems.append(f"hidden_act={name!r}, must be one of {names}")
    return found


def _unless(value: Any, own: Any) -> Any:
    """None for the tower's own value: that is how a setting says so."""
    return None if value == own else value


def is_number(value: Any) -> bool:
    """Whether a value of JSON is a number, and none that JSON only seems to have, such as NaN."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and abs(value) <= sys.float_info.max
