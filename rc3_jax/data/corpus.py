"""All data of a run: its sources opened by name, its held-out records, its tokenizer."""

from __future__ import annotations

import itertools
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import ml_collections
import numpy as np
from jax.experimental import multihost_utils

from rc3_jax.data.image import decode
from rc3_jax.data.record import BadRecord, DataError, Record, Skips, Source
from rc3_jax.data.scenes import SceneSource
from rc3_jax.data.sources.folder import read_folder
from rc3_jax.data.sources.parallel import ParallelSource
from rc3_jax.data.sources.rows import ImageRow, ImageTextSource, texts_of_kind
from rc3_jax.data.stream import KINDS, Pool
from rc3_jax.data.tokenizer import (
    FILE_NAME,
    Tokenizer,
    from_json,
    load_tokenizer,
    train_tokenizer,
)

Kinds = dict[str, tuple[Source, int]]
"""Kind → its source and the offset of its groups within one configured source."""


class Corpus(NamedTuple):
    """Attributes: pools: kind → training records; heldout: images with all their texts;
    heldout_weak: images with two weak texts, for the dependence figures.
    """

    pools: dict[str, Pool]
    heldout: list[Record]
    heldout_weak: list[Record]


def open_corpus(config: ml_collections.ConfigDict, skips: Skips) -> Corpus:
    """Opens every source that `config.data.sources` names.

    Raises:
      DataError: if there is none, or one cannot be read; with the remedy.
    """
    if not config.data.sources:
        raise DataError(
            "data.sources is empty; name at least one source, as configs/rc3_flickr.py does"
        )
    pools: dict[str, list[tuple[Source, int]]] = {}
    heldout: list[Record] = []
    heldout_weak: list[Record] = []
    groups = 0
    for name, source in config.data.sources.items():
        train, held = _opener(name, source.type)(source, config, skips)
        if not train:
            raise DataError(
                f"data.sources.{name} offers nothing to train on: images with two texts each, or "
                "parallel sentences; add them, or leave the source out"
            )
        for kind, (part, offset) in train.items():
            pools.setdefault(kind, []).append((part, groups + offset))
        groups += max(offset + part.groups for part, offset in train.values())
        heldout += _first(held.get("retrieval"), config.evaluation.images - len(heldout), skips)
        rows = config.evaluation.dependence_rows - len(heldout_weak)
        heldout_weak += _first(held.get("weak") or held.get("strict"), rows, skips)
    ordered = {kind: Pool(pools[kind]) for kind in KINDS if kind in pools}
    return Corpus(ordered, heldout, heldout_weak)


def _first(part: tuple[Source, int] | None, count: int, skips: Skips) -> list[Record]:
    """The first records whose image can be decoded; a damaged one must not end a run later."""
    records: list[Record] = []
    source = () if part is None else part[0]
    for index in range(len(source)):
        if len(records) >= count:
            break
        try:
            record = source[index]
            decode(record.image, record.where)
            records.append(record)
        except BadRecord as error:
            skips.add(str(error).split(": ")[0], str(error))
    return records


def _opener(name: str, kind: str) -> Callable[..., tuple[Kinds, Kinds]]:
    openers = {
        "scenes": _open_scenes,
        "folder": _open_folder,
        "parallel": _open_parallel,
        "tfds": _open_tfds,
    }
    if kind not in openers:
        raise DataError(
            f"data.sources.{name}.type={kind!r} is unknown; use one of {', '.join(openers)}"
        )
    return openers[kind]


def _open_scenes(source, config, skips) -> tuple[Kinds, Kinds]:
    def scenes(kind: str, split: str, size: int, offset: int = 0):
        made = SceneSource(
            kind,
            split,
            size,
            source.seed,
            strict_languages=tuple(source.strict_languages),
            weak_languages=tuple(source.weak_languages),
            feature_size=config.model.roi.feature_size,
        )
        return made, offset

    sizes = {"strict": source.strict, "weak": source.weak, "parallel": source.parallel}
    train, offset = {}, 0
    for kind, size in sizes.items():
        if size:
            train[kind] = scenes(kind, "train", size, offset)
            offset += size
    sizes = {"retrieval": config.evaluation.images, "weak": config.evaluation.dependence_rows}
    return train, {kind: scenes(kind, "heldout", size) for kind, size in sizes.items() if size}


def _open_folder(source, config, skips) -> tuple[Kinds, Kinds]:
    def read(split: str | None) -> list[ImageRow]:
        return read_folder(source.captions, source.root, split, skips)

    return _train_and_heldout(source, read)


def _open_parallel(source, config, skips) -> tuple[Kinds, Kinds]:
    return {"parallel": (ParallelSource(dict(source.files), skips), 0)}, {}


def _open_tfds(source, config, skips) -> tuple[Kinds, Kinds]:
    from rc3_jax.data.sources.tfds import read_tfds

    def read(split: str) -> list[ImageRow]:
        return read_tfds(source.builder, source.data_dir, split, source.fields.to_dict(), skips)

    return _train_and_heldout(source, read)


def _train_and_heldout(source, read: Callable[[str], list[ImageRow]]) -> tuple[Kinds, Kinds]:
    train = _image_text_kinds(read(source.train_split), ("strict", "weak"))
    return train, _image_text_kinds(read(source.heldout_split), ("retrieval", "strict", "weak"))


def _image_text_kinds(rows: Sequence[ImageRow], wanted: Sequence[str]) -> Kinds:
    """The wanted kinds that some row offers; all of them number their groups alike."""
    offered = {
        kind
        for kind in wanted
        if any(texts_of_kind(kind, row.translations, row.captions) for row in rows)
    }
    return {kind: (ImageTextSource(rows, kind), 0) for kind in wanted if kind in offered}


def run_tokenizer(
    config: ml_collections.ConfigDict, corpus: Corpus, folder: pathlib.Path | None
) -> Tokenizer:
    """The tokenizer stored in the run's folder, or the configured one, or a newly trained one.

    With several processes the first one finds it and tells the others.
    """
    length = config.data.max_length
    text = ""
    if jax.process_index() == 0:
        stored = None if folder is None else folder / FILE_NAME
        if stored is not None and stored.exists():
            found = load_tokenizer(str(stored), length)
        elif config.data.tokenizer.path:
            found = load_tokenizer(config.data.tokenizer.path, length)
        else:
            texts = itertools.islice(_texts(corpus), config.data.tokenizer.texts)
            found = train_tokenizer(texts, config.data.tokenizer.vocab_size, length)
        text = found.to_json()
    return from_json(_from_first_process(text), length)


def _from_first_process(text: str) -> str:
    if jax.process_count() == 1:
        return text
    size = int(multihost_utils.broadcast_one_to_all(np.int64(len(text.encode()))))
    data = np.zeros(size, np.uint8)
    if text:
        data[:] = np.frombuffer(text.encode(), np.uint8)
    return bytes(np.asarray(multihost_utils.broadcast_one_to_all(data), np.uint8)).decode()


def _texts(corpus: Corpus) -> Iterator[str]:
    """Texts of all kinds in turn, so that a limit on their number takes from each."""
    pools = list(corpus.pools.values())
    for index in range(max(map(len, pools))):
        for pool in pools:
            if index >= len(pool):
                continue
            try:
                record, _ = pool[index]
            except BadRecord:  # counted when the stream reads it
                continue
            for texts in record.texts.values():
                yield from texts
