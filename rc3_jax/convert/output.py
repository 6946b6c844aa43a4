"""What every conversion does around its tensors: atomic targets, settings, progress."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.metadata
import json
import os
import pathlib
import shutil
import time
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import ml_collections
from safetensors import SafetensorError

from rc3_jax.data.record import DataError
from rc3_jax.data.tokenizer import FILE_NAME as TOKENIZER
from rc3_jax.data.tokenizer import SPECIAL_TOKENS, load_tokenizer
from rc3_jax.settings import ConfigError
from rc3_jax.stored_config import CONFIG_FILE, read_config
from rc3_jax.training.checkpoint import PARAMS

WORDS = "text/word_embedding/embedding"
"""Path of the table of word embeddings."""
OWN_FILES = (PARAMS, CONFIG_FILE, TOKENIZER)
"""What a folder of our parameters holds."""
TOKENIZER_SETTINGS = "tokenizer_config.json"
PACKAGES = ("jax", "flax", "orbax-checkpoint", "numpy")
BEGAN = time.monotonic()


def check_target(target: pathlib.Path, overwrite: bool, known: Collection[str] | None) -> None:
    """Raises ConfigError if the target exists and must not be replaced.

    Args:
      known: names of the files that a folder of this kind holds; None if the target is a file.
    """
    if not target.exists():
        return
    if not overwrite:
        raise ConfigError(f"{target} exists; choose another name, or give --overwrite")
    if target.is_dir() != (known is not None):
        raise ConfigError(f"{target} is a {'file' if known else 'folder'} and stays as it is")
    if known is not None and not {path.name for path in target.iterdir()} <= set(known):
        raise ConfigError(f"{target} holds more than a conversion writes and stays as it is")


@contextlib.contextmanager
def atomic_write(target: pathlib.Path, size: int) -> Iterator[pathlib.Path]:
    """Yields a name beside the target to write to; renames it to the target when all is written.

    Args:
      size: approximate bytes to be written, which must be free on the disk.

    Raises:
      ConfigError: if it cannot be written; nothing is left of it then, nor after any other error.
    """
    parent = target.absolute().parent
    partial = parent / f"partial-{os.getpid()}-{target.name}"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        if (free := shutil.disk_usage(parent).free) < size:
            raise ConfigError(
                f"{target} needs {size_text(size)}, {parent} has {size_text(free)} free"
            )
        say(f"writes {size_text(size)}")
        yield partial
        if target.is_dir():
            replaced = partial.with_name(f"replaced-{partial.name}")
            os.replace(target, replaced)
            os.replace(partial, target)
            shutil.rmtree(replaced)
        else:
            os.replace(partial, target)
    except (ConfigError, DataError):
        raise
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ConfigError(f"{target} could not be written: {reason}") from error
    finally:
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        else:
            partial.unlink(missing_ok=True)


@contextlib.contextmanager
def add_source_to_errors(source: pathlib.Path | str) -> Iterator[None]:
    """Turns errors about tensors or sizes into a ConfigError that names the source."""
    try:
        yield
    except (ValueError, TypeError, ArithmeticError, MemoryError) as error:
        message = str(error) or "needs more memory than there is"
        raise ConfigError(message if str(source) in message else f"{source}: {message}") from error
    except AttributeError as error:  # of a ConfigDict
        raise ConfigError(f"{source}: config.model lacks a setting: {error}") from error


def write_settings(folder: pathlib.Path, settings: dict[str, Any]) -> None:
    """Writes `config.json` of a folder of our parameters, with the versions of the libraries."""
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    write_json(folder / CONFIG_FILE, settings | {"versions": versions})


def write_json(path: pathlib.Path, content: Mapping[str, Any]) -> None:
    """Writes indented JSON atomically."""
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    partial = path.with_name(f"partial-{path.name}")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def write_tokenizer(folder: pathlib.Path, file: pathlib.Path, rows: int, max_length: int) -> None:
    """Copies a vocabulary and writes the settings with which `AutoTokenizer` gives the run's ids.

    Without them transformers would build a tokenizer of XLM-R from the pieces alone, which
    normalizes and splits texts as XLM-R does, and not as the file says.

    Args:
      file, rows, max_length: see `check_tokenizer`.
    """
    check_tokenizer(file, rows, max_length)
    shutil.copyfile(file, folder / TOKENIZER)
    bos, pad, eos, unk = SPECIAL_TOKENS
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",  # takes the file's own rules
        "model_max_length": max_length,
        "model_input_names": ["input_ids", "attention_mask"],
        **dict(bos_token=bos, cls_token=bos, eos_token=eos, sep_token=eos),
        **dict(pad_token=pad, unk_token=unk, mask_token="<mask>"),
    }
    write_json(folder / TOKENIZER_SETTINGS, settings)


def check_tokenizer(file: pathlib.Path, rows: int, max_length: int) -> None:
    """Refuses a vocabulary that is not that of the weights.

    Args:
      file: a run's `tokenizer.json`.
      rows: of the word embeddings.
      max_length: token ids of the longest text that the model reads.

    Raises:
      ConfigError: unless there is a row for each piece.
      DataError: for a file that holds no vocabulary, or one that does not frame texts.
    """
    if (pieces := load_tokenizer(str(file), max_length).vocab_size) != rows:
        raise ConfigError(
            f"{file} has {pieces} pieces and the word embeddings have {rows} rows; copy there the "
            "vocabulary of the weights"
        )


def model_settings(folder: pathlib.Path, system: str) -> ml_collections.ConfigDict:
    """`config.model` of a run's folder or of one of converted parameters.

    Raises:
      ConfigError: if it cannot be read, or is of another system.
    """
    stored = read_config(folder)
    if "system" not in stored or "model" not in stored:
        raise ConfigError(
            f"{folder / CONFIG_FILE} cannot be read as settings of a model: it lacks system or model"
        )
    if stored["system"] != system:
        raise ConfigError(f"{folder} holds a model of {stored['system']}; this is for {system}")
    return ml_collections.ConfigDict(stored["model"])


def import_extra(name: str, extra: str) -> Any:
    """Imports a library that an extra of the project installs; ConfigError if it is missing."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(
            f"{name} is needed for this; install the extra `{extra}` (pip install -e '.[{extra}]')"
        ) from error


def sha256(path: pathlib.Path) -> str:
    """The SHA-256 digest of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def size_text(count: int) -> str:
    """A number of bytes, readable."""
    return f"{count / 1e9:.2f} GB" if count >= 1e7 else f"{count / 1e3:.1f} kB"


def say(line: str) -> None:
    """Prints a line after the seconds since the program began."""
    print(f"{time.monotonic() - BEGAN:5.0f} s  {line}", flush=True)
