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


class Preprocessor(Settings):
    """What an image processor of transformers does to the numbers of pixels, 0 to 255.

    They are multiplied by a factor, lowered by 1 where there is an offset, and normalised.
    """

    do_rescale: bool | None = True
    rescale_factor: _Positive | None = 1 / 255
    rescale_offset: bool | None = False
    offset: bool | None = False
    do_normalize: bool | None = True
    image_mean: _Channels | None = None
    image_std: tuple[_Positive, _Positive, _Positive] | None = None

    def normalisation(self) -> dict[str, tuple[float, ...]]:
        """`image_mean` and `image_std` for pixels in [0, 1] that give the same.

        Raises:
          ValueError: if the statistics are not of the numbers that the factor gives.
        """
        scaled = self.do_rescale is not False
        factor = (self.rescale_factor or 1 / 255) if scaled else 1.0
        low = -1.0 if scaled and (self.rescale_offset or self.offset) else 0.0
        width, unit = 255 * factor, abs(255 * factor - 1) < 1e-3 and not low
        given = {"image_mean": self.image_mean, "image_std": self.image_std}
        if self.do_normalize is False:
            given = {"image_mean": (0.0,) * 3, "image_std": (1.0,) * 3}
        elif missing := [name for name, value in given.items() if value is None and not unit]:
            raise ValueError(
                f"{missing[0]} is missing, and do_rescale={self.do_rescale} with "
                f"rescale_factor={self.rescale_factor} gives pixels of {low:g} to "
                f"{low + width:g}; write it there"
            )
        mean, std = given["image_mean"], given["image_std"]
        identity = mean == (0.0,) * 3 and std == (1.0,) * 3
        wrong = [f"image_mean={x}" for x in mean or () if not low <= x <= low + width]
        wrong += [f"image_std={x}" for x in std or () if not width / 50 <= x <= width]
        if wrong and not identity:
            raise ValueError(
                f"{wrong[0]} is no statistic of pixels of {low:g} to {low + width:g}, which "
                f"do_rescale={self.do_rescale} and rescale_factor={self.rescale_factor} give; "
                "correct the one or the other"
            )
        found = {}
        if mean is not None:
            found["image_mean"] = mean if unit else tuple((x - low) / width for x in mean)
        if std is not None:
            found["image_std"] = std if unit else tuple(x / width for x in std)
        return found


_Positive = Annotated[float, Field(allow_inf_nan=False, gt=0)]
_Channel = Annotated[float, Field(allow_inf_nan=False)]
_Channels = tuple[_Channel, _Channel, _Channel]


def image_normalisation(
    folder: pathlib.Path, image_size: int, notes: list[str]
) -> dict[str, tuple[float, ...]]:
    """`image_mean` and `image_std` of pixels in [0, 1], as far as the folder has them.

    Args:
      image_size: pixels a side of the images that the checkpoint takes.
      notes: gets what the image processor does otherwise than we do.

    Raises:
      ConfigError: if they are not three numbers each, or contradict the factor of the pixels.
      TensorFileError: for a broken file.
    """
    path = folder / "preprocessor_config.json"
    values: Any = read_json(path) if path.is_file() else None
    if values is None and (path := folder / "processor_config.json").is_file():
        values = read_json(path).get("image_processor")
    if not isinstance(values, dict):
        return {}
    known = {name: values[name] for name in Preprocessor.model_fields if name in values}
    with add_source_to_errors(path):
        found = Preprocessor.parse(known).normalisation()
    size = values.get("size")
    sides = list(size.values()) if isinstance(size, dict) else size
    sides = sides if isinstance(sides, list) else [sides]
    is_other = size is not None and any(side != image_size for side in sides)
    differing = [f"size={size}"] if is_other else []
    for name, ours in (("resample", 3), ("do_center_crop", False)):
        if values.get(name, ours) not in (ours, None):
            differing.append(f"{name}={values[name]}")
    if isinstance(size, dict) and "shortest_edge" in size:
        differing.append(f"size={size}")
    if differing:
        notes.append(
            f"its images were prepared with {', '.join(dict.fromkeys(differing))}; ours are squashed "
            f"to {image_size} x {image_size} pixels by bicubic interpolation"
        )
    return found


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
