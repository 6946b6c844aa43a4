"""All data of a run: its sources opened by name, its held-out records, its tokenizer."""

from __future__ import annotations

import functools
import itertools
import pathlib
import types
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import jax
import ml_collections
import numpy as np
from jax.experimental import multihost_utils

from rc3_jax.data.example import record_captions
from rc3_jax.data.groups import link_groups
from rc3_jax.data.image import decode
from rc3_jax.data.kinds import KINDS, RETRIEVAL
from rc3_jax.data.record import BadRecord, DataError, Record, Skips, Source
from rc3_jax.data.sources import parse_source
from rc3_jax.data.stream import ConcatSource
from rc3_jax.data.text import clean_caption
from rc3_jax.data.tokenizer import (
    FILE_NAME,
    Tokenizer,
    find_or_train_tokenizer,
    from_json,
    load_tokenizer,
)
from rc3_jax.paths import as_path


class Corpus(NamedTuple):
    """All records of a run.

    Attributes:
      pools: kind → training records.
      heldout: images with all their texts, source by source.
      heldout_weak: images with two weak texts, for the dependence figures.
      heldout_parts: source → its places in `heldout`.
    """

    pools: dict[str, ConcatSource]
    heldout: list[Record]
    heldout_weak: list[Record]
    heldout_parts: Mapping[str, range] = types.MappingProxyType({})


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
    heldout: dict[str, Source] = {}
    heldout_weak: dict[str, Source] = {}
    numbered: dict[int, Source] = {}  # first of the groups in the run → a source of them
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
            numbered[groups + offset] = part
        groups += max(offset + part.groups for part, offset in train.values())
        if RETRIEVAL in held:
            heldout[name], _ = held[RETRIEVAL]
        if weak := held.get("weak") or held.get("strict"):
            heldout_weak[name], _ = weak
    links = link_groups([(part.keys(), offset) for offset, part in numbered.items()], groups)
    pools = {
        kind: ConcatSource(parts[kind], links.groups, links.sentences if of.sentence else None)
        for kind, of in KINDS.items()
        if kind in parts
    }
    images = _shared(heldout, config.evaluation.images, skips)
    weak_images = _shared(heldout_weak, config.evaluation.dependence_rows, skips)
    ends = np.cumsum([0, *map(len, images.values())]).tolist()
    parts_of = dict(zip(images, map(range, ends, ends[1:]), strict=True))
    every, every_weak = ([*itertools.chain(*of.values())] for of in (images, weak_images))
    return Corpus(pools, every, every_weak, parts_of)


def _shared(parts: Mapping[str, Source], count: int, skips: Skips) -> dict[str, list[Record]]:
    """The first records of each source, `count` in all: as many of each, as far as they go.

    Raises:
      DataError: a source would get none, or has more damaged ones than `skips` allows.
    """
    if 0 < count < len(parts):
        raise DataError(
            f"{count} held-out images for {len(parts)} sources, {', '.join(parts)}: raise "
            "evaluation.images and evaluation.dependence_rows, or set them to 0"
        )
    taken: dict[str, list[Record]] = {}
    for done, name in enumerate(sorted(parts, key=lambda name: len(parts[name]))):
        left = count - sum(map(len, taken.values()))
        what = f"held-out records of data.sources.{name}"
        taken[name] = _first(parts[name], left // (len(parts) - done), what, skips)
    return {name: taken[name] for name in parts if taken[name]}


def _first(source: Source, count: int, what: str, skips: Skips) -> list[Record]:
    """The first records whose image can be decoded; a damaged one must not end a run later."""
    records: list[Record] = []
    bad = Skips(skips.limit)
    for index in range(len(source)):
        if len(records) == count:
            break
        try:
            record = source[index]
            decode(record.image, record.where)
            records.append(record)
        except BadRecord as error:
            bad.add(error)
    skips.reasons |= bad.reasons
    bad.check(len(records) + len(bad.reasons), what)
    return records


def sampled_texts(
    corpus: Corpus, skips: Skips, count: int = 1000
) -> dict[bool, dict[str, list[str]]]:
    """Texts of so many training records of each kind, at equal distances; bad ones are noted.

    Returns:
      True for records with an image, False for others → language → texts.
    """
    found: dict[bool, dict[str, list[str]]] = {}
    for kind, pool in corpus.pools.items():
        by_language = found.setdefault(KINDS[kind].image, {})
        for index in np.unique(np.linspace(0, len(pool) - 1, count).astype(int)).tolist():
            try:
                record, _ = pool[index]
            except BadRecord as error:
                skips.add(error)
                continue
            for about in record_captions(record):
                for language, texts in about.items():
                    by_language.setdefault(language, []).extend(texts)
    return found


def run_tokenizer(
    config: ml_collections.ConfigDict,
    corpus: Corpus,
    folder: pathlib.Path | None,
    skips: Skips | None = None,
) -> Tokenizer:
    """The tokenizer stored in the run's folder, or the configured one, or a newly trained one.

    The one beside the parameters that the run starts from counts as configured. With several
    processes, the first one sends its tokenizer to the others.

    Args:
      skips: takes note of bad records among those that a vocabulary is trained on.

    Raises:
      DataError: there are no texts to train a vocabulary on, or all records are bad.
    """
    length, settings, clean = config.data.max_length, config.data.tokenizer, None
    if config.data.clean_captions:
        clean = functools.partial(clean_caption, max_words=config.data.max_words)
    text = ""
    if jax.process_index() == 0:
        if path := _stored(folder) or settings.path or _stored(config.init):
            found = load_tokenizer(path, length)
        else:
            texts = itertools.islice(
                _texts(corpus, skips or Skips(config.data.skip_limit)), settings.texts
            )
            found = find_or_train_tokenizer(
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


def _texts(corpus: Corpus, skips: Skips) -> Iterator[str]:
    """Texts of all kinds in turn, so that a limit on their number takes from each.

    Raises:
      DataError: if all records are bad.
    """
    pools = list(corpus.pools.values())
    is_empty = True
    for index in range(max(map(len, pools))):
        for pool in pools:
            if index >= len(pool):
                continue
            try:
                record, _ = pool[index]
            except BadRecord as error:
                skips.add(error)
                continue
            for by_language in record_captions(record):
                for texts in by_language.values():
                    is_empty = False
                    yield from texts
    if is_empty:
        skips.check(len(skips.reasons), "training records")
