"""Batches on disk, for runs that read the same rows, such as the variants of a study."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import pathlib
import threading
import zipfile

import grain
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from rc3_jax.data.example import reads_relevance
from rc3_jax.data.record import DataError, Skips
from rc3_jax.data.tokenizer import Tokenizer
from rc3_jax.settings import Settings, describe
from rc3_jax.stored_config import is_among

_OF_ROWS = ("seed", "batch_size", "batch_mix.*", "data.*", "model.patch.*", "model.roi.*")
_APART = ("data.threads", "data.workers", "data.prefetch", "data.batch_cache", "data.tokenizer.*")


def rows_checksum(config: Settings, tokenizer: Tokenizer, process: int, processes: int) -> str:
    """SHA-256 of what the rows of a process depend on: settings, vocabulary and code, not files of data."""
    settings = {
        name: value
        for name, value, *_ in describe(config)
        if is_among(name, _OF_ROWS) and not is_among(name, _APART)
    }
    of_code = _code_checksum(), np.__version__
    content = [settings, reads_relevance(config), tokenizer.to_json(), process, processes, of_code]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@functools.cache
def _code_checksum() -> str:
    """SHA-256 of the code that makes rows."""
    package = pathlib.Path(__file__).parents[1]
    digest = hashlib.sha256()
    for file in sorted((*package.glob("data/**/*.py"), *package.glob("scenes/**/*.py"))):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def keep_batches(batches: grain.MapDataset, folder: pathlib.Path, skips: Skips) -> grain.MapDataset:
    """The same batches, each made once and then read from the folder, by any number of processes.

    A batch is not kept if a record, or a part of one, was left out on the way, so that every run
    counts it. A file that cannot be read is made anew.

    Raises:
      DataError: when a batch cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)

    def load_or_make(step: int) -> dict:
        file = folder / f"{step}.npz"
        try:
            with np.load(file, allow_pickle=False) as stored:
                return unflatten_dict(dict(stored), sep="/")
        except (OSError, ValueError, zipfile.BadZipFile):  # not there, or torn
            pass
        before = skips.noted
        batch = batches[step]
        if skips.noted == before:
            part = folder / f".{step}.{os.getpid()}.{threading.get_ident()}.npz"
            try:
                np.savez(part, **flatten_dict(batch, sep="/"))
                part.replace(file)
            except OSError as error:
                raise DataError(
                    f"data.batch_cache: {file} cannot be written ({error}); make room, or leave the "
                    "setting out"
                ) from error
        return batch

    return grain.MapDataset.range(len(batches)).map(load_or_make)
