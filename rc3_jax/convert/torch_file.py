"""Files of named tensors: PyTorch's, read without running code in them, and safetensors.

PyTorch is imported only where a file needs it.
"""

from __future__ import annotations

import pathlib
import re
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
from ml_dtypes import bfloat16
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from rc3_jax.convert.output import say
from rc3_jax.data import jsonl
from rc3_jax.data.record import DataError
from rc3_jax.settings import ConfigError

TORCH_SUFFIXES = (".th", ".pth", ".pt", ".bin")
SUFFIXES = (*TORCH_SUFFIXES, ".safetensors")
WRAPPERS = ("module.", "_orig_mod.", "model.")
"""What DistributedDataParallel, torch.compile and trainers put before every name."""
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""How Hugging Face names a model's tensors; in shards, with `.index.json` for the list of them."""


class TensorFileError(ConfigError):
    """A file that cannot be read or written; the message names it and the remedy."""


def check_suffix(path: pathlib.Path) -> None:
    """Raises TensorFileError for an unknown suffix, or for a PyTorch file without PyTorch."""
    if path.suffix not in SUFFIXES:
        raise TensorFileError(f"{path} must end in one of {', '.join(SUFFIXES)}")
    if path.suffix in TORCH_SUFFIXES:
        _import_torch(path)


def read_tensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The tensors of a checkpoint by name; bfloat16 becomes float32.

    A PyTorch file holds them in a dict, alone or under `model`; anything beside `model` is left
    out. So is, with a note, a prefix of `WRAPPERS` that all names have.

    Raises:
      TensorFileError: for a file that is missing, damaged, of another kind, names code to run, or
        holds numbers that are not finite.
    """
    return _without_wrappers(path, _read(path))


def read_folder(folder: pathlib.Path, allow_pickle: bool = False) -> dict[str, np.ndarray]:
    """The tensors of a Hugging Face model, which are in one file or in shards; see `read_tensors`.

    Args:
      allow_pickle: reads `pytorch_model.bin` where there are no safetensors.

    Raises:
      TensorFileError: also for a folder without tensors or with pickled ones alone, a broken
        index, and missing shards.
    """
    tensors: dict[str, np.ndarray] = {}
    for path in _weight_files(folder, allow_pickle):
        shard = _read(path)
        if twice := sorted(tensors.keys() & shard.keys()):
            raise TensorFileError(f"{path}: {twice[0]} is in another shard already")
        tensors |= shard
    return _without_wrappers(folder, tensors)


def _read(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The tensors by the names in the file."""
    if not path.is_file():
        raise TensorFileError(f"{path}: no such file; name the file of the checkpoint")
    check_suffix(path)
    read = _read_torch if path.suffix in TORCH_SUFFIXES else _read_safetensors
    tensors = {
        name: tensor.astype(np.float32) if tensor.dtype == bfloat16 else tensor
        for name, tensor in read(path).items()
    }
    if not tensors:
        raise TensorFileError(f"{path} holds no tensors")
    check_finite(path, tensors)
    return tensors


def _without_wrappers(
    path: pathlib.Path, tensors: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    found = dict(tensors)
    while prefix := next((x for x in WRAPPERS if all(n.startswith(x) for n in found)), None):
        say(f"note: {path}: every name begins with {prefix}, which is left out")
        found = {name.removeprefix(prefix): tensor for name, tensor in found.items()}
    return found


def check_finite(where: pathlib.Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Raises TensorFileError with every tensor that is not finite, or would not be in float32.

    Args:
      where: the file or folder that they are read from.
    """
    with np.errstate(over="ignore"):
        counts = {
            name: np.sum(~np.isfinite(x.astype(np.float32) if x.dtype == np.float64 else x))
            for name, x in tensors.items()
        }
    bad = [f"{name} ({n} of {tensors[name].size} numbers)" for name, n in counts.items() if n]
    if bad:
        raise TensorFileError(
            f"{where}: NaN, infinity or too large for the type of number; take an undamaged "
            f"checkpoint, such as an earlier one: {', '.join(bad)}"
        )


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
      TensorFileError: for a file that is missing, broken or holds no object.
    """
    try:
        content = jsonl.read_json(path)
    except DataError as error:
        raise TensorFileError(str(error)) from error
    if not isinstance(content, dict):
        raise TensorFileError(f"{path} must hold an object, not a {type(content).__name__}")
    return content


def check_floats(path: pathlib.Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Raises TensorFileError with every tensor that holds no floating-point numbers."""
    others = [
        f"{name} holds {x.dtype}"
        for name, x in tensors.items()
        if not np.issubdtype(x.dtype, np.floating)
    ]
    if others:
        raise TensorFileError(
            f"{path}: not floating-point numbers; take a version without quantisation: "
            + ", ".join(others)
        )


def write_tensors(path: pathlib.Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes C-ordered arrays; a PyTorch file as `{"model": tensors, "config": {}}`.

    An array under two names is one tensor in a PyTorch file and two in a safetensors file.

    Raises:
      TensorFileError: for an unknown suffix, or if PyTorch is needed and missing.
      OSError, RuntimeError: from the libraries, for instance if the disk is full.
    """
    check_suffix(path)
    if path.suffix not in TORCH_SUFFIXES:
        save_file(dict(tensors), path, metadata={"format": "pt"})
        return
    torch = _import_torch(path)
    same = {id(array): torch.from_numpy(array) for array in tensors.values()}
    state = {name: same[id(array)] for name, array in tensors.items()}
    torch.save({"model": state, "config": {}}, path)


def stored_bytes(path: pathlib.Path, tensors: Mapping[str, np.ndarray]) -> int:
    """Approximate size of the file that `write_tensors` writes."""
    sizes = {id(x) if path.suffix in TORCH_SUFFIXES else name: x for name, x in tensors.items()}
    return sum(x.nbytes for x in sizes.values())


def _weight_files(folder: pathlib.Path, allow_pickle: bool) -> list[pathlib.Path]:
    safe, pickled = WEIGHTS
    for name in WEIGHTS if allow_pickle else (safe,):
        if (folder / name).is_file():
            return [folder / name]
        if (index := folder / f"{name}.index.json").is_file():
            return _shards(index, pathlib.PurePath(name).suffix)
    if found := sorted(path.name for path in folder.glob("pytorch_model*")):
        raise TensorFileError(
            f"{folder} holds pickled tensors alone ({found[0]}), and a pickle can name code to "
            f"run; take a version with {safe}, or give --allow_pickle: code is never run"
        )
    raise TensorFileError(
        f"{folder} holds neither {safe} nor {safe}.index.json, the tensors of a Hugging Face "
        f"model; for a model on the Hub that has {pickled} alone, give --allow_pickle"
    )


def _shards(index: pathlib.Path, suffix: str) -> list[pathlib.Path]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise TensorFileError(f"{index} has no weight_map, the file of each tensor")
    paths = [index.parent / file for file in sorted(set(map(str, weight_map.values())))]
    for path in paths:
        if path.parent != index.parent or "\\" in path.name or path.suffix != suffix:
            raise TensorFileError(f"{index}: {path} is no {suffix} file beside it")
        if not path.is_file():
            raise TensorFileError(f"{index} names {path.name}, which is missing; download it again")
    return paths


def _import_torch(path: pathlib.Path) -> Any:
    try:
        import torch
    except ImportError as error:
        raise TensorFileError(
            f"{path.suffix} files need PyTorch, which is not installed; install the extra `torch` "
            "(pip install -e '.[torch]'), or use a .safetensors file"
        ) from error
    return torch


def _read_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        return load_file(path)
    except AttributeError as error:  # a type of numbers that NumPy lacks
        raise TensorFileError(
            f"{path} holds numbers of a type that is not read: {error}"
        ) from error
    except (SafetensorError, OSError, ValueError) as error:
        raise TensorFileError(f"{path} cannot be read as a safetensors file: {error}") from error


def _read_torch(path: pathlib.Path) -> dict[str, np.ndarray]:
    torch = _import_torch(path)
    try:
        with warnings.catch_warnings(action="ignore"):  # about pickle protocols
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged pickles fail in any way
        if code := re.search(r"GLOBAL (\S+)", str(error)):
            raise TensorFileError(
                f"{path} is refused: reading it would run code, it names {code[1]}; ask for a file "
                "that holds tensors alone"
            ) from error
        raise TensorFileError(
            f"{path} is no checkpoint of PyTorch, or a damaged one ({type(error).__name__})"
        ) from error
    state = content.get("model", content) if isinstance(content, dict) else None
    if not isinstance(state, dict):
        raise TensorFileError(f"{path} holds no dict of tensors, neither alone nor under 'model'")
    others = [f"{name!r}" for name, value in state.items() if not _is_plain(torch, name, value)]
    if others:
        raise TensorFileError(f"{path}: not a plain tensor under a name: {', '.join(others)}")
    return {name: _array(torch, value) for name, value in state.items()}


def _is_plain(torch: Any, name: Any, value: Any) -> bool:
    return (
        isinstance(name, str)
        and isinstance(value, torch.Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
        # A small file may claim a huge tensor that repeats a few numbers.
        and value.numel() * value.element_size() <= value.untyped_storage().nbytes()
    )


def _array(torch: Any, tensor: Any) -> np.ndarray:
    known = (torch.float32, torch.float16, torch.float64)
    if tensor.is_floating_point() and tensor.dtype not in known:
        tensor = tensor.float()  # NumPy has no bfloat16
    return tensor.detach().resolve_conj().resolve_neg().numpy()
