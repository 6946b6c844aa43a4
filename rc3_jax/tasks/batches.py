"""Batches of arrays from the examples of a task."""

from __future__ import annotations

import concurrent.futures
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import ml_collections
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from rc3_jax.data.example import Row, evaluation_row, stacked
from rc3_jax.data.record import Record
from rc3_jax.data.tokenizer import Tokenizer
from rc3_jax.evaluation.retrieval import shown
from rc3_jax.parallel.mesh import from_rows
from rc3_jax.settings import ConfigError
from rc3_jax.tasks.base import Example, Picture

Batch = Mapping[str, Array]
WRONG = -1
"""The label of an example whose right class is none of the task's."""

MakeBatches = Callable[..., "Batches"]
"""`(examples, batch_size=...)` to their batches."""
ReadPicture = Callable[[Picture], Row]
"""The visual fields of a picture."""


class Batches:
    """Rows of examples, read by threads while the model computes.

    A row has the visual fields (`[2, ...]` for two pictures), `ids` and `label`, `WRONG` where it is
    none. Batches are global arrays, rows sharded over the mesh; each process reads the rows of its own
    devices alone.

    Args:
      read: see `picture_fields`.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        tokenizer: Tokenizer,
        read: ReadPicture,
        batch_size: int,
        mesh: Mesh,
        threads: int,
    ):
        if not examples:
            raise ConfigError("there are no examples; check the task's files")
        self._examples, self._tokenizer, self._read_picture = examples, tokenizer, read
        self.batch_size, self._mesh, self._threads = batch_size, mesh, threads

    def __len__(self) -> int:
        """Batches of a pass over all examples."""
        return math.ceil(len(self._examples) / self.batch_size)

    def shuffled(self, seed: int, epoch: int) -> Iterator[Batch]:
        """All examples once, in a random order of the epoch; the last batch begins it again."""
        rng = np.random.Generator(np.random.Philox(key=[seed, epoch]))
        return self._read(rng.permutation(len(self._examples)))

    def in_order(self) -> Iterator[Batch]:
        """All examples once; the last batch is filled up with the first ones."""
        return self._read(np.arange(len(self._examples)))

    def _read(self, order: np.ndarray) -> Iterator[Batch]:
        parts = np.resize(order, (len(self), self.batch_size))
        threads = concurrent.futures.ThreadPoolExecutor
        with threads(self._threads) as pool, threads(1) as ahead:

            def produce(numbers: np.ndarray) -> Row:
                return stacked(list(pool.map(self._row, numbers)))

            def start(part: np.ndarray) -> concurrent.futures.Future:
                return ahead.submit(from_rows, produce, part, self._mesh)

            waiting = start(parts[0])
            for following in parts[1:]:
                batch, waiting = waiting.result(), start(following)
                yield batch
            yield waiting.result()

    def _row(self, number: int) -> Row:
        example = self._examples[number]
        fields = [self._read_picture(picture) for picture in example.pictures]
        row = stacked(fields) if len(fields) > 1 else fields[0]
        label = WRONG if example.label is None else example.label
        return row | {"ids": self._tokenizer.encode([example.text])[0], "label": np.int32(label)}


def visual_fields(batch: Batch) -> Batch:
    """The fields of a batch that are of its pictures."""
    return {name: value for name, value in batch.items() if name not in ("ids", "label")}


def picture_fields(picture: Picture, config: ml_collections.ConfigDict, mode: str) -> Row:
    """The visual fields of a picture.

    Args:
      config: `model` has the settings of the model.
      mode: the parts that are not masked, one of `evaluation.retrieval.MODES`.

    Raises:
      ConfigError: if regions alone are to be read and the picture has none.
    """
    record = Record(picture.name, 0, {}, picture.image, picture.boxes, picture.features)
    row = shown(evaluation_row(record, config), mode)
    if not row["use_patches"] and not ("region_mask" in row and row["region_mask"].any()):
        raise ConfigError(
            f"{picture.name} has no regions to be read alone; give region features, or another mode"
        )
    return row
