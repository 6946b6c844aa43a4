"""Files of named tensors: PyTorch's, read without running what they say, and safetensors.

The only place that imports torch, and only where a file needs it.
"""

from __future__ import annotations

import pathlib
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors
from safetensors.numpy import save_file

TORCH_SUFFIXES = (".th", ".pth", ".pt", ".bin")
SUFFIXES = (*TORCH_SUFFIXES, ".safetensors")
PARALLEL_PREFIX = "module."
"""What DistributedDataParallel puts before every name."""


class TensorFileError(ValueError):
    """A file that cannot be read or written; the message names it and the remedy."""


def check_suffix(path: pathlib.Path) -> None:
    """Raises TensorFileError for a name that tells no known format, or lacks its library."""
    if path.suffix not in SUFFIXES:
        raise TensorFileError(f"{path} must end in one of {', '.join(SUFFIXES)}")
    if path.suffix in TORCH_SUFFIXES:
        _import_torch(path)


def read_tensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The tensors of a checkpoint, by name.

    A PyTorch file holds them in a dict, alone or under `model`; what stands beside `model` is left
    out, and so is the prefix `module.` that all names may have. Arrays of PyTorch files are
    read-only views of the file as far as that can be.

    Raises:
      TensorFileError: for a file that is missing, damaged, of another kind, or whose reading would
        run code that it names.
    """
    if path.is_dir():
        raise TensorFileError(f"{path} is a folder; name the file of the checkpoint")
    if not path.is_file():
        raise TensorFileError(f"{path}: no such file")
    check_suffix(path)
    tensors = _read_torch(path) if path.suffix in TORCH_SUFFIXES else _read_safetensors(path)
    if not tensors:
        raise TensorFileError(f"{path} holds no tensors")
    if all(name.startswith(PARALLEL_PREFIX) for name in tensors):
        tensors = {name.removeprefix(PARALLEL_PREFIX): x for name, x in tensors.items()}
    return tensors


def write_tensors(path: pathlib.Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes C-ordered arrays as the suffix says; a PyTorch file as `{"model": ..., "config": {}}`.

    Arrays that occur twice are one tensor with two names in a PyTorch file, and two tensors in a
    safetensors file.

    Raises:
      TensorFileError: for an unknown suffix, or if PyTorch is needed and missing.
      OSError, RuntimeError: as the libraries do, for a full disk for instance.
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
    """About the bytes that `write_tensors` would write."""
    if path.suffix in TORCH_SUFFIXES:
        return sum({id(x): x.nbytes for x in tensors.values()}.values())
    return sum(x.nbytes for x in tensors.values())


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
        with safetensors.safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError, TypeError, AttributeError) as error:
        raise TensorFileError(f"{path} cannot be read as a safetensors file: {error}") from error


def _read_torch(path: pathlib.Path) -> dict[str, np.ndarray]:
    torch = _import_torch(path)
    content = _unpickle(torch, path)
    state = content.get("model", content) if isinstance(content, dict) else None
    if not isinstance(state, dict):
        raise TensorFileError(f"{path} holds no dict of tensors, neither alone nor under 'model'")
    others = [
        f"{name!r}: {type(value).__name__}"
        for name, value in state.items()
        if not _is_plain(torch, name, value)
    ]
    if others:
        raise TensorFileError(
            f"{path}: what is not a plain tensor under a name: {', '.join(map(str, others))}"
        )
    return {name: _array(torch, value) for name, value in state.items()}


def _unpickle(torch: Any, path: pathlib.Path) -> Any:
    """What the file holds; only tensors and plain Python values can come out."""
    zipped = zipfile.is_zipfile(path)  # otherwise it is of PyTorch before 1.6, or no checkpoint
    try:
        if zipped:
            with zipfile.ZipFile(path) as archive:
                members = archive.infolist()
            # Mapped to memory, compressed numbers would be taken for plain ones.
            if any(member.compress_type != zipfile.ZIP_STORED for member in members):
                raise TensorFileError(f"{path} is compressed, as torch.save writes no file")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle protocols; what matters is an error
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except TensorFileError:
        raise
    except MemoryError as error:
        raise TensorFileError(f"{path} needs more memory than there is") from error
    except Exception as error:  # damaged pickles fail in any way
        code = re.search(r"GLOBAL (\S+)", str(error))
        if isinstance(error, pickle.UnpicklingError) and code:
            raise TensorFileError(
                f"{path} is refused: reading it would run code, it names {code[1]}; ask for a file "
                "that holds tensors alone"
            ) from error
        raise TensorFileError(
            f"{path} is no checkpoint of PyTorch, or a damaged one ({type(error).__name__})"
        ) from error


def _is_plain(torch: Any, name: Any, value: Any) -> bool:
    return (
        isinstance(name, str)
        and isinstance(value, torch.Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
        # Small files may claim large tensors that repeat a few numbers.
        and value.numel() * value.element_size() <= value.untyped_storage().nbytes()
    )


def _array(torch: Any, tensor: Any) -> np.ndarray:
    known = (torch.float32, torch.float16, torch.float64)
    if tensor.is_floating_point() and tensor.dtype not in known:
        tensor = tensor.float()  # NumPy has no bfloat16
    return tensor.detach().resolve_conj().resolve_neg().numpy()
