"""Batches: what they hold, that nothing but seed and step decides it, and damaged images."""

from __future__ import annotations

import collections
import itertools

import jax
import ml_collections
import numpy as np
import pytest
from PIL import Image

from rc3_jax.data.corpus import open_corpus, run_tokenizer
from rc3_jax.data.kinds import KINDS
from rc3_jax.data.record import BadRecord, DataError, Skips
from rc3_jax.data.shapes import abstract_batch
from rc3_jax.data.sources.images import ImageRow, ImageRows, ImageTextSource
from rc3_jax.data.stream import ConcatSource, iterate, make_batches
from rc3_jax.scenes.languages import LANGUAGES
from tests.tiny import tiny_config, with_tower

TEXTS = {"en": "a star", "de": "ein Stern", "fr": "une étoile", "cs": "hvězda"}
RECORDS = 200  # of the folder in which some images are damaged


def _config(**changes) -> ml_collections.ConfigDict:
    """20 rows, as many of each kind."""
    config = tiny_config()
    config.batch_mix.update(dict.fromkeys(KINDS, 1.0))
    config.batch_size = 20
    config.data.regions.update(per_image=3)
    config.data.sources.scenes.update(captioned=50, region=40)
    config.update_from_flattened_dict(changes)
    return with_tower(config)


@pytest.fixture(scope="module")
def corpus():
    return open_corpus(_config(), Skips())


@pytest.fixture(scope="module")
def tokenizer(corpus):
    return run_tokenizer(_config(), corpus, None)


def _assert_equal(one: dict, other: dict) -> None:
    """Same kinds, same fields, same types, same bits."""
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert a.dtype == b.dtype and np.array_equal(a, b)


def test_every_kind_has_the_rows_and_fields_that_are_promised(corpus, tokenizer):
    config = _config(**{"data.parallel_max_length": 40, "data.parallel_max_masked": 20})
    batches = make_batches(corpus.pools, tokenizer, config, Skips())
    assert len(batches) == config.steps
    for step in (0, 3):  # alike, so that the step compiles once
        shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), batches[step])
        assert list(batches[step]) == list(KINDS)
        assert shapes == abstract_batch(config, dict.fromkeys(KINDS, 4))
    assert shapes["captioned"].keys() == shapes["strict"].keys() - {"ids_b", "sentences"}
    assert shapes["parallel"]["ids_b"].shape == (4, 40)
    assert shapes["region"]["region_tokens"].shape == (4, 3, 17)
    plain = make_batches(corpus.pools, tokenizer, _config(), Skips())[3]
    _assert_equal(plain["region"], batches[3]["region"])
    assert np.array_equal(
        batches[3]["parallel"]["ids_a"][:, :22], plain["parallel"]["ids_a"][:, :22]
    )


def test_weak_rows_tell_the_true_relevance_to_an_objective_that_reads_it(corpus, tokenizer):
    config = _config(**{"objective.relevance": "true"})
    batch = make_batches(corpus.pools, tokenizer, config, Skips())[0]
    plain = make_batches(corpus.pools, tokenizer, _config(), Skips())[0]
    told = batch["weak"].pop("relevance")
    assert abstract_batch(config, {"weak": 4})["weak"]["relevance"].shape == told.shape
    _assert_equal(batch, plain)
    groups = corpus.pools["weak"]
    known = {int(of[0]): record.relevance for record, of in (groups[n] for n in range(len(groups)))}
    np.testing.assert_allclose(told, [known[int(group)] for group in batch["weak"]["groups"]])


@pytest.mark.parametrize("count", [2, 4])
def test_processes_together_read_what_one_reads(corpus, tokenizer, count):
    arguments = corpus.pools, tokenizer, _config(), Skips()
    whole = make_batches(*arguments)
    parts = [make_batches(*arguments, index, count) for index in range(count)]
    for step in (0, 3):
        joined = jax.tree.map(lambda *fields: np.concatenate(fields), *(p[step] for p in parts))
        _assert_equal(joined, whole[step])
    with pytest.raises(DataError, match="4 strict rows .* 3 processes; make them a multiple with"):
        make_batches(*arguments, 0, 3)
    arguments[2].batch_size = 60
    make_batches(*arguments, 0, 3)


def test_a_run_that_starts_later_or_reads_in_processes_reads_the_same(corpus, tokenizer):
    config = _config(steps=5)
    batches = make_batches(corpus.pools, tokenizer, config, Skips())
    from_start = list(iterate(batches, 0, config))
    assert len(from_start) == 5
    assert not np.array_equal(from_start[0]["strict"]["groups"], from_start[1]["strict"]["groups"])
    longer = _config(**{"steps": 50, "data.workers": 1})  # begins alike
    resumed = iterate(make_batches(corpus.pools, tokenizer, longer, Skips()), 3, longer)
    for one, other in zip(itertools.islice(resumed, 2), from_start[3:], strict=True):
        _assert_equal(one, other)


def test_another_seed_gives_other_rows(corpus, tokenizer):
    first, same, other = (
        make_batches(corpus.pools, tokenizer, _config(seed=seed), Skips())[0] for seed in (1, 1, 2)
    )
    _assert_equal(first, same)
    for kind in first:
        assert not np.array_equal(first[kind]["groups"], other[kind]["groups"])
        assert not np.array_equal(first[kind]["masked_positions"], other[kind]["masked_positions"])


def test_other_kinds_of_rows_leave_those_of_rc3_as_they_are(corpus, tokenizer):
    alone = _config(**{"batch_mix.captioned": 0.0, "batch_mix.region": 0.0, "batch_size": 12})
    pools = open_corpus(alone, Skips()).pools
    assert list(pools) == ["strict", "weak", "parallel"]
    together = make_batches(corpus.pools, tokenizer, _config(), Skips())[2]
    batch = make_batches(pools, tokenizer, alone, Skips())[2]
    _assert_equal(batch, {kind: together[kind] for kind in batch})


def test_every_record_comes_once_an_epoch_in_another_order_and_augmented_anew(corpus, tokenizer):
    config = _config(**{"steps": 16, "batch_size": 16, "data.modality_dropout": 0.0})
    batches = make_batches({"strict": corpus.pools["strict"]}, tokenizer, config, Skips())
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
    rows = _rows([ImageRow(f"row:{i}", lambda: pixels, texts, texts) for i in range(64)])
    pools = {kind: ConcatSource([(ImageTextSource(rows, kind), 0)]) for kind in ("strict", "weak")}
    config = _config(steps=8, batch_size=16)
    together = sum(
        len(np.intersect1d(batch["strict"]["groups"], batch["weak"]["groups"]))
        for batch in make_batches(pools, tokenizer, config, Skips())
    )
    assert together < 32  # 8 of 64 by accident; all 64 if in step


def test_captioned_rows_show_an_image_with_one_of_its_captions(corpus, tokenizer):
    config = _config(batch_size=120, steps=5)
    said = {}
    for index in range(50):
        record, [group] = corpus.pools["captioned"][index]
        for code, [text] in record.texts.items():
            said[group, tuple(tokenizer.encode([text])[0])] = code
    counts = collections.Counter()
    for batch in make_batches(corpus.pools, tokenizer, config, Skips()):
        rows = batch["captioned"]
        counts.update(
            said[group, tuple(ids)]
            for group, ids in zip(rows["groups"].tolist(), rows["ids_a"], strict=True)
        )
    share = counts.total() / len(LANGUAGES)
    assert counts.keys() == LANGUAGES.keys()
    assert all(abs(count - share) <= 2 for count in counts.values())


def test_settings_of_texts_reach_every_kind(corpus):
    config = _config(
        **{"data.mask_eos": True, "data.clean_captions": True, "data.max_words": 4, "steps": 6}
    )
    tokenizer = run_tokenizer(config, corpus, None)
    ends = collections.Counter()
    for batch in make_batches(corpus.pools, tokenizer, config, Skips()):
        for kind, rows in batch.items():
            ends[kind] += int(np.sum(rows["masked_labels"] == 2))
            for ids in rows["ids_a"].reshape(-1, 24):
                text = tokenizer.decode(ids)
                assert text == text.lower() and len(text.split()) <= 4 and "." not in text
    assert set(+ends) == set(KINDS)


def test_sources_stand_one_after_the_other_with_groups_of_their_own():
    pool = ConcatSource(
        [(_source("de en", 2), 0), (_source("en fr", 1), 10), (_source("cs en", 3), 20)]
    )
    read = [pool[i] for i in range(len(pool))]
    wheres = ["de en:0", "de en:1", "en fr:0", "cs en:0", "cs en:1", "cs en:2"]
    assert [record.where for record, _ in read] == wheres
    assert [group for _, [group] in read] == [0, 1, 10, 20, 21, 22]
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
    pool = ConcatSource([(_source(languages, count), 0) for languages, count in records.items()])
    config = _config(**{"steps": 8, "batch_size": 100, "data.language_exponent": exponent})
    drawn = collections.Counter(pair for pair, _ in _draws(pool, tokenizer, config))
    offered = collections.Counter()
    for languages, count in records.items():
        offered += {pair: count for pair in itertools.combinations(languages.split(), 2)}
    smoothed = {pair: count**exponent for pair, count in offered.items()}
    total = sum(smoothed.values())
    assert drawn == {pair: pytest.approx(800 * n / total, abs=4) for pair, n in smoothed.items()}


def test_each_language_pair_goes_through_its_records_in_an_order_of_its_own(tokenizer):
    draws = _draws(
        ConcatSource([(_source("de en fr", 30), 0)]), tokenizer, _config(steps=6, batch_size=30)
    )
    orders = {}
    for pair, group in draws:
        orders.setdefault(pair, []).append(group)
    epochs = [tuple(order[i : i + 30]) for order in orders.values() for i in (0, 30)]
    assert len(orders) == 3 and len(set(epochs)) == 6  # each in another order
    assert all(sorted(epoch) == list(range(30)) for epoch in epochs)


def _source(languages: str, count: int) -> ImageTextSource:
    """Records without an image, with a text in each language."""
    texts = {code: (TEXTS[code],) for code in languages.split()}
    rows = [ImageRow(f"{languages}:{i}", None, texts, {}) for i in range(count)]
    return ImageTextSource(_rows(rows), "strict")


def _rows(rows: list[ImageRow]) -> ImageRows:
    """Each of an image of its own."""
    found = ImageRows(rows)
    for number, row in enumerate(rows):
        found.add(number, row.translations, row.captions)
    return found


def _draws(pool: ConcatSource, tokenizer, config) -> list[tuple[tuple[str, ...], int]]:
    """Language pair and group of every row, read off its texts."""
    code_of = {tuple(tokenizer.encode([text])[0]): code for code, text in TEXTS.items()}
    draws = []
    for batch in make_batches({"strict": pool}, tokenizer, config, Skips()):
        ids_a, ids_b, groups = (batch["strict"][name] for name in ("ids_a", "ids_b", "groups"))
        for *texts, group in zip(ids_a, ids_b, groups.tolist(), strict=True):
            draws.append((tuple(sorted(code_of[tuple(ids)] for ids in texts)), group))
    return draws


def _damaged_folder(root, damaged: list[int]) -> ml_collections.ConfigDict:
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
            f'{{"en": "star {i}", "{("de", "fr")[i % 2]}": "x {i}"}}}}'
        )
    lines.append(lines[0].replace("train", "val"))
    captions = root / "captions.jsonl"
    captions.write_text("\n".join(lines))
    config = _config(steps=5, batch_size=40)
    config.data.image.update(crop_scale=(1.0, 1.0), jitter=0.0, flip=False)
    splits = dict(train_split="train", heldout_split="val")
    config.data.sources = dict(
        folder=dict(type="folder", captions=str(captions), root=str(root), **splits)
    )
    return config


def test_a_damaged_image_is_noted_and_the_next_one_of_its_languages_takes_its_place(
    tmp_path, tokenizer
):
    config = _damaged_folder(tmp_path, damaged=[70])
    skips = Skips(config.data.skip_limit)
    # What was skipped elsewhere, however much, does not count against these images.
    for line in range(500):
        skips.add(BadRecord(f"train.de:{line}", "empty line"))
    pools = {"strict": open_corpus(config, skips).pools["strict"]}
    assert len(pools["strict"]) == RECORDS and len(skips.reasons) == 500
    batches = make_batches(pools, tokenizer, config, skips)
    rows = [batch["strict"] for batch in iterate(batches, 0, config)]
    groups = np.concatenate([row["groups"] for row in rows])
    images = np.concatenate([row["image"] for row in rows])
    missing = [g for g, n in collections.Counter([*range(RECORDS), *groups]).items() if n != 2]
    assert sorted(missing) == [70, 72] and np.sum(groups == 72) == 2
    one, other = images[groups == 72]
    assert np.array_equal(one, other)
    assert not np.array_equal(one, images[groups == 71][0])
    [(where, reason)] = list(skips.reasons.items())[500:]
    assert where == f"{tmp_path / 'captions.jsonl'}:71" and str(tmp_path / "70.jpg") in reason


def test_more_than_one_percent_of_damaged_images_stop_the_run(tmp_path, tokenizer):
    config = _damaged_folder(tmp_path, damaged=[5, 6, 150])
    skips = Skips(config.data.skip_limit)
    pools = {"strict": open_corpus(config, skips).pools["strict"]}
    with pytest.raises(DataError, match=r"(?s)strict .*3 of 200.*jsonl:151: .*150.jpg"):
        list(iterate(make_batches(pools, tokenizer, config, skips), 0, config))
    assert len(skips.reasons) == 3
