"""Records to batches with Grain: mix language pairs, index, augment, slice by process, batch.

The stream is random access by step number, and that number is its whole state: a run that
resumes at step n, on any number of processes, reads the rows it would have read.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import operator
import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import grain
import ml_collections
import numpy as np
from absl import flags
from jaxtyping import Int

from rc3_jax.data.example import Row, region_row, text_sizes, training_row
from rc3_jax.data.kinds import KINDS, LanguagePair, wanted
from rc3_jax.data.record import BadRecord, DataError, Record, Skips, Source
from rc3_jax.data.tokenizer import Tokenizer


class ConcatSource:
    """All sources of one kind, one after the other.

    Args:
      sources: (source, group offset) pairs.
      groups: int32, the group in the whole run of each source's group, at its number and offset;
        None keeps groups of different sources apart.
      sentences: int32, likewise the sentence; None where records have none beside the group.

    Attributes:
      pairs: language pair → numbers of the records that offer it, computed when asked for.
    """

    def __init__(
        self,
        sources: Sequence[tuple[Source, int]],
        groups: Int[np.ndarray, " groups"] | None = None,
        sentences: Int[np.ndarray, " groups"] | None = None,
    ):
        self._sources, self._sentences = sources, sentences
        end = max((offset + source.groups for source, offset in sources), default=0)
        self._groups = np.arange(end, dtype=np.int32) if groups is None else groups
        self._ends = np.cumsum([len(source) for source, _ in sources])
        parts = collections.defaultdict(list)
        for (source, _), end in zip(sources, self._ends.tolist(), strict=True):
            move = functools.partial(operator.add, end - len(source))
            for pair, numbers in source.pairs.items():
                parts[pair].append(grain.MapDataset.source(numbers).map(move))
        self.pairs = {pair: grain.MapDataset.concatenate(parts[pair]) for pair in sorted(parts)}

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> tuple[Record, Int[np.ndarray, " groups"]]:
        """The record, and the groups of its image or sentence and of each element.

        With `sentences`, the second one is the record's sentence.
        """
        place = int(np.searchsorted(self._ends, index, side="right"))
        source, offset = self._sources[place]
        record = source[int(index - (self._ends[place - 1] if place else 0))]
        elements = record.element_group + np.arange(len(record.elements))
        groups = self._groups[offset + np.append(record.group, elements)]
        if self._sentences is not None:
            groups = np.append(groups, self._sentences[offset + record.group])
        return record, groups


def batch_rows(batch_size: int, batch_mix: Any, kinds: Sequence[str]) -> dict[str, int]:
    """How many rows of each kind a global batch holds.

    Shares that give whole rows are kept exactly. Others are rounded, by largest remainders, to
    multiples of a power of two that divides the batch, so that devices can share them: of the
    largest one that is at most a quarter of the rarest kind's rows. The number of devices has no
    say, so that it may change where a run resumes.

    Args:
      batch_mix: has an attribute for each kind; only their proportions count.
      kinds: those that there are records of.

    Raises:
      DataError: if no kind is left, or one gets no row.
    """
    given = {kind: getattr(batch_mix, kind) for kind in wanted(KINDS, batch_mix)}
    present = {kind: share for kind, share in given.items() if kind in kinds}
    if not any(KINDS[kind].image for kind in present):
        raise DataError(
            f"data.sources offer {sorted(kinds) or 'nothing'} with batch_mix {given}: training "
            "needs strict or weak rows, that is images with two texts each, captioned rows with one "
            "text, or for CCLM region rows"
        )
    total = sum(present.values())
    exact = {kind: batch_size * share / total for kind, share in present.items()}
    rows = {kind: round(count) for kind, count in exact.items()}
    if any(abs(count - rows[kind]) > 1e-6 for kind, count in exact.items()):
        rows = _rounded(batch_size, exact)
    if lacking := [kind for kind, count in rows.items() if not count]:
        raise DataError(
            f"batch_size={batch_size} shared as {present} leaves no row to {', '.join(lacking)}; "
            "make it larger, or set that share to 0"
        )
    return rows


def _rounded(batch_size: int, exact: Mapping[str, float]) -> dict[str, int]:
    """Whole rows near the exact ones, with the same sum; see `batch_rows`."""
    unit = batch_size & -batch_size  # the largest power of two that divides it
    while unit > max(1, min(exact.values()) / 4):
        unit //= 2
    units = {kind: int(count // unit) for kind, count in exact.items()}
    left = batch_size // unit - sum(units.values())
    for kind in sorted(exact, key=lambda kind: -(exact[kind] % unit))[:left]:
        units[kind] += 1
    return {kind: count * unit for kind, count in units.items()}


@dataclasses.dataclass(frozen=True)
class RowMaker:
    """(row number, language pair and place among its records) to a row.

    Randomness is a function of seed and row number. A record whose image turns out to be damaged
    is noted in `skips`, and the pair's next one is read. The limit is for `damaged`, those of this
    kind alone; `skips` holds the whole run's.
    """

    pool: ConcatSource
    kind: str
    tokenizer: Tokenizer
    config: ml_collections.ConfigDict
    skips: Skips
    damaged: Skips

    @property
    def seed(self) -> int:
        """Differs between kinds, so that those made of the same images do not go in step."""
        return (self.config.seed << 8) + list(KINDS).index(self.kind)

    def __call__(self, number: int, drawn: tuple[LanguagePair, int]) -> Row:
        pair, place = drawn
        numbers = self.pool.pairs[pair]
        make_row = region_row if KINDS[self.kind].regions else training_row
        for attempt in range(len(numbers)):
            rng = np.random.Generator(np.random.Philox(key=[self.seed, number]))
            try:
                record, groups = self.pool[numbers[(place + attempt) % len(numbers)]]
                return make_row(record, groups, pair, self.tokenizer, self.config, rng)
            except BadRecord as error:
                self.skips.add(error)
                self.damaged.add(error)
                self.damaged.check(len(self.pool), f"{self.kind} records")
        raise DataError(f"none of the {len(numbers)} {self.kind} records {pair} can be used")


def mixed_pairs(rows: RowMaker) -> grain.MapDataset:
    """Row number → language pair and place among its records (METHOD.md section 4).

    Pairs take turns, the more often the more records offer them; each shuffles its records anew
    when it has gone through them.
    """
    pairs, exponent = rows.pool.pairs, rows.config.data.language_exponent

    def places(pair: LanguagePair) -> grain.MapDataset:
        seed = zlib.crc32(f"{rows.seed} {pair}".encode())
        order = grain.MapDataset.range(len(pairs[pair])).seed(seed).shuffle().repeat()
        return order.map(lambda place: (pair, place))

    weights = [len(numbers) ** exponent for numbers in pairs.values()]
    return grain.MapDataset.mix([places(pair) for pair in pairs], weights)


def make_batches(
    pools: Mapping[str, ConcatSource],
    tokenizer: Tokenizer,
    config: ml_collections.ConfigDict,
    skips: Skips,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.MapDataset:
    """Step number → batch: kind → field → array of this process's rows.

    Processes hold consecutive rows of a batch, so the batch as a whole is the same for any number
    of them.

    Raises:
      DataError: see `batch_rows`; also if processes cannot share a kind's rows evenly.
    """

    def of_kind(kind: str, count: int) -> grain.MapDataset:
        if count % process_count:
            raise DataError(
                f"{count} {kind} rows a batch cannot be shared by {process_count} processes; "
                "make them a multiple with batch_size or batch_mix"
            )
        adapted = tokenizer.with_length(text_sizes(config, KINDS[kind].image)[0])
        rows = RowMaker(pools[kind], kind, adapted, config, skips, Skips(skips.limit))
        numbered = mixed_pairs(rows).map_with_index(rows)
        local = count // process_count
        first = process_index * local
        mine = grain.MapDataset.range(sys.maxsize // count * local)
        return mine.map(lambda i: numbered[i // local * count + first + i % local]).batch(local)

    counts = batch_rows(config.batch_size, config.batch_mix, list(pools))
    parts = {kind: of_kind(kind, count) for kind, count in counts.items()}
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
