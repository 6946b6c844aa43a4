"""Where a Hugging Face model's files are, and what they say beside the tensors."""

from __future__ import annotations

import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import huggingface_hub

from rc3_jax.config import ConfigError
from rc3_jax.convert.huggingface_settings import CONFIG, is_number
from rc3_jax.convert.torch_file import SUFFIXES, read_json

MODULES = "modules.json"
"""Lists the modules of a sentence encoder (sentence-transformers)."""
PATTERNS = ("*.json", "*.safetensors", "*.model", "*.txt")
PICKLES = ("pytorch_model*.bin",)
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
    path = pathlib.Path(source).expanduser()
    if path.exists():
        return path
    name = str(source)
    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name) or name.endswith(SUFFIXES):
        raise ConfigError(f"{name}: no such file or folder, and no name of a Hugging Face model")
    patterns = [*PATTERNS, *(PICKLES if allow_pickle else ())]
    try:
        return pathlib.Path(
            huggingface_hub.snapshot_download(
                name, allow_patterns=patterns, ignore_patterns=["onnx/*", "openvino/*"]
            )
        )
    except (OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(
            f"{name} is no local folder, and the Hugging Face hub did not give it "
            f"({type(error).__name__}: {reason}); check the name and the "
            "connection, or name a folder that holds the model"
        ) from error


def sentence_encoder(folder: pathlib.Path) -> tuple[pathlib.Path, str | None]:
    """The folder of a sentence encoder's transformer, and how its vector is read: mean or cls.

    A folder without `modules.json` is a transformer itself, and the vector None.

    Raises:
      ConfigError: if the vector is computed by anything else.
      TensorFileError: for broken files.
    """
    path = folder / MODULES
    if not path.is_file():
        return folder, None
    transformer, pooling = None, None
    for module in _modules(path):
        kind, place = module["type"].rpartition(".")[2], _within(path, module["path"])
        if kind == "Transformer" and transformer is None:
            transformer = place
        elif kind == "Pooling" and transformer is not None and pooling is None:
            pooling = _pooling(place / CONFIG)
        elif kind != "Normalize":
            raise ConfigError(
                f"{path} has the module {module['type']}, which no tower computes; use an encoder "
                "of Transformer, Pooling and Normalize alone"
            )
    if transformer is None or pooling is None:
        raise ConfigError(f"{path} must name a Transformer, and a Pooling after it")
    return transformer, pooling


def image_normalisation(folder: pathlib.Path) -> dict[str, tuple[float, ...]]:
    """`image_mean` and `image_std` of pixels in [0, 1], of a folder that tells them; else empty.

    Raises:
      ConfigError: if they are not three numbers each.
      TensorFileError: for a broken file.
    """
    path = folder / "preprocessor_config.json"
    settings: Any = read_json(path) if path.is_file() else None
    if settings is None and (path := folder / "processor_config.json").is_file():
        settings = read_json(path).get("image_processor")
    if not isinstance(settings, Mapping):
        return {}
    if settings.get("do_normalize") is False:
        return dict(image_mean=(0.0,) * 3, image_std=(1.0,) * 3)
    found = {name: settings[name] for name in ("image_mean", "image_std") if name in settings}
    for name, values in found.items():
        if not isinstance(values, list) or len(values) != 3 or not all(map(is_number, values)):
            raise ConfigError(f"{path}: {name}={values!r}, must be three numbers")
        if name == "image_std" and min(values) <= 0:
            raise ConfigError(
                f"{path}: {name}={values!r}, must be above 0: pixels are divided by it"
            )
    return {name: tuple(map(float, values)) for name, values in found.items()}


def _modules(path: pathlib.Path) -> list[dict[str, str]]:
    try:
        modules = json.loads(path.read_text(encoding="utf-8"))
        return [{key: str(module[key]) for key in ("type", "path")} for module in modules]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(
            f"{path} must list modules with a type and a path each: {error!r}"
        ) from error


def _within(path: pathlib.Path, place: str) -> pathlib.Path:
    """A folder that a file names, inside of the file's own."""
    pure = pathlib.PurePosixPath(place)
    if pure.is_absolute() or ".." in pure.parts or set(place) & set("\\:"):
        raise ConfigError(f"{path}: {place!r} leads out of the folder")
    return path.parent / pure


def _pooling(path: pathlib.Path) -> str:
    """How token states become one vector."""
    settings = read_json(path)
    prefix, suffix = "pooling_mode_", "_tokens"
    named = settings.get("pooling_mode")
    if named is None:
        found = [key for key, on in settings.items() if key.startswith(prefix) and on is True]
        modes = [key.removeprefix(prefix).removesuffix(suffix) for key in found]
        modes = [mode.removesuffix("_token") for mode in modes]
    else:
        modes = named if isinstance(named, list) else [named]
    if len(modes) != 1 or modes[0] not in POOLINGS:
        raise ConfigError(
            f"{path}: the pooling is {' and '.join(map(str, modes)) or 'missing'}; use an encoder "
            f"whose vector is one of {', '.join(POOLINGS)}"
        )
    return modes[0]
