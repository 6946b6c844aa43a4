"""Files of named tensors: PyTorch's, read without running what they say, and safetensors.

The only place that imports torch, and only where a file needs it.
"""

from __future__ import annotations

import json
import pathlib
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
import safetensors
from safetensors.numpy import save_file

TORCH_SUFFIXES = (".th", ".pth", ".pt", ".bin")
SUFFIXES = (*TORCH_SUFFIXES, ".safetensors")
PARALLEL_PREFIX = "module."
"""What DistributedDataParallel puts before every name."""
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
STORED_TYPES = {
    "BOOL": np.dtype(bool),
    "BF16": BFLOAT16,
    **{f"F{8 * size}": np.dtype(f"<f{size}") for size in (2, 4, 8)},
    **{f"I{8 * size}": np.dtype(f"<i{size}") for size in (1, 2, 4, 8)},
    **{f"U{8 * size}": np.dtype(f"<u{size}") for size in (1, 2, 4, 8)},
}
"""NumPy's types of those in safetensors files."""
FLOATS = (*map(np.dtype, (np.float16, np.float32, np.float64)), BFLOAT16)
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""How Hugging Face names a model's tensors; in shards, with `.index.json` for the list of them."""


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
    out, and so is the prefix `module.` that all names may have. Arrays are read-only views of the
    file as far as that can be, and take no memory of their own; bfloat16 becomes float32.

    Raises:
      TensorFileError: for a file that is missing, damaged, of another kind, or whose reading would
        run code that it names.
    """
    if path.is_dir():
        raise TensorFileError(f"{path} is a folder; name the file of the checkpoint")
    if not path.is_file():
        raise TensorFileError(f"{path}: no such file")
    check_suffix(path)
    tensors = {name: _widened(tensor) for name, tensor in _read(path).items()}
    if not tensors:
        raise TensorFileError(f"{path} holds no tensors")
    if all(name.startswith(PARALLEL_PREFIX) for name in tensors):
        tensors = {name.removeprefix(PARALLEL_PREFIX): x for name, x in tensors.items()}
    return tensors


class TensorFolder:
    """The tensors of a Hugging Face model's folder, in one file or in shards.

    Attributes:
      tensors: by name, as `read_tensors` gives them, but of bfloat16 where the file is.
    """

    def __init__(self, folder: pathlib.Path, allow_pickle: bool = False):
        """Args: allow_pickle: reads pickled tensors too, where there are no others.

        Raises:
          TensorFileError: for a folder without tensors or with pickled ones alone, a broken index,
            missing shards, and as `read_tensors`.
        """
        self.folder = folder
        self.tensors: dict[str, np.ndarray] = {}
        for path in self._files(allow_pickle):
            for name, tensor in _read(path).items():
                if name in self.tensors:
                    raise TensorFileError(f"{path}: {name} is in another shard already")
                self.tensors[name] = tensor
        if not self.tensors:
            raise TensorFileError(f"{folder} holds no tensors")

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of every tensor, by name."""
        return {name: tensor.shape for name, tensor in self.tensors.items()}

    def read(self, name: str) -> np.ndarray:
        """A tensor; bfloat16 as float32."""
        return _widened(self.tensors[name])

    def _files(self, allow_pickle: bool) -> list[pathlib.Path]:
        """The files that hold the tensors."""
        safe, pickled = WEIGHTS
        for name in (safe, pickled) if allow_pickle else (safe,):
            if (self.folder / name).is_file():
                return [self.folder / name]
            if (index := self.folder / f"{name}.index.json").is_file():
                return self._shards(index, pathlib.PurePath(name).suffix)
        found = sorted(path.name for path in self.folder.glob(f"{pickled.partition('.')[0]}*"))
        if found:
            raise TensorFileError(
                f"{self.folder} holds pickled tensors alone ({found[0]}), and a pickle can name "
                f"code to run; take a version with {safe}, or give --allow_pickle: they are read without "
                "running what they name"
            )
        raise TensorFileError(
            f"{self.folder} holds neither {safe} nor {safe}.index.json, in which PyTorch models "
            "of Hugging Face keep their tensors; of a model on the Hub with pickled tensors alone, "
            "these are downloaded with --allow_pickle"
        )

    def _shards(self, index: pathlib.Path, suffix: str) -> list[pathlib.Path]:
        names = read_json(index).get("weight_map")
        if not isinstance(names, dict) or not names:
            raise TensorFileError(f"{index} has no weight_map, which says what is in which file")
        files = sorted(set(map(str, names.values())))
        for file in files:
            # A path could lead out of the folder.
            if set(file) & set("/\\:") or not file.endswith(suffix):
                raise TensorFileError(f"{index}: {file!r} is no name of a {suffix} file beside it")
            if not (self.folder / file).is_file():
                raise TensorFileError(f"{index} names {file}, which is missing; download it again")
        return [self.folder / file for file in files]


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """What a JSON file holds.

    Raises:
      TensorFileError: for a file that is missing, broken or holds no object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise TensorFileError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise TensorFileError(f"{path} must hold an object, not a {type(content).__name__}")
    return content


def check_floats(path: pathlib.Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Raises TensorFileError with every tensor that holds no floating-point numbers."""
    others = [f"{name} holds {x.dtype}" for name, x in tensors.items() if x.dtype not in FLOATS]
    if others:
        raise TensorFileError(
            f"{path}: what holds no floating-point numbers; take a version without quantisation: "
            + ", ".join(others)
        )


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


def _read(path: pathlib.Path) -> dict[str, np.ndarray]:
    return _read_torch(path) if path.suffix in TORCH_SUFFIXES else _read_safetensors(path)


def _widened(tensor: np.ndarray) -> np.ndarray:
    """bfloat16 as float32, which every part of NumPy knows."""
    return tensor.astype(np.float32) if tensor.dtype == BFLOAT16 else tensor


def _read_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        with safetensors.safe_open(path, framework="numpy"):
            pass  # it checks the header: sizes, places and that they fill the file
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size))
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise TensorFileError(f"{path} cannot be read as a safetensors file: {error}") from error
    header.pop("__metadata__", None)
    unknown = {entry["dtype"] for entry in header.values()} - STORED_TYPES.keys()
    if unknown:
        raise TensorFileError(f"{path} holds numbers of types that are not read: {sorted(unknown)}")
    data = np.memmap(path, np.uint8, "r")
    tensors = {}
    for name, entry in header.items():
        begin, end = (8 + size + offset for offset in entry["data_offsets"])
        array = np.asarray(data[begin:end]).view(STORED_TYPES[entry["dtype"]])
        tensors[name] = array.reshape(entry["shape"])
    return tensors


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
