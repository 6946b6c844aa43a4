"""RC³ to a folder that PyTorch users load with nothing of this project installed, and back.

The folder holds `model.safetensors` (in shards beyond a size), `config.json`, the tokenizer, what
prepares texts and images, a model card, and the model in PyTorch (`torch_model/`).
"""

from __future__ import annotations

import json
import math
import pathlib
import shutil
from typing import Any

import ml_collections
import ml_dtypes
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from huggingface_hub import split_state_dict_into_shards_factory
from safetensors.numpy import save_file

from rc3_jax.convert.model_card import CARD, model_card
from rc3_jax.convert.onnx_export import FOLDER as ONNX
from rc3_jax.convert.onnx_export import export_onnx
from rc3_jax.convert.output import (
    OWN_FILES,
    TOKENIZER_SETTINGS,
    WORDS,
    add_source_to_errors,
    atomic_write,
    check_target,
    check_tokenizer,
    model_settings,
    say,
    size_text,
    write_json,
    write_settings,
    write_tokenizer,
)
from rc3_jax.convert.torch_file import check_finite, check_floats, read_folder, read_json
from rc3_jax.convert.torch_names import exported_names, exported_towers
from rc3_jax.data.tokenizer import FILE_NAME as TOKENIZER
from rc3_jax.models.base import learned_scalars
from rc3_jax.models.text import TextSettings
from rc3_jax.param_map import ParamMap
from rc3_jax.settings import ConfigError, check_choice
from rc3_jax.stored_config import CONFIG_FILE, read_config, stored_max_words
from rc3_jax.systems import abstract_params
from rc3_jax.training.checkpoint import (
    check_shapes,
    read_params,
    save_params,
    shapes_of,
    stored_shapes,
    stored_step,
)

CODE = tuple(sorted((pathlib.Path(__file__).parent / "torch_model").glob("*_rc3.py")))
DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
PROCESSOR, PREPROCESSOR = "processor_config.json", "preprocessor_config.json"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARD_BYTES = 5 * 10**9


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
    stored = read_config(source)
    if parts := stored.get("parts"):
        raise ConfigError(f"{source} holds {', '.join(parts)} alone; train a model from it first")
    tokenizer = source / TOKENIZER
    if not tokenizer.is_file():
        raise ConfigError(f"{tokenizer} is missing; copy there the vocabulary of the weights")
    vocab_size = shapes.get(WORDS, (0,))[0]
    with add_source_to_errors(source):
        wanted = abstract_params("rc3", model, vocab_size, **learned_scalars(shapes))
        check_shapes(source, shapes, shapes_of(wanted))
        config = exported_settings(model, vocab_size, dtype)
    config["scalars"] = [name for name in shapes if name.startswith("temperature")]
    config["max_length"] = stored.get("data", stored).get(
        "max_length", TextSettings.parse(model.text).room
    )
    count = sum(map(math.prod, shapes.values()))
    size = count * DTYPES[dtype].itemsize
    say(f"{source}: {count:,} parameters, {size_text(size)} as {dtype}")
    with atomic_write(target, size) as folder:
        folder.mkdir()
        write_tokenizer(folder, tokenizer, vocab_size, config["max_length"])
        _write_weights(folder, source, step, DTYPES[dtype], shard_bytes, exported_names(model))
        write_json(folder / CONFIG_FILE, config)
        _write_processor(folder, model, config["max_length"], stored_max_words(stored))
        for path in CODE:
            shutil.copy(path, folder / path.name)
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
      ConfigError, DataError, TensorFileError: with the reason; then nothing was written.
    """
    check_target(target, overwrite, OWN_FILES)
    settings = _exported_settings(source)
    model = ml_collections.ConfigDict(settings["model"])
    tensors = {
        name: tensor
        for name, tensor in read_folder(source, allow_pickle).items()
        if not name.endswith("relative_position_index")  # transformers 4 saves Swin's
    }
    check_floats(source, tensors)
    say(f"{source}: {len(tensors)} tensors")
    with add_source_to_errors(source):
        scalars = learned_scalars(tensors)
        template = abstract_params("rc3", model, settings["vocab_size"], **scalars)
        params = exported_names(model).to_ours(tensors, template)
    del tensors
    if (tokenizer := source / TOKENIZER).is_file():
        check_tokenizer(tokenizer, settings["vocab_size"], TextSettings.parse(model.text).room)
    size = sum(leaf.nbytes for leaf in flatten_dict(params).values())
    with atomic_write(target, size) as folder:
        folder.mkdir()
        save_params(folder, params)
        if tokenizer.is_file():
            shutil.copyfile(tokenizer, folder / TOKENIZER)
        names = ("model", "vocab_size", "max_length")
        kept = {name: settings[name] for name in names if name in settings}
        if (source / PROCESSOR).is_file():
            kept["max_words"] = read_json(source / PROCESSOR).get("max_words")
        write_settings(folder, {"system": "rc3"} | kept)
    say(f"wrote {target}")


def _write_weights(
    folder: pathlib.Path,
    source: pathlib.Path,
    step: int | None,
    dtype: np.dtype,
    shard_bytes: float,
    names: ParamMap,
) -> None:
    """Writes the files of tensors, and their index if there are several."""
    shards = split_state_dict_into_shards_factory(
        stored_shapes(source, step),
        get_storage_size=lambda shape: math.prod(shape) * dtype.itemsize,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=int(shard_bytes),
    )
    weight_map: dict[str, str] = {}
    for file, paths in shards.filename_to_tensors.items():
        params = unflatten_dict(read_params(source, paths, step), sep="/")
        tensors = {
            name: tensor.astype(dtype, copy=False)
            for name, tensor in names.to_theirs(params).items()
        }
        check_finite(source, tensors)
        save_file(tensors, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, file)
        say(f"{file}: {len(tensors)} tensors")
    if shards.is_sharded:
        write_json(folder / INDEX, {"metadata": shards.metadata, "weight_map": weight_map})


def exported_settings(
    model: ml_collections.ConfigDict, vocab_size: int, dtype: str = "float32"
) -> dict[str, Any]:
    """`config.json` of the exported folder, without `max_length` and `scalars`.

    Raises:
      ConfigError: for a text tower that transformers would compute otherwise.
    """
    return {
        "architectures": ["RC3Model"],
        "model_type": "rc3",
        "auto_map": {
            "AutoConfig": "configuration_rc3.RC3Config",
            "AutoModel": "modeling_rc3.RC3Model",
            "AutoModelForZeroShotImageClassification": "modeling_rc3.RC3Model",
        },
        "vocab_size": vocab_size,
        "dtype": dtype,
        "model": json.loads(model.to_json()),
        "towers": exported_towers(model, vocab_size),
    }


def _write_processor(
    folder: pathlib.Path,
    model: ml_collections.ConfigDict,
    max_length: int,
    max_words: int | None,
) -> None:
    """Writes the settings of the processor, and those of images alone."""
    images = {
        "image_size": model.patch.image_size,
        "image_mean": list(model.image_mean),
        "image_std": list(model.image_std),
    }
    alone = {
        "auto_map": {"AutoImageProcessor": "image_processing_rc3.RC3ImageProcessor"},
        "image_processor_type": "RC3ImageProcessor",
    }
    write_json(folder / PREPROCESSOR, alone | images)
    processor = {
        "auto_map": {"AutoProcessor": "processing_rc3.RC3Processor"},
        "processor_class": "RC3Processor",
        **images,
        "max_length": max_length,
        "max_words": max_words,
        "regions": model.roi.regions,
        "feature_size": model.roi.feature_size,
    }
    write_json(folder / PROCESSOR, processor)


def _exported_settings(source: pathlib.Path) -> dict[str, Any]:
    """`config.json` of an exported folder."""
    path, settings = source / CONFIG_FILE, read_config(source)
    if settings.get("model_type") != "rc3":
        raise ConfigError(f"{path} is of model_type {settings.get('model_type')!r}, not of rc3")
    if "model" not in settings or not isinstance(settings.get("vocab_size"), int):
        raise ConfigError(f"{path} must hold model, an object, and vocab_size, a number")
    return settings


def _names(folder: pathlib.Path) -> set[str]:
    """Names of the files that the exporter may have written there."""
    shards = {path.name for path in folder.glob("model-*.safetensors")}
    own = {
        CONFIG_FILE,
        PROCESSOR,
        PREPROCESSOR,
        TOKENIZER,
        TOKENIZER_SETTINGS,
        WEIGHTS,
        INDEX,
        CARD,
        ONNX,
    }
    return own | {path.name for path in CODE} | shards
