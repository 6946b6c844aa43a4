"""A run's data opened as its config says: kinds, groups, held-out records, tokenizer."""

from __future__ import annotations

import io
import json

import ml_collections
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from rc3_jax.data.corpus import Corpus, open_corpus, run_tokenizer
from rc3_jax.data.example import evaluation_row
from rc3_jax.data.record import DataError, Skips
from tests.tiny import tiny_config

TRAIN, HELDOUT = 10, 6  # images of the folder
SENTENCES = {"en": ["one cat", "two cats", "a dog"], "cs": ["kočka", "dvě kočky", "pes"]}
TFDS_IMAGES = 5


class FewPictures(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Pictures with translations and captions."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        text = tfds.features.Text()
        features = {"image": tfds.features.Image(), "en": text, "de": text, "fr": text, "ja": text}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(TFDS_IMAGES), "test": self._generate_examples(3)}

    def _generate_examples(self, count):
        for i in range(count):
            image = io.BytesIO()
            Image.new("RGB", (6, 6), (40 * i, 0, 0)).save(image, "PNG")
            texts = {code: f"{code} {i}" for code in ("en", "de", "fr", "ja")}
            yield i, {"image": image.getvalue()} | texts


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    FewPictures(data_dir=folder, file_format="array_record").download_and_prepare()
    return folder


def _write_lines(path, lines: list[dict]) -> str:
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return str(path)


def _line(i: int, split: str) -> dict:
    """An image with captions and, for even numbers, translations."""
    line = {
        "image": f"{split}{i}.png",
        "split": split,
        "captions": {"en": [f"one {i}", f"two {i}"], "zh": f"图 {i}"},
    }
    if i % 2 == 0:
        line["translations"] = {"en": f"star {i}", "de": f"Stern {i}"}
    return line


@pytest.fixture
def folder(tmp_path):
    """A folder source's settings."""
    lines = []
    for split, count in (("train", TRAIN), ("val", HELDOUT)):
        for i in range(count):
            colour = (20 * i, 0, 255 * (split == "val"))
            Image.new("RGB", (12, 8), colour).save(tmp_path / f"{split}{i}.png")
            lines.append(_line(i, split))
    lines.append(lines[0] | {"captions": {"en": ["again", "and again"]}})
    return dict(
        type="folder",
        captions=_write_lines(tmp_path / "captions.jsonl", lines),
        root=str(tmp_path),
        train_split="train",
        heldout_split="val",
    )


@pytest.fixture
def parallel(tmp_path):
    files = {}
    for code, sentences in SENTENCES.items():
        files[code] = str(tmp_path / f"train.{code}")
        (tmp_path / f"train.{code}").write_text("\n".join(sentences), encoding="utf-8")
    return dict(type="parallel", files=files)


def _scenes(**sizes) -> dict:
    languages = dict(strict_languages=("en", "de"), weak_languages=("cs",))
    return dict(type="scenes", seed=0, **dict(strict=7, weak=5, parallel=4) | sizes, **languages)


def _tfds(data_dir) -> dict:
    return dict(
        type="tfds",
        builder="few_pictures",
        data_dir=str(data_dir),
        train_split="train",
        heldout_split="test",
        fields=dict(
            image="image",
            translations=dict(en="en", de="de"),
            captions=dict(fr="fr", ja="ja"),
        ),
    )


def _config(**sources) -> ml_collections.ConfigDict:
    config = tiny_config()
    config.data.sources = sources
    return config


def _open(**sources) -> Corpus:
    return open_corpus(ml_collections.FrozenConfigDict(_config(**sources)), Skips())


def _rows(corpus: Corpus) -> list[tuple[str, object, int]]:
    """(kind, record, group) of all training rows."""
    return [
        (kind, *pool[index]) for kind, pool in corpus.pools.items() for index in range(len(pool))
    ]


def _source_of(record) -> str:
    where = record.where
    return next(name for name in ("captions", "train.", "few_", "scenes") if name in where)


def test_kinds_are_opened_as_configured_and_joined(folder, parallel, data_dir):
    every = dict(a=folder, b=parallel, c=_tfds(data_dir), d=_scenes())
    corpus = _open(**every)
    sizes = {kind: len(pool) for kind, pool in corpus.pools.items()}
    assert sizes == {
        "strict": TRAIN // 2 + 1 + TFDS_IMAGES + 7,
        "weak": TRAIN + 1 + TFDS_IMAGES + 5,
        "parallel": len(SENTENCES["en"]) + 4,
    }
    assert {_source_of(record) for kind, record, _ in _rows(corpus) if kind == "parallel"} == {
        "train.",
        "scenes",
    }
    assert {_source_of(r) for kind, r, _ in _rows(corpus) if kind != "parallel"} == {
        "captions",
        "few_",
        "scenes",
    }
    alone = _open(b=parallel, a=folder)
    assert {kind: len(pool) for kind, pool in alone.pools.items()} == {
        "strict": TRAIN // 2 + 1,
        "weak": TRAIN + 1,
        "parallel": len(SENTENCES["en"]),
    }


def test_groups_tell_images_apart_across_sources_and_join_rows_of_one(folder, parallel, data_dir):
    twice = folder | {"train_split": "val"}  # the same folder, other images
    every = dict(a=folder, b=twice, c=parallel, d=_tfds(data_dir), e=_scenes())
    group_of, kinds_of = {}, {}
    for kind, record, group in _rows(_open(**every)):
        source = _source_of(record)
        # What a row is about: a file, an example, or a generated scene of its kind.
        about = str(record.image) if source == "captions" else record.where
        assert group_of.setdefault((source, about), group) == group
        kinds_of.setdefault(group, []).append(kind)
    images = TRAIN + HELDOUT + TFDS_IMAGES
    assert len(group_of) == images + len(SENTENCES["en"]) + 7 + 5 + 4
    assert len(set(group_of.values())) == len(group_of)
    both = [kinds for kinds in kinds_of.values() if {"strict", "weak"} <= set(kinds)]
    assert len(both) == TRAIN // 2 + HELDOUT // 2 + TFDS_IMAGES
    assert sorted(max(both, key=len)) == ["strict", "strict", "weak", "weak"]  # image 0, twice


def test_language_pairs_find_their_records_among_all_sources(folder, data_dir):
    pool = _open(a=folder, b=_scenes(weak=3), c=_tfds(data_dir), d=_scenes(weak=2)).pools["weak"]
    start = TRAIN + 1  # lines that offer English with Chinese, and one that offers English twice
    scenes = {("cs", "en"): [start, start + 2, start + 8], ("cs", "de"): [start + 1, start + 9]}
    pairs = {("en", "zh"): [*range(TRAIN)], ("en", "en"): [TRAIN], **scenes}
    pairs["fr", "ja"] = [*range(start + 3, start + 8)]
    assert {pair: list(numbers) for pair, numbers in pool.pairs.items()} == pairs
    for pair, numbers in pairs.items():
        assert all(set(pool[number][0].texts) == set(pair) for number in numbers)


def test_heldout_records_are_those_of_the_heldout_split(folder, data_dir):
    corpus = _open(a=folder)
    assert [record.texts for record in corpus.heldout] == [
        _texts_for_retrieval(i) for i in range(HELDOUT)
    ]
    assert [set(record.texts) for record in corpus.heldout_weak] == [{"en", "zh"}] * HELDOUT
    training = {str(record.image) for _, record, _ in _rows(corpus)}
    heldout = {str(record.image) for record in corpus.heldout + corpus.heldout_weak}
    assert len(heldout) == HELDOUT and not heldout & training
    config = tiny_config()
    pixels = evaluation_row(corpus.heldout[3], config)["image"]
    assert pixels[0, 0].tolist() == [60, 0, 255]


def _texts_for_retrieval(i: int) -> dict:
    translated = {"en": (f"star {i}",), "de": (f"Stern {i}",)} if i % 2 == 0 else {}
    return {"en": (f"one {i}", f"two {i}"), "zh": (f"图 {i}",)} | translated


def test_heldout_records_of_all_sources_are_limited_together(folder, parallel, data_dir):
    config = _config(a=folder, b=parallel, c=_tfds(data_dir), d=_scenes())
    config.evaluation.update(images=8, dependence_rows=11)
    corpus = open_corpus(config, Skips())
    assert [_source_of(r) for r in corpus.heldout] == ["captions"] * 6 + ["few_"] * 2
    assert [_source_of(r) for r in corpus.heldout_weak] == (
        ["captions"] * 6 + ["few_"] * 3 + ["scenes"] * 2
    )
    config.evaluation.update(images=0, dependence_rows=0)
    corpus = open_corpus(config, Skips())
    assert corpus.heldout == corpus.heldout_weak == []


def test_strict_records_serve_where_no_heldout_record_is_weak(folder, tmp_path):
    lines = [_line(i, split) for split in ("train", "val") for i in range(0, 6, 2)]
    for line in lines:
        del line["captions"]
    captions = _write_lines(tmp_path / "strict.jsonl", lines)
    corpus = _open(a=folder | {"captions": captions})
    assert list(corpus.pools) == ["strict"]
    assert [set(record.texts) for record in corpus.heldout_weak] == [{"en", "de"}] * 3


def test_heldout_scenes_know_their_relevance_and_differ_from_training():
    corpus = _open(a=_scenes())
    assert len(corpus.heldout) == len(corpus.heldout_weak) == 8
    assert all(set(record.texts) == {"en", "de", "cs"} for record in corpus.heldout)
    assert all(0 <= record.relevance <= 1 for record in corpus.heldout_weak)
    seen = {record.image().tobytes() for _, record, _ in _rows(corpus) if record.image}
    assert not seen & {record.image().tobytes() for record in corpus.heldout}


def test_the_kinds_of_scenes_that_are_left_out_are_not_there():
    assert list(_open(a=_scenes(weak=0, parallel=0)).pools) == ["strict"]


def test_no_source_is_an_error_with_the_remedy():
    with pytest.raises(DataError, match="data.sources is empty; name at least one source"):
        _open()


def test_an_unknown_type_is_an_error_that_names_the_known_ones(parallel):
    with pytest.raises(DataError) as caught:
        _open(words=parallel | {"type": "paralel"})
    message = str(caught.value)
    assert message.startswith("data.sources.words.type='paralel' is unknown")
    assert "scenes, folder, parallel, tfds" in message


def test_a_source_with_nothing_to_train_on_is_an_error_that_names_it(folder, tmp_path):
    lines = [
        {"image": "train1.png", "split": split, "captions": {"en": "one text"}}
        for split in ("train", "val")
    ]
    captions = _write_lines(tmp_path / "single.jsonl", lines)
    message = r"data\.sources\.pairs offers nothing to train on: images with two texts"
    for source in (folder | {"captions": captions}, _scenes(strict=0, weak=0, parallel=0)):
        with pytest.raises(DataError, match=message):
            _open(pairs=source)


def test_unusable_records_are_handed_to_the_run(folder, tmp_path):
    lines = [_line(i, split) for split in ("train", "val") for i in range(2)]
    captions = _write_lines(tmp_path / "bad.jsonl", [*lines, _line(99, "train")])
    skips = Skips(limit=0.5)
    open_corpus(_config(a=folder | {"captions": captions}), skips)
    assert list(skips.reasons) == [f"{captions}:5"]


def _ids(tokenizer, text: str) -> list[int]:
    return tokenizer.encode([text])[0].tolist()


def test_the_tokenizer_is_trained_on_texts_of_every_kind(folder, parallel):
    config = _config(a=folder, b=parallel)
    config.data.tokenizer.update(vocab_size=300, texts=8)
    tokenizer = run_tokenizer(config, open_corpus(config, Skips()), None)
    assert tokenizer.encode(["x"]).shape == (1, config.data.max_length)
    for text in ("star", "图", "kočka"):  # a strict, a weak and a parallel text
        assert 3 not in _ids(tokenizer, text), text
    assert 3 in _ids(tokenizer, "pes")  # from beyond the limit
    config.data.tokenizer.texts = 1000
    assert 3 not in _ids(run_tokenizer(config, open_corpus(config, Skips()), None), "pes")


def test_the_tokenizer_in_the_runs_folder_is_used_again(folder, parallel, tmp_path):
    config = _config(a=folder, b=parallel)
    corpus = open_corpus(config, Skips())
    run_folder = tmp_path / "run"
    run_folder.mkdir()
    first = run_tokenizer(config, corpus, run_folder)
    (run_folder / "tokenizer.json").write_text(first.to_json(), encoding="utf-8")
    texts = ["star 1", "dvě kočky", "图 3"]
    # Other data and other settings would give another one.
    config.data.tokenizer.update(vocab_size=60, texts=40)
    other_corpus = Corpus({"parallel": corpus.pools["parallel"]}, [], [])
    again = run_tokenizer(config, other_corpus, run_folder)
    assert np.array_equal(again.encode(texts), first.encode(texts))
    fresh = run_tokenizer(config, other_corpus, None)
    assert not np.array_equal(fresh.encode(texts), first.encode(texts))
    # It comes before the configured one, which comes before a new one.
    other = tmp_path / "tokenizer.json"
    other.write_text(fresh.to_json(), encoding="utf-8")
    config.data.tokenizer.path = str(other)
    assert run_tokenizer(config, corpus, run_folder).to_json() == again.to_json()
    assert run_tokenizer(config, corpus, tmp_path / "new").to_json() == fresh.to_json()
    config.data.max_length = 6
    assert run_tokenizer(config, corpus, run_folder).encode(texts).shape == (3, 6)


def test_a_damaged_region_file_does_not_keep_the_tokenizer_from_its_texts(folder, tmp_path):
    lines = [_line(0, split) for split in ("train", "val")]
    (tmp_path / "regions.npz").write_bytes(b"damaged")
    lines.append(_line(1, "train") | {"region_features": "regions.npz"})
    config = _config(a=folder | {"captions": _write_lines(tmp_path / "regions.jsonl", lines)})
    corpus = open_corpus(config, Skips())
    assert len(corpus.pools["weak"]) == 2
    tokenizer = run_tokenizer(config, corpus, None)
    assert 3 not in _ids(tokenizer, "Stern 0")
