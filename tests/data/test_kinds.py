"""Captioned and region rows from sources to batches, and that the other kinds never notice."""

from __future__ import annotations

import functools
import json

import jax
import ml_collections
import numpy as np
import pytest
from PIL import Image

from rc3_jax.data import corpus as corpus_module
from rc3_jax.data import image as image_module
from rc3_jax.data.corpus import open_corpus, run_tokenizer
from rc3_jax.data.example import abstract_batch, evaluation_row, example_batch, example_rows
from rc3_jax.data.record import DataError, Skips
from rc3_jax.data.scenes import SceneSource
from rc3_jax.data.sides import speaks_of_sides
from rc3_jax.data.stream import KINDS, batch_rows, iterate, make_batches
from rc3_jax.data.text import clean_caption
from tests.tiny import tiny_config

EVERY = {kind: 1.0 for kind in KINDS}
CCLM = {"strict": 0.0, "weak": 0.0, "parallel": 1.0, "captioned": 2.0, "region": 1.0}
LANGUAGES = {"en", "de", "fr", "cs", "zh", "ja"}


def _config(shares=EVERY, **changes) -> ml_collections.ConfigDict:
    config = tiny_config()
    config.shares.update(shares)
    config.batch_size = 20
    config.data.regions.update(per_image=3, grid=4)
    config.data.sources.scenes.update(captioned=50, region=40)
    config.update_from_flattened_dict(changes)
    return config


@functools.cache
def _opened():
    config = _config()
    corpus = open_corpus(config, Skips())
    return corpus, run_tokenizer(config, corpus, None)


def _batches(config, corpus=None, tokenizer=None, process=0, processes=1):
    opened = _opened()
    pools = (corpus or opened[0]).pools
    return make_batches(pools, tokenizer or opened[1], config, Skips(), process, processes)


def _assert_equal(one: dict, other: dict) -> None:
    assert one.keys() == other.keys()
    for kind, fields in one.items():
        assert fields.keys() == other[kind].keys()
        for field, array in fields.items():
            assert np.array_equal(array, other[kind][field]), (kind, field)


def test_every_kind_has_the_rows_and_fields_that_are_promised():
    config = _config()
    batch = _batches(config)[0]
    assert list(batch) == list(KINDS)
    promised = abstract_batch(config, dict.fromkeys(KINDS, 4))
    shapes = {
        kind: {name: jax.ShapeDtypeStruct(a.shape, a.dtype) for name, a in fields.items()}
        for kind, fields in batch.items()
    }
    assert shapes == promised
    assert batch["captioned"].keys() == batch["strict"].keys() - {"ids_b"}
    assert batch["region"]["region_tokens"].shape == (4, 3, 17)
    one, other = example_rows(config, "region", 1), batch["region"]
    assert {name: a.shape[1:] for name, a in one.items()} == {
        name: a.shape[1:] for name, a in other.items()
    }


def test_the_example_batch_is_for_every_image():
    rows, ids = example_batch(_config())
    assert rows.keys() == evaluation_row(_opened()[0].heldout[0], _config()).keys()
    assert ids.shape == (2, 24)


@pytest.mark.parametrize("count", [2, 4])
def test_processes_together_read_what_one_reads(count):
    config = _config()
    whole = _batches(config)
    for step in (0, 3):
        parts = [_batches(config, process=i, processes=count)[step] for i in range(count)]
        joined = {
            kind: {f: np.concatenate([part[kind][f] for part in parts]) for f in fields}
            for kind, fields in parts[0].items()
        }
        _assert_equal(joined, whole[step])


def test_a_run_that_starts_later_or_reads_in_processes_reads_the_same():
    config = _config(**{"steps": 3, "data.workers": 1})
    from_start = [_batches(config)[step] for step in range(3)]
    for batch, expected in zip(iterate(_batches(config), 1, config), from_start[1:], strict=True):
        _assert_equal(batch, expected)
    other = _batches(_config(seed=1))[0]
    assert not np.array_equal(other["region"]["boxes"], from_start[0]["region"]["boxes"])


def test_other_kinds_of_rows_leave_those_of_rc3_as_they_are():
    alone = _config({"captioned": 0.0, "region": 0.0}, batch_size=12)
    corpus = open_corpus(alone, Skips())
    assert list(corpus.pools) == ["strict", "weak", "parallel"]
    alone.shares.update(strict=1.0, weak=1.0, parallel=1.0)
    together = _batches(_config())[2]
    batch = _batches(alone, corpus)[2]
    _assert_equal(batch, {kind: together[kind] for kind in batch})


def test_kinds_that_no_share_wants_are_not_even_opened(monkeypatch, tmp_path):
    opened = []
    for name in ("SceneSource", "ImageTextSource"):
        made = getattr(corpus_module, name)

        def note(first, second, *more, made=made, **options):
            opened.extend({first, second} & set(KINDS) if made is SceneSource else {second})
            return made(first, second, *more, **options)

        monkeypatch.setattr(corpus_module, name, note)
    config = _config({"captioned": 0.0, "region": 0.0})
    _folder(tmp_path, config)
    open_corpus(config, Skips())
    assert set(opened) == {"strict", "weak", "parallel", "retrieval"}
    config.shares.captioned = 1.0
    open_corpus(config, Skips())
    assert "captioned" in opened and "region" not in opened


def _folder(root, config) -> None:
    """A folder whose images have one caption, or two."""
    Image.new("RGB", (20, 20)).save(root / "a.png")
    texts = [{"en": "one"}, {"en": "one", "de": "eins"}, {"en": ["one", "two"], "de": "zwei"}]
    lines = [dict(image="a.png", split="train", captions=captions) for captions in texts]
    lines[1]["translations"] = lines[1].pop("captions")
    lines.append(lines[2] | dict(split="val"))
    (root / "captions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    config.data.sources.folder = dict(
        type="folder",
        captions=str(root / "captions.jsonl"),
        root=str(root),
        train_split="train",
        heldout_split="val",
    )


def test_a_folder_offers_every_caption_of_every_image(tmp_path):
    config = _config(CCLM)
    config.data.sources = {}
    _folder(tmp_path, config)
    pool = open_corpus(config, Skips()).pools["captioned"]
    assert [pool[i][0].texts for i in range(len(pool))] == [
        {"en": ("one",)},
        {"en": ("one",), "de": ("eins",)},
        {"en": ("one", "two"), "de": ("zwei",)},
    ]
    assert {pair: list(n) for pair, n in pool.pairs.items()} == {
        ("de",): [1, 2],
        ("en",): [0, 1, 2],
    }


def test_captioned_rows_show_an_image_with_one_of_its_captions():
    corpus, tokenizer = _opened()
    config = _config(CCLM, batch_size=120, steps=2)
    said = {}
    for index in range(50):
        record, group = corpus.pools["captioned"][index]
        assert set(record.texts) == LANGUAGES
        for code, [text] in record.texts.items():
            said[group, tuple(tokenizer.encode([text])[0])] = code
    counts = dict.fromkeys(LANGUAGES, 0)
    for batch in _batches(config):
        rows = batch["captioned"]
        for group, ids in zip(rows["groups"].tolist(), rows["ids_a"], strict=True):
            counts[said[group, tuple(ids)]] += 1
    assert all(abs(count - 20) <= 2 for count in counts.values())  # languages take turns


def test_groups_are_unique_over_kinds_and_sources():
    config = _config()
    config.data.sources.again = dict(config.data.sources.scenes) | {"seed": 1}
    corpus = open_corpus(config, Skips())
    taken = set()
    for kind, pool in corpus.pools.items():
        for index in range(len(pool)):
            record, group = pool[index]
            mine = set(range(group, group + 1 + len(record.elements)))
            assert not taken & mine, kind
            taken |= mine
    assert max(taken) < 2**31


def test_scenes_name_what_is_in_each_box():
    source = SceneSource("region", "train", 30, 0)
    for index, record in enumerate(source):
        scene = source.scene(index)
        assert [element.box for element in record.elements] == [o.box for o in scene.objects]
        assert set(record.texts) == LANGUAGES and record.boxes is None
        for element, item in zip(record.elements, scene.objects, strict=True):
            assert set(element.texts) == LANGUAGES and not element.attributes
            [english] = element.texts["en"]
            assert f"{item.colour} {item.shape}" in english
            assert not speaks_of_sides({c: element.texts[c] for c in ("en", "de", "fr", "ja")})
        assert record.group + len(record.elements) < source.groups
    assert source.pairs == {(): range(30)}
    alone = SceneSource("region", "train", 30, 0, strict_languages=("de",), weak_languages=())
    assert set(alone[3].elements[0].texts) == {"de"}


def test_parallel_rows_may_have_a_length_of_their_own():
    config = _config(**{"data.parallel_max_length": 40, "data.parallel_most_masked": 20})
    batch = _batches(config)[0]
    promised = abstract_batch(config, dict.fromkeys(KINDS, 4))
    for kind, fields in batch.items():
        assert {f: a.shape for f, a in fields.items()} == {
            f: a.shape for f, a in promised[kind].items()
        }
    assert batch["parallel"]["ids_b"].shape == (4, 40)
    assert batch["parallel"]["masked_labels"].shape == (4, 20)
    plain = _batches(_config())[0]
    _assert_equal({"region": batch["region"]}, {"region": plain["region"]})
    assert np.array_equal(batch["parallel"]["ids_a"][:, :22], plain["parallel"]["ids_a"][:, :22])


def test_the_published_masking_reaches_every_kind():
    batches = _batches(_config(**{"data.mask_eos": True}))
    ends = dict.fromkeys(KINDS, 0)
    for step in range(4):
        for kind, rows in batches[step].items():
            ends[kind] += int(np.sum(rows["masked_labels"] == 2))
    assert all(ends.values())


def test_cleaned_captions_reach_tokens_vocabulary_and_evaluation():
    config = _config(**{"data.clean_captions": True, "data.max_words": 4})
    corpus = _opened()[0]
    tokenizer = run_tokenizer(config, corpus, None)
    text = "A man's <person> - hat/cap: 3.5, OK?"
    assert np.array_equal(tokenizer.encode([text]), tokenizer.encode(["a man s person"]))
    assert np.array_equal(tokenizer.with_length(9).encode([text])[0, :3],
                          tokenizer.encode([text])[0, :3])  # fmt: skip
    pieces = json.loads(tokenizer.to_json())["model"]["vocab"]
    assert not any(piece != piece.lower() or "." in piece for piece, _ in pieces[4:])
    batch = _batches(config, corpus, tokenizer)[0]
    for ids in batch["captioned"]["ids_a"]:
        decoded = tokenizer.decode(ids)
        assert decoded == clean_caption(decoded, 4)


def test_geometry_changes_only_images_whose_boxes_nothing_reads(monkeypatch):
    allowed = {}

    def note(image, operations, magnitude, rng, geometric):
        allowed.setdefault(kind, set()).add((operations, magnitude, geometric))
        return image

    monkeypatch.setattr(image_module, "rand_augment", note)
    for regions in (0, 6):
        changes = {"data.image.rand_augment": (2, 7), "model.roi.regions": regions}
        config = _config(**changes)
        for kind in ("captioned", "region"):
            shares = dict.fromkeys(KINDS, 0.0) | {kind: 1.0}
            config.shares.update(shares)
            _batches(config)[0]
    assert allowed == {
        "captioned": {(2, 7, True), (2, 7, False)},
        "region": {(2, 7, False)},
    }


def test_images_of_any_kind_make_a_batch_but_parallel_text_alone_does_not():
    assert batch_rows(8, CCLM, ("captioned", "region", "parallel")) == {
        "parallel": 2,
        "captioned": 4,
        "region": 2,
    }
    assert batch_rows(6, CCLM, ("region",)) == {"region": 6}
    with pytest.raises(DataError, match="for CCLM captioned or region rows"):
        batch_rows(6, CCLM, ("parallel",))
