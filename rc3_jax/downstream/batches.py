"""Examples of a task to batches of arrays."""

from __future__ import annotations

import concurrent.futures
import math
from collections.abc import Iterator, Mapping, Sequence

import ml_collections
import numpy as np
from jax.sharding import Mesh

from rc3_jax.config import ConfigError
from rc3_jax.data.example import Row, evaluation_row, stacked
from rc3_jax.data.record import Record
from rc3_jax.data.tokenizer import Tokenizer
from rc3_jax.downstream.examples import Example, Picture
from rc3_jax.downstream.learner import Batch
from rc3_jax.evaluation.retrieval import MODES
from rc3_jax.parallel.mesh import from_rows

WRONG = -1
"""The label of an example whose right class is none of the task's."""
NOT_VISUAL = ("ids", "label")
"""Fields of a batch that are not of its pictures."""


class Batches:
    """Rows of examples, read with threads while the model computes.

    A row has the visual fields (`picture_fields`; of two pictures each `[2, ...]`), `ids` and
    `label`, `WRONG` where it is none. Batches are global arrays, rows sharded over the mesh; each
    process reads the rows of its own devices alone.

    Args:
      config: settings of the model and of `data`, as a run has them.
      mode: visual parts that are read, one of `MODES`.
      numbers: picture → its number, which then is the label: what retrieval is about.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        tokenizer: Tokenizer,
        config: ml_collections.ConfigDict,
        batch_size: int,
        mode: str,
        mesh: Mesh,
        numbers: Mapping[str, int] | None = None,
    ):
        if not examples:
            raise ConfigError("there are no examples; check the task's files")
        self._examples, self._tokenizer, self._config = examples, tokenizer, config
        self._batch_size, self._mode, self._numbers = batch_size, mode, numbers
        self._mesh = mesh

    def __len__(self) -> int:
        """Batches of a pass over all examples."""
        return math.ceil(len(self._examples) / self._batch_size)

    def shuffled(self, seed: int, epoch: int) -> Iterator[Batch]:
        """All examples once, in a random order of the epoch; the last batch begins it again."""
        rng = np.random.Generator(np.random.Philox(key=[seed, epoch]))
        return self._read(rng.permutation(len(self._examples)))

    def in_order(self) -> Iterator[Batch]:
        """All examples once; the last batch is filled up with the first ones."""
        return self._read(np.arange(len(self._examples)))

    def _read(self, order: np.ndarray) -> Iterator[Batch]:
        parts = np.resize(order, (len(self), self._batch_size))
        threads = concurrent.futures.ThreadPoolExecutor
        with threads(self._config.data.threads) as pool, threads(1) as ahead:

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
        fields = [picture_fields(p, self._config, self._mode) for p in example.pictures]
        row = stacked(fields) if len(fields) > 1 else fields[0]
        label = example.label
        if self._numbers is not None:
            label = self._numbers[example.pictures[0].name]
        ids = self._tokenizer.encode([example.text])[0]
        return row | {"ids": ids, "label": np.int32(WRONG if label is None else label)}


def picture_fields(picture: Picture, config: ml_collections.ConfigDict, mode: str) -> Row:
    """The visual fields of a picture, its parts masked as `mode` says.

    Raises:
      ConfigError: if regions alone are to be read and the picture has none.
    """
    patches, regions = MODES[mode]
    record = Record(picture.name, 0, {}, picture.image, picture.boxes, picture.features)
    row = evaluation_row(record, config)
    row["use_patches"] = np.bool_(patches)
    if "use_regions" in row:
        row["use_regions"] = np.bool_(regions)
    if not patches and not ("region_mask" in row and row["region_mask"].any()):
        raise ConfigError(
            f"{picture.name} has no regions to be read alone; give region features, or another mode"
        )
    return row
