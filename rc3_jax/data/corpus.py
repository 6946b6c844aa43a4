"""All data of a run: its sources opened by name, its held-out records, its tokenizer."""

from __future__ import annotations

import functools
import itertools
import pathlib
from collections.abc import Iterator
from typing import NamedTuple

import jax
import ml_collections
import numpy as np
from jax.experimental import multihost_utils

from rc3_jax.data.example import record_captions
from rc3_jax.data.image import decode
from rc3_jax.data.kinds import KINDS, RETRIEVAL
from rc3_jax.data.record import BadRecord, DataError, Record, Skips, Source
from rc3_jax.data.sources import parse_source
from rc3_jax.data.stream import ConcatSource
from rc3_jax.data.text import clean_caption
from rc3_jax.data.tokenizer import (
    FILE_NAME,
    Tokenizer,
    from_json,
    load_tokenizer,
    train_tokenizer,
)
from rc3_jax.paths import as_path


class Corpus(NamedTuple):
    """Attributes: pools: kind → training records; heldout: images with all their texts;
    heldout_weak: images with two weak texts, for the dependence figures.
    """

    pools: dict[str, ConcatSource]
    heldout: list[Record]
    heldout_weak: list[Record]


def open_corpus(config: ml_collections.ConfigDict, skips: Skips) -> Corpus:
    """Opens every source that `config.data.sources` names.

    Raises:
      ConfigError, DataError: if there is none, or one cannot be read; with the remedy.
    """
    if not config.data.sources:
        raise DataError(
            "data.sources is empty; name at least one source, as configs/rc3_flickr.py does"
        )
    parts: dict[str, list[tuple[Source, int]]] = {}
    heldout: list[Record] = []
    heldout_weak: list[Record] = []
    groups = 0
    for name, settings in config.data.sources.items():
        opened = parse_source(settings, f"data.sources.{name}").open(config, skips)
        if opened is None:
            continue
        train, held = opened
        if not train:
            raise DataError(
                f"data.sources.{name} offers nothing to train on: images with two texts each, "
                "parallel sentences or, where batch_mix wants them, captioned images and regions; add "
                "them, or leave the source out"
            )
        for kind, (part, offset) in train.items():
            parts.setdefault(kind, []).append((part, groups + offset))
        groups += max(offset + part.groups for part, offset in train.values())
        heldout += _first(held.get(RETRIEVAL), config.evaluation.images - len(heldout), skips)
        rows = config.evaluation.dependence_rows - len(heldout_weak)
        heldout_weak += _first(held.get("weak") or held.get("strict"), rows, skips)
    ordered = {kind: ConcatSource(parts[kind]) for kind in KINDS if kind in parts}
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
            skips.add(error)
    return records


def run_tokenizer(
    config: ml_collections.ConfigDict, corpus: Corpus, folder: pathlib.Path | None
) -> Tokenizer:
    """The tokenizer stored in the run's folder, or the configured one, or a newly trained one.

    The one beside the parameters that the run starts from counts as configured. With several
    processes, the first one sends its tokenizer to the others.
    """
    length, settings, clean = config.data.max_length, config.data.tokenizer, None
    if config.data.clean_captions:
        clean = functools.partial(clean_caption, max_words=config.data.max_words)
    text = ""
    if jax.process_index() == 0:
        if path := _stored(folder) or settings.path or _stored(config.init):
            found = load_tokenizer(path, length)
        else:
            texts = itertools.islice(_texts(corpus), settings.texts)
            found = train_tokenizer(
                map(clean, texts) if clean else texts, settings.vocab_size, length
            )
        text = found.to_json()
    return from_json(_from_first_process(text), length, clean)


def _stored(folder: pathlib.Path | str | None) -> str | None:
    """The tokenizer's file in a folder, if there is one."""
    path = as_path(folder or "") / FILE_NAME
    return str(path) if folder and path.is_file() else None


def _from_first_process(text: str) -> str:
    if jax.process_count() == 1:
        return text
    size = int(multihost_utils.broadcast_one_to_all(np.int64(len(text.encode()))))
    data = np.frombuffer(text.encode().ljust(size), np.uint8)
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
            for by_language in record_captions(record):
                for texts in by_language.values():
                    yield from texts
