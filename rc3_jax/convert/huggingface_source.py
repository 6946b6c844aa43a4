"""Where a Hugging Face model's files are, and what they say beside the tensors."""

from __future__ import annotations

import json
import pathlib
import re
from typing import Annotated, Any

import huggingface_hub
from pydantic import Field

from rc3_jax.convert.output import add_source_to_errors
from rc3_jax.convert.torch_file import SUFFIXES, read_json
from rc3_jax.settings import ConfigError, Settings

CONFIG = "config.json"
MODULES = "modules.json"
"""Lists the modules of a sentence encoder (sentence-transformers)."""
PATTERNS = ["*.json", "*.safetensors", "*.model", "*.txt"]
PICKLES = ["pytorch_model*.bin"]
POOLINGS = ("mean", "cls")


def locate(source: str | pathlib.Path, allow_pickle: bool = False) -> pathlib.Path:
    """A local folder or file as it is, or the folder of a model of the Hugging Face hub.

    Args:
      source: a path, or a name such as FacebookAI/xlm-roberta-base, whose files are downloaded
        unless they are in the local cache.
      allow_pickle: downloads pickled tensors too.

    Raises:
      ConfigError: if it is neither, or cannot be downloaded.
    """
    path, name = pathlib.Path(source).expanduser(), str(source)
    if path.exists():
        return path
    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name) or name.endswith(SUFFIXES):
        raise ConfigError(f"{name}: no such file or folder, and no name of a Hugging Face model")
    patterns = PATTERNS + PICKLES * allow_pickle
    try:
        folder = huggingface_hub.snapshot_download(
            name, allow_patterns=patterns, ignore_patterns=["onnx/*", "openvino/*"]
        )
    except (OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(
            f"{name} is not a local folder, and the Hugging Face hub did not provide it "
            f"({type(error).__name__}: {reason}); check the name and the connection, or name a "
            "folder that holds the model"
        ) from error
    return pathlib.Path(folder)


def sentence_encoder(folder: pathlib.Path) -> tuple[pathlib.Path, str | None]:
    """The folder of a sentence encoder's transformer, and how its vector is read: mean or cls.

    A folder without `modules.json` is a transformer itself, and the pooling is None.

    Raises:
      ConfigError: for a broken list, and for other modules or poolings.
      TensorFileError: for a broken file.
    """
    path = folder / MODULES
    if not path.is_file():
        return folder, None
    try:
        modules = json.loads(path.read_text(encoding="utf-8"))
        places = [(str(x["type"]).rpartition(".")[2], str(x["path"])) for x in modules]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(
            f"{path} must list modules with a type and a path each: {error!r}"
        ) from error
    kinds = [kind for kind, _ in places if kind != "Normalize"]
    if kinds != ["Transformer", "Pooling"]:
        raise ConfigError(
            f"{path} has the modules {', '.join(kinds)}; use an encoder that is a Transformer and a "
            "Pooling, with or without Normalize"
        )
    transformer, pooling = (_within(path, place) for kind, place in places if kind != "Normalize")
    return transformer, _pooling(pooling / CONFIG)


class Normalisation(Settings):
    """How pixels in [0, 1] are normalised; None where a file does not say."""

    image_mean: tuple[_Channel, _Channel, _Channel] | None = None
    image_std: tuple[_Positive, _Positive, _Positive] | None = None


_Channel = Annotated[float, Field(allow_inf_nan=False)]
_Positive = Annotated[float, Field(allow_inf_nan=False, gt=0)]


def image_normalisation(folder: pathlib.Path) -> dict[str, tuple[float, ...]]:
    """`image_mean` and `image_std` of pixels in [0, 1], as far as the folder has them.

    Raises:
      ConfigError: if they are not three numbers each.
      TensorFileError: for a broken file.
    """
    path = folder / "preprocessor_config.json"
    values: Any = read_json(path) if path.is_file() else None
    if values is None and (path := folder / "processor_config.json").is_file():
        values = read_json(path).get("image_processor")
    if not isinstance(values, dict):
        return {}
    if values.get("do_normalize") is False:
        return dict(image_mean=(0.0,) * 3, image_std=(1.0,) * 3)
    known = {name: values[name] for name in Normalisation.model_fields if name in values}
    with add_source_to_errors(path):
        return Normalisation.parse(known).model_dump(exclude_none=True)


def _within(path: pathlib.Path, place: str) -> pathlib.Path:
    """A folder that a file names, which must be inside the file's own."""
    pure = pathlib.PurePosixPath(place)
    if pure.is_absolute() or ".." in pure.parts or set(place) & set("\\:"):
        raise ConfigError(f"{path}: {place!r} leads out of the folder")
    return path.parent / pure


def _pooling(path: pathlib.Path) -> str:
    """How token states become one vector, from the settings of a Pooling module."""
    settings = read_json(path)
    modes = settings.get("pooling_mode")
    if modes is None:
        found = [re.fullmatch(r"pooling_mode_(\w+?)_tokens?", key) for key in settings]
        modes = [match[1] for match in found if match and settings[match[0]] is True]
    modes = modes if isinstance(modes, list) else [modes]
    if len(modes) != 1 or modes[0] not in POOLINGS:
        raise ConfigError(
            f"{path}: pooling_mode={modes}; use an encoder with one of {', '.join(POOLINGS)}"
        )
    return modes[0]
