"""A run's data opened as its config says: kinds, groups, held-out records, tokenizer."""

from __future__ import annotations

import re

import ml_collections
import numpy as np
import pytest
import tensorflow_datasets as tfds

from rc3_jax.data.corpus import Corpus, open_corpus, run_tokenizer, sampled_texts
from rc3_jax.data.example import evaluation_row
from rc3_jax.data.record import DataError, Skips
from rc3_jax.settings import ConfigError
from tests.data.files import pairs, png, write
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
            texts = {code: f"{code} {i}" for code in ("en", "de", "fr", "ja")}
            yield i, {"image": png(40 * i)} | texts


@pytest.fixture(scope="module")
def tfds_source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    FewPictures(data_dir=folder, file_format="array_record").download_and_prepare()
    fields = dict(
        image="image", translations=dict(en="en", de="de"), captions=dict(fr="fr", ja="ja")
    )
    splits = dict(train_split="train", heldout_split="test")
    return dict(type="tfds", builder="few_pictures", data_dir=str(folder), fields=fields, **splits)


def _line(i: int, split: str) -> dict:
    """An image with captions and, for even numbers, translations."""
    captions = {"en": [f"one {i}", f"two {i}"], "zh": f"图 {i}"}
    line = {"image": f"{split}{i}.png", "split": split, "captions": captions}
    name = str(i) if split == "train" else split + str(i)
    return line | ({} if i % 2 else {"translations": {"en": f"star {name}", "de": f"Stern {name}"}})


@pytest.fixture
def folder(tmp_path):
    """A folder source's settings."""
    lines = []
    for split, count in (("train", TRAIN), ("val", HELDOUT)):
        for i in range(count):
            (tmp_path / f"{split}{i}.png").write_bytes(png(20 * i + (split == "val")))
            lines.append(_line(i, split))
    lines.append(lines[0] | {"captions": {"en": ["again", "and again"]}})
    return dict(
        type="folder",
        captions=str(write(tmp_path / "captions.jsonl", *lines)),
        root=str(tmp_path),
        train_split="train",
        heldout_split="val",
    )


@pytest.fixture
def parallel(tmp_path):
    lines = {code: [text.encode() for text in texts] for code, texts in SENTENCES.items()}
    files = {code: str(write(tmp_path / f"train.{code}", *of)) for code, of in lines.items()}
    return dict(type="parallel", files=files)


def _scenes(**settings) -> dict:
    languages = dict(strict_languages=("en", "de"), weak_languages=("cs",))
    return dict(type="scenes", strict=7, weak=5, parallel=4, **languages) | settings


def _config(**sources) -> ml_collections.ConfigDict:
    config = tiny_config()
    config.data.sources = sources
    return config


def _open(**sources) -> Corpus:
    return open_corpus(ml_collections.FrozenConfigDict(_config(**sources)), Skips())


def _rows(corpus: Corpus) -> list[tuple[str, object, int]]:
    """(kind, record, group) of all training rows."""
    rows = [(kind, *pool[i]) for kind, pool in corpus.pools.items() for i in range(len(pool))]
    return [(kind, record, int(groups[0])) for kind, record, groups in rows]


def _source_of(record) -> str:
    sources = ("captions", "train.", "few_", "scenes")
    return next(name for name in sources if name in record.where)


def _sizes(corpus: Corpus) -> dict[str, int]:
    return {kind: len(pool) for kind, pool in corpus.pools.items()}


def test_kinds_are_opened_as_configured_and_joined(folder, parallel, tfds_source):
    corpus = _open(a=folder, b=parallel, c=tfds_source, d=_scenes())
    assert _sizes(corpus) == {
        "strict": TRAIN // 2 + 1 + TFDS_IMAGES + 7,
        "weak": TRAIN + 1 + TFDS_IMAGES + 5,
        "parallel": len(SENTENCES["en"]) + 4,
    }
    texts = {_source_of(record) for kind, record, _ in _rows(corpus) if kind == "parallel"}
    images = {_source_of(record) for kind, record, _ in _rows(corpus) if kind != "parallel"}
    assert texts == {"train.", "scenes"} and images == {"captions", "few_", "scenes"}
    assert list(_open(b=parallel, a=folder).pools) == ["strict", "weak", "parallel"]
    assert _sizes(_open(a=_scenes(weak=0, parallel=0))) == {"strict": 7}


def test_captioned_and_region_records_are_there_where_shares_want_them(folder):
    config = _config(a=folder, b=_scenes(captioned=3, region=2))
    assert list(open_corpus(config, Skips()).pools) == ["strict", "weak", "parallel"]
    config.batch_mix.update(captioned=1.0)
    pools = open_corpus(config, Skips()).pools
    assert len(pools["captioned"]) == TRAIN + 1 + 3 and "region" not in pools
    assert pools["captioned"][0][0].texts == {
        "en": ("star 0", "one 0", "two 0"),
        "de": ("Stern 0",),
        "zh": ("图 0",),
    }
    assert {pair: len(numbers) for pair, numbers in pools["captioned"].pairs.items()} == {
        ("cs",): 3,
        ("de",): TRAIN // 2 + 1 + 3,
        ("en",): TRAIN + 1 + 3,
        ("zh",): TRAIN,
    }


def test_groups_tell_images_apart_across_sources_and_join_rows_of_one(
    folder, parallel, tfds_source
):
    twice = folder | {"train_split": "val"}  # the same folder, other images
    config = _config(
        a=folder, b=twice, c=parallel, d=tfds_source, e=_scenes(region=3), f=_scenes(seed=1)
    )
    config.batch_mix.region = 1.0
    group_of, kinds_of = {}, {}
    taken: set[int] = set()
    for kind, record, group in _rows(open_corpus(config, Skips())):
        # What a row is about: a file, an example, or a generated scene of its kind and source.
        about = record.image if _source_of(record) == "captions" else (kind, record.where, group)
        if _source_of(record) == "few_":
            about = record.where
        assert group_of.setdefault(about, group) == group
        kinds_of.setdefault(group, []).append(kind)
        taken |= set(range(group, group + 1 + len(record.elements)))
    images = TRAIN + HELDOUT + TFDS_IMAGES
    assert len(group_of) == len(kinds_of) == images + len(SENTENCES["en"]) + 2 * (7 + 5 + 4) + 3
    both = [kinds for kinds in kinds_of.values() if {"strict", "weak"} <= set(kinds)]
    assert len(both) == TRAIN // 2 + HELDOUT // 2 + TFDS_IMAGES
    assert sorted(max(both, key=len)) == ["strict", "strict", "weak", "weak"]  # image 0, twice
    assert len(taken) > len(kinds_of) and max(taken) < 2**31


def test_language_pairs_find_their_records_among_all_sources(folder, tfds_source):
    pool = _open(a=folder, b=_scenes(weak=3), c=tfds_source, d=_scenes(weak=2)).pools["weak"]
    start = TRAIN + 1  # lines that offer English with Chinese, and one that offers English twice
    scenes = {("cs", "en"): [start, start + 2, start + 8], ("cs", "de"): [start + 1, start + 9]}
    expected = {("en", "zh"): [*range(TRAIN)], ("en", "en"): [TRAIN], **scenes}
    expected["fr", "ja"] = [*range(start + 3, start + 8)]
    assert pairs(pool) == expected
    for pair, numbers in expected.items():
        assert all(set(pool[number][0].texts) == set(pair) for number in numbers)


def test_heldout_records_are_those_of_the_heldout_split(folder):
    corpus = _open(a=folder)
    for i, record in enumerate(corpus.heldout):
        translated = {} if i % 2 else {"en": (f"star val{i}",), "de": (f"Stern val{i}",)}
        assert record.texts == {"en": (f"one {i}", f"two {i}"), "zh": (f"图 {i}",)} | translated
    assert [set(record.texts) for record in corpus.heldout_weak] == [{"en", "zh"}] * HELDOUT
    training = {str(record.image) for _, record, _ in _rows(corpus)}
    heldout = {str(record.image) for record in corpus.heldout + corpus.heldout_weak}
    assert len(heldout) == HELDOUT and not heldout & training
    assert evaluation_row(corpus.heldout[3], tiny_config())["image"][0, 0].tolist() == [
        61,
        0,
        0,
    ]


def test_heldout_records_are_shared_among_sources(folder, parallel, tfds_source):
    config = _config(a=folder, b=parallel, c=tfds_source, d=_scenes())
    config.evaluation.update(images=8, dependence_rows=11)
    corpus = open_corpus(config, Skips())
    assert [_source_of(r) for r in corpus.heldout] == ["captions"] * 3 + ["few_"] * 2 + [
        "scenes"
    ] * 3
    assert corpus.heldout_parts == {"a": range(3), "c": range(3, 5), "d": range(5, 8)}
    weak = ["captions"] * 4 + ["few_"] * 3 + ["scenes"] * 4
    assert [_source_of(record) for record in corpus.heldout_weak] == weak
    assert all(0 <= record.relevance <= 1 for record in corpus.heldout_weak[-4:])
    config.evaluation.update(images=1, dependence_rows=1)
    with pytest.raises(DataError, match="1 held-out images for 3 sources, a, c, d") as refused:
        open_corpus(config, Skips())
    assert str(refused.value).endswith("or set them to 0")
    for count in (3, 0):
        advised = re.findall(r"evaluation\.\w+", str(refused.value))
        config.update_from_flattened_dict(dict.fromkeys(advised, count))
        corpus = open_corpus(config, Skips())
        assert len(corpus.heldout) == len(corpus.heldout_weak) == count


def test_damaged_heldout_images_count_against_the_limit(folder, tmp_path):
    for number in range(HELDOUT // 2):
        file = tmp_path / f"val{number}.png"
        file.write_bytes(file.read_bytes()[:45])  # behind its sound header
    skips = Skips(0.4)
    with pytest.raises(DataError, match=r"(?s)data\.sources\.a: 3 of 6 .*val0\.png") as error:
        open_corpus(_config(a=folder), skips)
    assert "40%" in str(error.value) and len(skips.reasons) == HELDOUT // 2
    corpus = open_corpus(_config(a=folder), Skips(0.5))
    assert len(corpus.heldout) == HELDOUT - HELDOUT // 2


def test_strict_records_serve_where_no_heldout_record_is_weak(folder, tmp_path):
    lines = [_line(i, split) for split in ("train", "val") for i in range(0, 6, 2)]
    for line in lines:
        del line["captions"]
    captions = str(write(tmp_path / "strict.jsonl", *lines))
    corpus = _open(a=folder | {"captions": captions})
    assert list(corpus.pools) == ["strict"]
    assert [set(record.texts) for record in corpus.heldout_weak] == [{"en", "de"}] * 3


def test_an_invalid_source_is_named(folder, parallel, tmp_path):
    for named, source in {
        "words.type='paralel'": parallel | {"type": "paralel"},
        "words.type": {"files": {}},
        "words.file: ": parallel | {"file": "x"},
        "words.files": parallel | {"files": {"en": "x"}},
    }.items():
        with pytest.raises(ConfigError, match=rf"data\.sources\.{named}"):
            _open(words=source)
    with pytest.raises(DataError, match=r"data\.sources is empty"):
        _open()
    single = {"image": "train1.png", "captions": {"en": "one text"}}
    lines = [single | {"split": split} for split in ("train", "val")]
    captions = str(write(tmp_path / "single.jsonl", *lines))
    for source in (folder | {"captions": captions}, _scenes(strict=0, weak=0, parallel=0)):
        with pytest.raises(DataError, match=r"data\.sources\.words offers nothing") as refused:
            _open(words=source, a=folder)
        assert str(refused.value).endswith("leave the source out") and _open(a=folder).pools


def test_unusable_records_are_noted(folder, tmp_path):
    lines = [_line(i, split) for split in ("train", "val") for i in range(2)]
    captions = str(write(tmp_path / "bad.jsonl", *lines, _line(99, "train")))
    skips = Skips(limit=0.5)
    open_corpus(_config(a=folder | {"captions": captions}), skips)
    skips.write(tmp_path / "skipped.jsonl")
    assert list(skips.reasons) == [f"{captions}:5"]
    assert f"{captions}:5" in (tmp_path / "skipped.jsonl").read_text()


def _ids(tokenizer, text: str) -> list[int]:
    return tokenizer.encode([text])[0].tolist()


def test_the_tokenizer_is_trained_on_texts_of_every_kind(folder, parallel, tmp_path):
    (tmp_path / "regions.npz").write_bytes(b"damaged")
    lines = [_line(1, "train") | {"region_features": "regions.npz"}]
    lines += [_line(0, split) for split in ("train", "val")]
    captions = str(write(tmp_path / "regions.jsonl", *lines))
    config = _config(a=folder | {"captions": captions}, b=parallel)
    config.data.tokenizer.update(vocab_size=300, texts=8)
    tokenizer = run_tokenizer(config, open_corpus(config, Skips()), None)
    assert tokenizer.encode(["x"]).shape == (1, config.data.max_length)
    for text in ("star", "图", "kočka"):  # a strict, a weak and a parallel text
        assert 3 not in _ids(tokenizer, text), text
    assert 3 in _ids(tokenizer, "pes")  # from beyond the limit
    config.data.tokenizer.texts = 1000
    assert 3 not in _ids(run_tokenizer(config, open_corpus(config, Skips()), None), "pes")


def test_records_that_are_bad_are_noted_where_a_vocabulary_is_trained(folder, tmp_path):
    outside = {"boxes_xyxy": [[0, 0, 9999, 9999]]}
    lines = [_line(1, "train") | outside, _line(0, "train"), _line(0, "val")]
    captions = str(write(tmp_path / "boxes.jsonl", *lines))
    config = _config(a=folder | {"captions": captions})
    config.data.tokenizer.update(vocab_size=300, texts=8)
    skips = Skips()
    corpus = open_corpus(config, skips)
    run_tokenizer(config, corpus, None, skips)
    assert list(skips.reasons) == [f"{captions}:1"]
    other = Skips()
    sampled_texts(corpus, other)
    assert other.reasons == skips.reasons
    write(tmp_path / "boxes.jsonl", lines[0], lines[2])
    with pytest.raises(DataError, match="boxes.jsonl:1: box .* outside"):
        run_tokenizer(config, open_corpus(config, Skips()), None)


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
    # Where training starts from comes before a new one; the configured one before that.
    config.init = str(run_folder)
    assert run_tokenizer(config, other_corpus, None).to_json() == first.to_json()
    (tmp_path / "tokenizer.json").write_text(fresh.to_json(), encoding="utf-8")
    config.data.tokenizer.path = str(tmp_path / "tokenizer.json")
    assert run_tokenizer(config, corpus, tmp_path / "new").to_json() == fresh.to_json()
    assert run_tokenizer(config, corpus, run_folder).to_json() == first.to_json()
    config.data.max_length = 6
    assert run_tokenizer(config, corpus, run_folder).encode(texts).shape == (3, 6)
