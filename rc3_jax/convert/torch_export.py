"""RC³ to a folder that PyTorch users load with nothing of this project installed, and back.

The folder holds `model.safetensors` (in shards beyond a size), `config.json`, the tokenizer, what
prepares texts and images, a model card, and the mirror of the model in PyTorch (`mirror/`).
"""

from __future__ import annotations

import json
import math
import pathlib
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

import ml_collections
import ml_dtypes
import numpy as np
from flax.traverse_util import unflatten_dict
from safetensors.numpy import save_file

from rc3_jax.config import ConfigError, check_choice, stored_max_words, stored_settings
from rc3_jax.convert.mirror_names import from_mirror, mirror_shapes, to_mirror
from rc3_jax.convert.model_card import CARD, model_card
from rc3_jax.convert.onnx_export import FOLDER as ONNX
from rc3_jax.convert.onnx_export import export_onnx
from rc3_jax.convert.output import (
    OWN_FILES,
    SETTINGS,
    check_target,
    model_settings,
    reasons,
    say,
    size_text,
    write_json,
    write_settings,
    written,
)
from rc3_jax.convert.torch_file import TensorFolder, check_floats, read_json
from rc3_jax.data.tokenizer import FILE_NAME as TOKENIZER
from rc3_jax.data.tokenizer import SPECIAL_TOKENS, load_tokenizer
from rc3_jax.systems import abstract_params
from rc3_jax.training.checkpoint import (
    check_fit,
    load_some,
    save_params,
    shapes_of,
    stored_shapes,
    stored_step,
)
from rc3_jax.training.start import start_parts

MIRROR = pathlib.Path(__file__).parent / "mirror"
MIRROR_FILES = tuple(sorted(path.name for path in MIRROR.glob("*_rc3.py")))
DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
PROCESSOR, TOKENIZER_SETTINGS = "processor_config.json", "tokenizer_config.json"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARD_BYTES = 5 * 10**9
MOST_LAYERS = 1000
WORDS = "text/word_embedding/embedding"

Shapes = dict[str, tuple[int, ...]]


def to_torch(
    source: pathlib.Path,
    target: pathlib.Path,
    *,
    step: int | None = None,
    dtype: str = "float32",
    shard_bytes: float = SHARD_BYTES,
    onnx: bool = False,
    licence: str | None = None,
    overwrite: bool = False,
) -> None:
    """Writes the folder from that of a run, or of converted parameters.

    The parameters pass through the host's memory a file at a time, however many devices they were
    saved from.

    Args:
      step: of the run's checkpoint; the newest by default.
      dtype: of the tensors, one of `DTYPES`.
      shard_bytes: weights beyond this size are divided into several files.
      onnx: writes the two encoders as ONNX files too, and compares them; see `export_onnx`.
      licence: identifier for the model card.

    Raises:
      ConfigError, DataError: with the reason; then nothing was written.
    """
    check_choice("dtype", dtype, DTYPES)
    check_target(target, overwrite, _names(target))
    step = stored_step(source, step)
    shapes = stored_shapes(source, step)
    model = model_settings(source, "rc3")
    if parts := start_parts(source):
        raise ConfigError(f"{source} holds {', '.join(parts)} alone; train a model from it first")
    tokenizer = source / TOKENIZER
    if not tokenizer.is_file():
        raise ConfigError(f"{tokenizer} is missing; copy there the vocabulary of the weights")
    vocab_size = shapes.get(WORDS, (0,))[0]
    with reasons(source):
        check_fit(source, shapes, shapes_of(abstract_params("rc3", model, vocab_size)))
    stored = stored_settings(source)
    max_length = _max_length(stored)
    pieces = load_tokenizer(str(tokenizer), max_length).vocab_size
    if pieces != vocab_size:
        raise ConfigError(
            f"{tokenizer} has {pieces} pieces and the word embeddings have {vocab_size} rows; copy "
            "there the vocabulary of the weights"
        )
    count = sum(map(math.prod, shapes.values()))
    size = count * DTYPES[dtype].itemsize
    say(f"{source}: {count:,} parameters, {size_text(size)} as {dtype}")
    with written(target, size) as folder:
        folder.mkdir()
        _write_weights(folder, source, step, shapes, DTYPES[dtype], shard_bytes)
        write_companions(folder, model, vocab_size, max_length, dtype, stored_max_words(stored))
        shutil.copy(tokenizer, folder / TOKENIZER)
        card = model_card(source, stored, count=count, dtype=dtype, step=step, licence=licence)
        (folder / CARD).write_text(card, encoding="utf-8")
        if onnx:
            for name, difference in export_onnx(folder).items():
                say(f"{name}: differs from PyTorch by {difference:.2g} at most")
    say(f"wrote {target}")


def from_torch(
    source: pathlib.Path,
    target: pathlib.Path,
    *,
    allow_pickle: bool = False,
    overwrite: bool = False,
) -> None:
    """Writes a folder of our parameters, for `config.init`, from one that `to_torch` wrote.

    It may have been trained on since, and saved by `save_pretrained`.

    Raises:
      ConfigError, TensorFileError: with the reason; then nothing was written.
    """
    check_target(target, overwrite, OWN_FILES)
    settings = _exported_settings(source)
    model = ml_collections.ConfigDict(settings["model"])
    tensors = TensorFolder(source, allow_pickle)
    with reasons(source):
        _check_depths(model)
        template = shapes_of(abstract_params("rc3", model, settings["vocab_size"]))
        expected = {}
        for path, shape in template.items():
            expected |= mirror_shapes(path, shape)
        check_fit(source, tensors.shapes(), expected)
    check_floats(source, tensors.tensors)
    say(f"{source}: {len(expected)} tensors")
    params = {
        path: from_mirror(path, shape, tensors.read).astype(np.float32, copy=False)
        for path, shape in template.items()
    }
    with written(target, sum(x.nbytes for x in params.values())) as folder:
        folder.mkdir()
        save_params(folder, unflatten_dict(params, sep="/"))
        if (source / TOKENIZER).is_file():
            shutil.copy(source / TOKENIZER, folder / TOKENIZER)
        names = ("model", "vocab_size", "max_length")
        kept = {name: settings[name] for name in names if name in settings}
        if (source / PROCESSOR).is_file():
            kept["max_words"] = read_json(source / PROCESSOR).get("max_words")
        write_settings(folder, {"system": "rc3"} | kept)
    say(f"wrote {target}")


def _write_weights(folder, source, step, shapes: Shapes, dtype: np.dtype, most: float) -> None:
    """The files of tensors, and where there are several their index."""
    shards = list(_shards(shapes, dtype.itemsize, most))
    weight_map, total = {}, 0
    for number, paths in enumerate(shards, 1):
        name = WEIGHTS if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        arrays = load_some(source, paths, step)
        tensors = {}
        for path in paths:
            for key, tensor in to_mirror(path, arrays.pop(path)):
                tensors[key] = tensor.astype(dtype, copy=False)
        save_file(tensors, folder / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, name)
        total += sum(tensor.nbytes for tensor in tensors.values())
        say(f"{name}: {len(tensors)} tensors")
    if len(shards) > 1:
        write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _shards(shapes: Shapes, itemsize: int, most: float) -> Iterator[list[str]]:
    """Paths of parameters whose tensors go to one file, each at most `most` bytes if it can."""
    paths, filled = [], 0
    for path, shape in shapes.items():
        size = math.prod(shape) * itemsize
        if paths and filled + size > most:
            yield paths
            paths, filled = [], 0
        paths.append(path)
        filled += size
    yield paths


def write_companions(
    folder: pathlib.Path,
    model: ml_collections.ConfigDict,
    vocab_size: int,
    max_length: int,
    dtype: str,
    max_words: int | None = None,
) -> None:
    """Writes what transformers needs beside weights and vocabulary.

    Args:
      model: `config.model`.
      max_length: tokens of a text.
      max_words: where captions are cleaned, the words that they have at most.
    """
    config = {
        "architectures": ["RC3Model"],
        "model_type": "rc3",
        "auto_map": {
            "AutoConfig": "configuration_rc3.RC3Config",
            "AutoModel": "modeling_rc3.RC3Model",
        },
        "vocab_size": vocab_size,
        "max_length": max_length,
        "dtype": dtype,
        "model": json.loads(model.to_json()),
    }
    write_json(folder / SETTINGS, config)
    processor = {
        "auto_map": {"AutoProcessor": "processing_rc3.RC3Processor"},
        "processor_class": "RC3Processor",
        "image_size": model.patch.image_size,
        "image_mean": list(model.image_mean),
        "image_std": list(model.image_std),
        "max_length": max_length,
        "max_words": max_words,
        "regions": model.roi.regions,
        "feature_size": model.roi.feature_size,
    }
    write_json(folder / PROCESSOR, processor)
    names = ("bos_token", "pad_token", "eos_token", "unk_token")
    tokenizer = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_length,
        **dict(zip(names, SPECIAL_TOKENS, strict=True)),
        "mask_token": "<mask>",
    }
    write_json(folder / TOKENIZER_SETTINGS, tokenizer)
    for name in MIRROR_FILES:
        shutil.copy(MIRROR / name, folder / name)


def _exported_settings(source: pathlib.Path) -> dict[str, Any]:
    """`config.json` of an exported folder, as far as it is ours."""
    path, settings = source / SETTINGS, stored_settings(source)
    if settings.get("model_type") != "rc3":
        raise ConfigError(f"{path} is of model_type {settings.get('model_type')!r}, not of rc3")
    if "model" not in settings or not isinstance(settings.get("vocab_size"), int):
        raise ConfigError(
            f"{path} cannot be read as that of an exported model: model must be an object and "
            "vocab_size a number"
        )
    return settings


def _check_depths(model: ml_collections.ConfigDict) -> None:
    """Raises ConfigError for so many layers that their names alone would fill the memory."""
    for name, part in model.items():
        depth = part.get("depth", 1) if isinstance(part, ml_collections.ConfigDict) else 1
        if not isinstance(depth, int) or not 0 < depth <= MOST_LAYERS:
            raise ConfigError(f"model.{name}.depth={depth!r} is none of 1 to {MOST_LAYERS}")


def _max_length(stored: Mapping[str, Any]) -> int:
    """Tokens of a text, of a run's settings or of those of converted parameters."""
    room = stored["model"]["text"]["max_positions"] - 2
    return stored.get("data", stored).get("max_length", room)


def _names(folder: pathlib.Path) -> set[str]:
    """Names that the exporter may have written there."""
    shards = {path.name for path in folder.glob("model-*.safetensors")}
    own = {SETTINGS, PROCESSOR, TOKENIZER, TOKENIZER_SETTINGS, WEIGHTS, INDEX, CARD, ONNX}
    return own | set(MIRROR_FILES) | shards
