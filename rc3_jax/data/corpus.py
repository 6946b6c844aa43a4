"""All data of a run: its sources opened by name, its held-out records, its tokenizer."""

from __future__ import annotations

import dataclasses
import functools
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
from rc3_jax.data.region_rows import record_captions
from rc3_jax.data.scenes import SceneSource
from rc3_jax.data.sources.cclm import Layout, read_captions, read_sentences
from rc3_jax.data.sources.cclm_regions import read_regions
from rc3_jax.data.sources.folder import read_folder
from rc3_jax.data.sources.parallel import ParallelSource
from rc3_jax.data.sources.rows import ImageRow, ImageTextSource, texts_of_kind
from rc3_jax.data.stream import KINDS, Pool
from rc3_jax.data.text import clean_caption
from rc3_jax.data.tokenizer import (
    FILE_NAME,
    Tokenizer,
    from_json,
    load_tokenizer,
    train_tokenizer,
)

Kinds = dict[str, tuple[Source, int]]
"""Kind → its source and the offset of its groups within one configured source."""

ON_REQUEST = ("captioned", "region")
"""Kinds that sources offer only where the configuration's shares want them."""


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
        opened = _opener(name, source.type)(source, config, skips)
        if opened is None:
            continue
        train, held = opened
        if not train:
            raise DataError(
                f"data.sources.{name} offers nothing to train on: images with two texts each, "
                "parallel sentences or, where shares want them, captioned images and regions; add "
                "them, or leave the source out"
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


def _opener(name: str, kind: str) -> Callable[..., tuple[Kinds, Kinds] | None]:
    """What opens a type of source; it returns None for one whose only kind no share wants."""
    openers = {
        "scenes": _open_scenes,
        "folder": _open_folder,
        "parallel": _open_parallel,
        "tfds": _open_tfds,
        "cclm": _open_cclm,
    }
    if kind not in openers:
        raise DataError(
            f"data.sources.{name}.type={kind!r} is unknown; use one of {', '.join(openers)}"
        )
    return openers[kind]


def _wanted(kinds: Sequence[str], config) -> list[str]:
    return [kind for kind in kinds if config.shares.get(kind, 0) > 0]


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
    sizes |= {kind: source.get(kind, 0) for kind in _wanted(ON_REQUEST, config)}
    train, offset = {}, 0
    for kind, size in sizes.items():
        if size:
            train[kind] = scenes(kind, "train", size, offset)
            offset += train[kind][0].groups
    sizes = {"retrieval": config.evaluation.images, "weak": config.evaluation.dependence_rows}
    return train, {kind: scenes(kind, "heldout", size) for kind, size in sizes.items() if size}


def _open_folder(source, config, skips) -> tuple[Kinds, Kinds]:
    def read(split: str | None) -> list[ImageRow]:
        return read_folder(source.captions, source.root, split, skips)

    return _train_and_heldout(source, config, read)


def _open_parallel(source, config, skips) -> tuple[Kinds, Kinds]:
    return {"parallel": (ParallelSource(dict(source.files), skips), 0)}, {}


def _open_tfds(source, config, skips) -> tuple[Kinds, Kinds]:
    from rc3_jax.data.sources.tfds import read_tfds

    def read(split: str) -> list[ImageRow]:
        return read_tfds(source.builder, source.data_dir, split, source.fields.to_dict(), skips)

    return _train_and_heldout(source, config, read)


def _open_cclm(source, config, skips) -> tuple[Kinds, Kinds] | None:
    settings = {name: value for name, value in source.items() if name != "type"}
    known = {"path", "heldout_path", *(field.name for field in dataclasses.fields(Layout))}
    if not {"path", "format"} <= settings.keys() <= known:
        raise DataError(
            f"a source of type cclm has the settings {sorted(settings)}; give path and format, "
            f"and no others than {sorted(known)}"
        )
    path, heldout_path = settings.pop("path"), settings.pop("heldout_path", None)
    layout = Layout(**settings)
    single = {"parallel": ("parallel", read_sentences), "regions": ("region", read_regions)}
    if layout.format in single:
        kind, read = single[layout.format]
        if heldout_path:
            raise DataError(f"{heldout_path}: format {layout.format} has no held-out part")
        return ({kind: (read(path, layout, skips), 0)}, {}) if _wanted([kind], config) else None
    wanted = _wanted(("strict", "weak", "captioned"), config)
    if not wanted:
        return None
    train = _image_text_kinds(read_captions(path, layout, skips), wanted)
    if not heldout_path:
        return train, {}
    return train, _heldout_kinds(read_captions(heldout_path, layout, skips))


def _train_and_heldout(
    source, config, read: Callable[[str], list[ImageRow]]
) -> tuple[Kinds, Kinds]:
    wanted = ("strict", "weak", *_wanted(("captioned",), config))
    train = _image_text_kinds(read(source.train_split), wanted)
    return train, _heldout_kinds(read(source.heldout_split))


def _heldout_kinds(rows: Sequence[ImageRow]) -> Kinds:
    return _image_text_kinds(rows, ("retrieval", "strict", "weak"))


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

    The one beside the parameters that the run starts from counts as configured.

    With several processes the first one finds it and tells the others.
    """
    length, clean = config.data.max_length, None
    if config.data.clean_captions:
        clean = functools.partial(clean_caption, max_words=config.data.max_words)
    text = ""
    if jax.process_index() == 0:
        stored = None if folder is None else folder / FILE_NAME
        if stored is not None and stored.exists():
            found = load_tokenizer(str(stored), length)
        elif path := config.data.tokenizer.path or _tokenizer_of_start(config):
            found = load_tokenizer(path, length)
        else:
            texts = itertools.islice(_texts(corpus), config.data.tokenizer.texts)
            texts = map(clean, texts) if clean else texts
            found = train_tokenizer(texts, config.data.tokenizer.vocab_size, length)
        text = found.to_json()
    return from_json(_from_first_process(text), length, clean)


def _tokenizer_of_start(config: ml_collections.ConfigDict) -> str | None:
    path = pathlib.Path(config.init or "") / FILE_NAME
    return str(path) if config.init and path.is_file() else None


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
            for by_language in record_captions(record):
                for texts in by_language.values():
                    yield from texts
