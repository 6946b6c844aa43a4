"""Batches: what they hold, that nothing but seed and step decides it, and damaged images."""

from __future__ import annotations

import collections
import itertools

import ml_collections
import numpy as np
import pytest
from PIL import Image

from rc3_jax.data.corpus import open_corpus, run_tokenizer
from rc3_jax.data.record import DataError, Skips
from rc3_jax.data.sources.rows import ImageRow, ImageTextSource
from rc3_jax.data.stream import Pool, iterate, make_batches
from tests.tiny import tiny_config

TEXTS = {"en": "a star", "de": "ein Stern", "fr": "une étoile", "cs": "hvězda"}
RECORDS = 200  # of the folder in which some images are damaged


@pytest.fixture(scope="module")
def corpus():
    return open_corpus(tiny_config(), Skips())


@pytest.fixture(scope="module")
def tokenizer(corpus):
    return run_tokenizer(tiny_config(), corpus, None)


def _config(**changes) -> ml_collections.ConfigDict:
    config = tiny_config()
    config.update_from_flattened_dict(changes)
    return config


def _assert_equal(one: dict, other: dict) -> None:
    """Same kinds, same fields, same types, same bits."""
    assert one.keys() == other.keys()
    for kind, fields in one.items():
        assert fields.keys() == other[kind].keys()
        for field, array in fields.items():
            assert array.dtype == other[kind][field].dtype, field
            assert np.array_equal(array, other[kind][field]), (kind, field)


def _joined(parts: list[dict]) -> dict:
    return {
        kind: {field: np.concatenate([p[kind][field] for p in parts]) for field in fields}
        for kind, fields in parts[0].items()
    }


def test_a_batch_holds_fixed_shares_of_each_kind(corpus, tokenizer):
    config = _config()
    batches = make_batches(corpus.pools, tokenizer, config, Skips())
    assert len(batches) == config.steps
    texts = {"ids_a", "ids_b", "masked_ids", "masked_positions", "masked_labels", "groups"}
    regions = {"region_features", "region_boxes", "region_mask", "has_features", "use_regions"}
    shapes = []
    for batch in (batches[0], batches[config.steps - 1]):
        shapes.append({k: {f: a.shape for f, a in fields.items()} for k, fields in batch.items()})
        assert {kind: len(fields["groups"]) for kind, fields in batch.items()} == {
            "strict": 8,
            "weak": 4,
            "parallel": 4,
        }
        assert batch["parallel"].keys() == texts
        assert batch["strict"].keys() == texts | regions | {"image", "use_patches"}
        assert batch["weak"].keys() == batch["strict"].keys()
    assert shapes[0] == shapes[1]  # so that the step compiles once


@pytest.mark.parametrize("count", [2, 4])
def test_processes_together_read_what_one_reads(corpus, tokenizer, count):
    config = _config()
    whole = make_batches(corpus.pools, tokenizer, config, Skips())
    parts = [
        make_batches(corpus.pools, tokenizer, config, Skips(), index, count)
        for index in range(count)
    ]
    for step in (0, 3):
        _assert_equal(_joined([part[step] for part in parts]), whole[step])


def test_processes_that_cannot_share_the_rows_are_told(corpus, tokenizer):
    with pytest.raises(DataError, match="8 strict rows .* by 3 processes; make them a multiple"):
        make_batches(corpus.pools, tokenizer, _config(), Skips(), 0, 3)


def test_a_run_that_starts_later_reads_what_it_would_have_read(corpus, tokenizer):
    config = _config(steps=5)
    batches = make_batches(corpus.pools, tokenizer, config, Skips())
    from_start = list(iterate(batches, 0, config))
    assert len(from_start) == 5
    assert not np.array_equal(from_start[0]["strict"]["groups"], from_start[1]["strict"]["groups"])
    again = make_batches(corpus.pools, tokenizer, config, Skips())
    resumed = list(iterate(again, 3, config))
    assert len(resumed) == 2
    for one, other in zip(resumed, from_start[3:], strict=True):
        _assert_equal(one, other)
    # A longer run begins alike.
    longer = make_batches(corpus.pools, tokenizer, _config(steps=50), Skips())
    _assert_equal(longer[4], from_start[4])


def test_a_process_that_reads_ahead_gives_the_same_batches(corpus, tokenizer):
    config = _config(**{"steps": 3, "data.workers": 1})
    batches = make_batches(corpus.pools, tokenizer, config, Skips())
    for step, batch in enumerate(iterate(batches, 1, config), start=1):
        _assert_equal(batch, batches[step])
    assert step == 2


def test_another_seed_gives_other_rows_and_the_same_seed_the_same(corpus, tokenizer):
    first, same, other = (
        make_batches(corpus.pools, tokenizer, _config(seed=seed), Skips())[0] for seed in (1, 1, 2)
    )
    _assert_equal(first, same)
    for kind in first:
        assert not np.array_equal(first[kind]["groups"], other[kind]["groups"])
        assert not np.array_equal(first[kind]["masked_positions"], other[kind]["masked_positions"])


def test_every_record_comes_once_an_epoch_in_another_order_and_augmented_anew(corpus, tokenizer):
    config = _config(**{"steps": 16, "data.modality_dropout": 0.0})
    batches = make_batches({"strict": corpus.pools["strict"]}, tokenizer, config, Skips())
    assert len(corpus.pools["strict"]) == 64
    rows = [batches[step]["strict"] for step in range(8)]
    groups = np.concatenate([row["groups"] for row in rows]).reshape(2, 64)
    images = np.concatenate([row["image"] for row in rows]).reshape(2, 64, 32, 32, 3)
    assert np.array_equal(np.sort(groups), np.tile(np.arange(64), (2, 1)))
    assert not np.array_equal(groups[0], groups[1])
    assert not np.array_equal(groups[0], np.arange(64))
    first, second = (images[epoch][np.argsort(groups[epoch])] for epoch in (0, 1))
    assert all(not np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_kinds_made_of_the_same_images_do_not_go_in_step(tokenizer):
    texts = {"en": ("a star",), "de": ("ein Stern",)}
    pixels = np.full((8, 8, 3), 200, np.uint8)
    rows = [ImageRow(f"row:{i}", i, lambda: pixels, texts, texts) for i in range(64)]
    pools = {kind: Pool([(ImageTextSource(rows, kind), 0)]) for kind in ("strict", "weak")}
    config = _config(**{"steps": 8, "shares.weak": 2.0})
    batches = make_batches(pools, tokenizer, config, Skips())
    together = sum(
        len(np.intersect1d(batches[step]["strict"]["groups"], batches[step]["weak"]["groups"]))
        for step in range(8)
    )
    assert together < 32  # 8 of 64 by accident; all 64 if in step


def test_groups_are_moved_by_the_offset_of_their_source(corpus, tokenizer):
    [batch] = make_batches(corpus.pools, tokenizer, _config(steps=1), Skips())
    bounds = {"strict": (0, 64), "weak": (64, 128), "parallel": (128, 192)}
    for kind, (low, high) in bounds.items():
        assert np.all((batch[kind]["groups"] >= low) & (batch[kind]["groups"] < high))


def test_a_pool_puts_its_sources_one_after_the_other():
    pool = Pool([(_source("de en", 2), 0), (_source("en fr", 1), 10), (_source("cs en", 3), 20)])
    assert len(pool) == 6
    read = [pool[i] for i in range(6)]
    assert [record.where for record, _ in read] == [
        "de en:0",
        "de en:1",
        "en fr:0",
        "cs en:0",
        "cs en:1",
        "cs en:2",
    ]
    assert [group for _, group in read] == [0, 1, 10, 20, 21, 22]
    numbers = {pair: list(of_pair) for pair, of_pair in pool.pairs.items()}
    assert numbers == {("de", "en"): [0, 1], ("en", "fr"): [2], ("cs", "en"): [3, 4, 5]}


@pytest.mark.parametrize("exponent", [0.0, 0.7, 1.0])
@pytest.mark.parametrize(
    "records",
    [
        {"de en": 900, "cs en": 90, "en fr": 10},
        {"de en fr": 300, "cs de en": 60, "cs fr": 20},
    ],
)
def test_language_pairs_come_with_smoothed_frequency(tokenizer, records, exponent):
    pool = Pool([(_source(languages, count), 0) for languages, count in records.items()])
    config = _config(**{"steps": 8, "batch_size": 100, "data.language_exponent": exponent})
    drawn = collections.Counter(pair for pair, _ in _draws(pool, tokenizer, config))
    offered = collections.Counter()
    for languages, count in records.items():
        offered += {pair: count for pair in itertools.combinations(languages.split(), 2)}
    smoothed = {pair: count**exponent for pair, count in offered.items()}
    total = sum(smoothed.values())
    assert drawn == {pair: pytest.approx(800 * n / total, abs=4) for pair, n in smoothed.items()}


def test_each_language_pair_goes_through_its_records_in_an_order_of_its_own(tokenizer):
    pool = Pool([(_source("de en fr", 30), 0)])
    draws = _draws(pool, tokenizer, _config(steps=6, batch_size=30))
    orders = {}
    for pair, group in draws:
        orders.setdefault(pair, []).append(group)
    epochs = [tuple(order[i : i + 30]) for order in orders.values() for i in (0, 30)]
    assert len(orders) == 3 and len(set(epochs)) == 6  # each in another order
    assert all(sorted(epoch) == list(range(30)) for epoch in epochs)


def _source(languages: str, count: int) -> ImageTextSource:
    """Records without an image, with a text in each language."""
    texts = {code: (TEXTS[code],) for code in languages.split()}
    rows = [ImageRow(f"{languages}:{i}", i, None, texts, {}) for i in range(count)]
    return ImageTextSource(rows, "strict")


def _draws(pool: Pool, tokenizer, config) -> list[tuple[tuple[str, ...], int]]:
    """Language pair and group of every row, told by its texts."""
    code_of = {tuple(tokenizer.encode([text])[0]): code for code, text in TEXTS.items()}
    draws = []
    for batch in make_batches({"strict": pool}, tokenizer, config, Skips()):
        ids_a, ids_b, groups = (batch["strict"][name] for name in ("ids_a", "ids_b", "groups"))
        for *texts, group in zip(ids_a, ids_b, groups.tolist(), strict=True):
            draws.append((tuple(sorted(code_of[tuple(ids)] for ids in texts)), group))
    return draws


def _folder_config(root, damaged: list[int]) -> ml_collections.ConfigDict:
    """A folder of images, German and French in turn, some cut off behind their sound header."""
    lines = []
    for i in range(RECORDS):
        file = root / f"{i}.jpg"
        pixels = np.random.default_rng(i).integers(0, 256, (32, 32, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(file)
        if i in damaged:
            file.write_bytes(file.read_bytes()[:-400])
        lines.append(
            f'{{"image": "{i}.jpg", "split": "train", "translations": '
            f'{{"en": "a star", "{("de", "fr")[i % 2]}": "x"}}}}'
        )
    lines.append(lines[0].replace("train", "val"))
    (root / "captions.jsonl").write_text("\n".join(lines))
    config = tiny_config()
    config.steps, config.batch_size = 5, 40
    config.data.image.update(crop_scale=(1.0, 1.0), jitter=0.0, flip=False)
    config.data.sources = dict(
        folder=dict(
            type="folder",
            captions=str(root / "captions.jsonl"),
            root=str(root),
            train_split="train",
            heldout_split="val",
        )
    )
    return config


def test_a_damaged_image_is_noted_and_the_next_one_of_its_languages_takes_its_place(
    tmp_path, tokenizer
):
    config = _folder_config(tmp_path, damaged=[70])
    skips = Skips(config.data.skip_limit)
    # What was skipped elsewhere, however much, does not count against these images.
    for line in range(500):
        skips.add(f"train.de:{line}", "empty line")
    pools = open_corpus(config, skips).pools
    assert len(pools["strict"]) == RECORDS and len(skips.reasons) == 500
    rows = [
        batch["strict"]
        for batch in iterate(make_batches(pools, tokenizer, config, skips), 0, config)
    ]
    groups = np.concatenate([row["groups"] for row in rows])
    images = np.concatenate([row["image"] for row in rows])
    missing = [g for g, n in collections.Counter([*range(RECORDS), *groups]).items() if n != 2]
    assert sorted(missing) == [70, 72] and np.sum(groups == 72) == 2
    one, other = images[groups == 72]
    assert np.array_equal(one, other)
    assert not np.array_equal(one, images[groups == 71][0])

    [(where, reason)] = list(skips.reasons.items())[500:]
    assert where == f"{tmp_path / 'captions.jsonl'}:71"
    assert f"{tmp_path / '70.jpg'}: image cannot be decoded" in reason and "replace it" in reason


def test_more_than_one_percent_of_damaged_images_stop_the_run(tmp_path, tokenizer):
    config = _folder_config(tmp_path, damaged=[5, 6, 150])
    skips = Skips(config.data.skip_limit)
    pools = open_corpus(config, skips).pools
    with pytest.raises(DataError) as caught:
        list(iterate(make_batches(pools, tokenizer, config, skips), 0, config))
    message = str(caught.value)
    assert "strict records: 3 of 200 records cannot be used, more than 1%" in message
    assert "captions.jsonl:151: " in message and str(tmp_path / "150.jpg") in message
    assert len(skips.reasons) == 3
