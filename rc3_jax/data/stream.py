"""Records to batches with Grain: mix, index, augment, slice by process, batch.

The stream is random access by step number, and that number is its whole state: a run that
resumes at step n, on any number of processes, reads the rows it would have read.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator, Mapping, Sequence

import grain
import ml_collections
import numpy as np
from absl import flags

from rc3_jax.data.example import Row, training_row
from rc3_jax.data.record import BadRecord, DataError, Record, Skips, Source
from rc3_jax.data.text import LanguagePair, pair_weights
from rc3_jax.data.tokenizer import Tokenizer

KINDS = ("strict", "weak", "parallel")


class Pool:
    """All sources of one kind, one after the other.

    Args:
      sources: (source, group offset) pairs; offsets keep groups of different images apart.
      exponent: smoothing of the language pairs' frequencies.
    """

    def __init__(self, sources: Sequence[tuple[Source, int]], exponent: float):
        self._sources = [(s, offset, pair_weights(s, exponent)) for s, offset in sources]
        self._ends = np.cumsum([len(source) for source, _ in sources])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> tuple[Record, int, dict[LanguagePair, float]]:
        """The record, its group among all sources, and the weights of its language pairs."""
        place = int(np.searchsorted(self._ends, index, side="right"))
        source, offset, weights = self._sources[place]
        record = source[int(index - (self._ends[place - 1] if place else 0))]
        return record, offset + record.group, weights


def batch_rows(batch_size: int, shares: Mapping[str, float], kinds: Sequence[str]) -> dict:
    """How many rows of each kind a global batch holds.

    Raises:
      DataError: if no kind is left, or the shares do not give whole rows.
    """
    present = {kind: shares[kind] for kind in KINDS if kind in kinds and shares[kind] > 0}
    if not set(present) & {"strict", "weak"}:
        raise DataError(
            f"data.sources offer {sorted(kinds) or 'nothing'} with shares {dict(shares)}: training "
            "needs strict or weak rows, that is images with two texts each"
        )
    total = sum(present.values())
    rows = {kind: batch_size * share / total for kind, share in present.items()}
    if any(abs(count - round(count)) > 1e-6 for count in rows.values()):
        raise DataError(
            f"batch_size={batch_size} cannot be shared as {present}; make it a multiple of {total:g}"
        )
    return {kind: round(count) for kind, count in rows.items()}


@dataclasses.dataclass(frozen=True)
class RowMaker:
    """(row number, record number) to a row; randomness is a function of seed and row number.

    A record whose image turns out to be damaged is noted in `skips`, and the next one is read.
    The limit is for `damaged`, those of this kind alone; `skips` holds the whole run's.
    """

    pool: Pool
    kind: str
    tokenizer: Tokenizer
    config: ml_collections.ConfigDict
    skips: Skips
    damaged: Skips

    @property
    def seed(self) -> int:
        """Differs between kinds, so that those made of the same images do not go in step."""
        return (self.config.seed << 8) + KINDS.index(self.kind)

    def __call__(self, number: int, index: int) -> Row:
        for attempt in range(len(self.pool)):
            rng = np.random.Generator(np.random.Philox(key=[self.seed, number]))
            try:
                record, group, weights = self.pool[(index + attempt) % len(self.pool)]
                return training_row(record, group, weights, self.tokenizer, self.config, rng)
            except BadRecord as error:
                for skips in (self.skips, self.damaged):
                    skips.add(str(error).split(": ")[0], str(error))
                self.damaged.check(len(self.pool), f"{self.kind} records")
        raise DataError(f"none of the {len(self.pool)} {self.kind} records can be used")


def kind_batches(
    rows: RowMaker, count: int, process_index: int, process_count: int
) -> grain.MapDataset:
    """This process's part of the global batches of one kind.

    Processes hold consecutive rows of a batch, so the batch as a whole is the same for any
    number of them.
    """
    order = grain.MapDataset.range(len(rows.pool)).seed(rows.seed).shuffle().repeat()
    numbered = order.map_with_index(rows)
    local = count // process_count
    first = process_index * local

    def global_row(i: int) -> Row:
        return numbered[i // local * count + first + i % local]

    return grain.MapDataset.range(sys.maxsize // count * local).map(global_row).batch(local)


def make_batches(
    pools: Mapping[str, Pool],
    tokenizer: Tokenizer,
    config: ml_collections.ConfigDict,
    skips: Skips,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.MapDataset:
    """Step number → batch: kind → field → array of this process's rows.

    Raises:
      DataError: see `batch_rows`; also if processes cannot share a kind's rows evenly.
    """
    counts = batch_rows(config.batch_size, config.shares, list(pools))
    for kind, count in counts.items():
        if count % process_count:
            raise DataError(
                f"{count} {kind} rows a batch cannot be shared by {process_count} processes; "
                f"make them a multiple with batch_size or shares"
            )
    parts = {
        kind: kind_batches(
            RowMaker(pools[kind], kind, tokenizer, config, skips, Skips(skips.limit)),
            count,
            process_index,
            process_count,
        )
        for kind, count in counts.items()
    }
    return grain.MapDataset.range(config.steps).map(
        lambda step: {kind: batches[step] for kind, batches in parts.items()}
    )


def iterate(
    batches: grain.MapDataset, start: int, config: ml_collections.ConfigDict
) -> Iterator[dict]:
    """Batches from step `start` on, read ahead by threads or, with `data.workers`, processes."""
    options = grain.ReadOptions(
        num_threads=config.data.threads, prefetch_buffer_size=config.data.prefetch
    )
    dataset = batches[start:].to_iter_dataset(options)
    if config.data.workers:
        if not flags.FLAGS.is_parsed():  # Grain reads them for its workers
            flags.FLAGS.mark_as_parsed()
        dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(config.data.workers))
    return iter(dataset)
