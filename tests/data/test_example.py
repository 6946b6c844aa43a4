"""One record to one row: when images are mirrored, and which visual parts are dropped."""

from __future__ import annotations

import dataclasses

import jax
import ml_collections
import numpy as np
import pytest
from scipy import stats

from rc3_jax.data.example import evaluation_row, example_batch, training_row
from rc3_jax.data.image import resize
from rc3_jax.data.record import BadRecord, Record
from rc3_jax.data.scenes import SceneSource
from rc3_jax.data.text import IGNORED, language_pairs
from rc3_jax.data.tokenizer import train_tokenizer
from tests.tiny import tiny_config

NEUTRAL = {"en": ("a red star",), "de": ("ein roter Stern",)}
PIXELS = np.zeros((32, 32, 3), np.uint8)
PIXELS[:, :16, 0] = 255  # red on the left, blue on the right
PIXELS[:, 16:, 2] = 255
BOXES = np.array([[0, 0.25, 0.5, 0.75], [0.5, 0, 1, 1]], np.float32)  # left and right half


@pytest.fixture(scope="module")
def tokenizer():
    records = SceneSource("retrieval", "train", 20, seed=0)
    return train_tokenizer([t for r in records for ts in r.texts.values() for t in ts], 400, 24)


def _config(**changes) -> ml_collections.ConfigDict:
    config = tiny_config()
    config.model.roi.update(regions=3, feature_size=5)
    config.data.image.update(crop_scale=(1.0, 1.0), jitter=0.0, flip=True)
    config.data.modality_dropout = 0.0
    config.update_from_flattened_dict(changes)
    return config


def _record(texts=NEUTRAL, image=lambda: PIXELS, boxes=BOXES) -> Record:
    features = None if boxes is None else np.arange(len(boxes) * 5.0).reshape(-1, 5)
    return Record("captions.jsonl:3", 4, texts, image, boxes, features)


def _row(record, tokenizer, config, number=0) -> dict:
    rng = np.random.Generator(np.random.Philox(number))
    [pair] = language_pairs(record.texts)
    return training_row(record, 17, pair, tokenizer, config, rng)


def _is_mirrored(row) -> bool:
    left, right = row["image"][16, 4].tolist(), row["image"][16, 28].tolist()
    assert {tuple(left), tuple(right)} == {(255, 0, 0), (0, 0, 255)}
    return left == [0, 0, 255]


def _at_chance(hits: int, draws: int, chance: float) -> bool:
    return stats.binomtest(hits, draws, chance).pvalue > 1e-3


def test_half_of_the_images_with_neutral_captions_are_mirrored(tokenizer):
    rows = [_row(_record(), tokenizer, _config(), i) for i in range(400)]
    mirrored = np.array([_is_mirrored(row) for row in rows])
    assert _at_chance(mirrored.sum(), 400, 0.5)
    for row, is_mirrored in zip(rows, mirrored, strict=True):  # the boxes go with the picture
        kept = BOXES if not is_mirrored else np.array([[0.5, 0.25, 1, 0.75], [0, 0, 0.5, 1]])
        np.testing.assert_allclose(row["region_boxes"][:2], kept, atol=1e-6)
        assert np.array_equal(row["region_features"][:2], _record().features)


@pytest.mark.parametrize(
    "texts",
    [
        {"en": ("a star on the left",), "de": ("ein Stern",)},
        {"en": ("a star",), "de": ("ein Stern rechts",)},
        {"en": ("a star",), "zh": ("左上角有一颗星",)},
        {"en": ("a star", "a star on the right")},
        {"en": ("a star",), "mi": ("he whetū",)},  # a language without a word list
    ],
)
def test_no_image_is_mirrored_whose_captions_speak_of_sides(tokenizer, texts):
    rows = [_row(_record(texts), tokenizer, _config(), i) for i in range(30)]
    assert not any(map(_is_mirrored, rows))


def test_only_the_captions_that_are_drawn_count(tokenizer):
    texts = {"en": ("a star", "a star on the left"), "de": ("ein Stern",)}
    rows = [_row(_record(texts), tokenizer, _config(), i) for i in range(400)]
    assert _at_chance(sum(map(_is_mirrored, rows)), 400, 0.25)


def test_no_image_is_mirrored_where_the_config_forbids_it(tokenizer):
    config = _config(**{"data.image.flip": False})
    assert not any(_is_mirrored(_row(_record(), tokenizer, config, i)) for i in range(30))


def test_each_visual_part_is_dropped_with_its_chance_and_never_both(tokenizer):
    config = _config(**{"data.modality_dropout": 0.15})
    rows = [_row(_record(), tokenizer, config, i) for i in range(2000)]
    patches = np.array([row["use_patches"] for row in rows])
    regions = np.array([row["use_regions"] for row in rows])
    assert patches.dtype == regions.dtype == bool
    assert np.all(patches | regions)
    assert _at_chance(np.sum(~patches), 2000, 0.15)
    assert _at_chance(np.sum(~regions), 2000, 0.15)


def test_nothing_is_dropped_without_dropout(tokenizer):
    rows = [_row(_record(), tokenizer, _config(), i) for i in range(50)]
    assert all(row["use_patches"] and row["use_regions"] for row in rows)


def test_rows_without_regions_keep_their_patches(tokenizer):
    config = _config(**{"data.modality_dropout": 0.5})
    rows = [_row(_record(boxes=None), tokenizer, config, i) for i in range(50)]
    assert all(row["use_patches"] and not row["region_mask"].any() for row in rows)
    assert not any(row["has_features"] for row in rows)
    # So do those whose regions are all cropped away.
    config.data.image.crop_scale = (0.2, 0.2)
    corner = np.array([[0, 0, 0.5, 0.5]], np.float32)
    rows = [_row(_record(boxes=corner), tokenizer, config, i) for i in range(100)]
    seen = np.array([row["region_mask"].any() for row in rows])
    patches = np.array([row["use_patches"] for row in rows])
    assert 0 < seen.sum() < 100 and patches[~seen].all() and not patches[seen].all()


def test_texts_are_encoded_and_the_first_is_masked(tokenizer):
    config = _config(**{"data.mask_share": 0.5, "data.most_masked": 4})
    encoded = {
        text: ids.tolist() for [text] in NEUTRAL.values() for ids in tokenizer.encode([text])
    }
    firsts = set()
    for number in range(20):
        row = _row(_record(), tokenizer, config, number)
        a, b = (row[name].tolist() for name in ("ids_a", "ids_b"))
        assert sorted([a, b]) == sorted(encoded.values())
        firsts.add(tuple(a))
        count = int(np.sum(row["masked_labels"] != IGNORED))
        words = int(np.sum(row["ids_a"] > 2))
        assert count == min(4, max(1, round(0.5 * words))) and row["masked_labels"].shape == (4,)
        restored = row["masked_ids"].copy()
        restored[row["masked_positions"][:count]] = row["masked_labels"][:count]
        assert restored.tolist() == a
        assert row["groups"] == 17 and row["groups"].dtype == np.int32
    assert len(firsts) == 2


def test_a_sentence_without_an_image_has_texts_alone(tokenizer):
    row = _row(_record(image=None, boxes=None), tokenizer, _config())
    texts = {"ids_a", "ids_b", "masked_ids", "masked_positions", "masked_labels", "groups"}
    assert row.keys() == texts


def test_a_row_is_a_function_of_its_random_generator(tokenizer):
    config = _config(**{"data.image.crop_scale": (0.3, 1.0), "data.image.jitter": 0.4})
    one, same, other = (_row(_record(), tokenizer, config, number) for number in (1, 1, 2))
    assert all(np.array_equal(one[name], same[name]) for name in one)
    assert not np.array_equal(one["image"], other["image"])


def test_evaluation_sees_the_whole_image_unchanged():
    config = _config(**{"data.image.crop_scale": (0.3, 0.5), "data.modality_dropout": 0.5})
    pixels = np.random.default_rng(0).integers(0, 256, (20, 48, 3)).astype(np.uint8)
    row = evaluation_row(_record(image=lambda: pixels), config)
    assert np.array_equal(row["image"], resize(pixels, 32))
    assert np.array_equal(row["region_boxes"][:2], BOXES)
    assert row["region_mask"].tolist() == [True, True, False]
    assert row["use_patches"] and row["use_regions"] and row["has_features"]


@pytest.mark.parametrize("regions", [0, 3])
def test_the_example_batch_looks_like_real_rows(tokenizer, regions):
    config = _config(**{"model.roi.regions": regions})
    rows, ids = example_batch(config)
    training = _row(_record(), tokenizer, config)
    evaluation = evaluation_row(_record(), config)
    assert ("region_mask" in rows) == bool(regions)
    assert rows.keys() == evaluation.keys() and rows.keys() < training.keys()
    shapes = jax.tree.map(lambda a: (a.shape, a.dtype), rows)
    for real in (training, evaluation):
        two = {name: np.stack([real[name]] * 2) for name in rows}
        assert jax.tree.map(lambda a: (a.shape, a.dtype), two) == shapes
    assert (ids.shape, ids.dtype) == ((2, *training["ids_a"].shape), training["ids_a"].dtype)


def test_features_of_another_size_are_told_with_the_record(tokenizer):
    record = dataclasses.replace(_record(), features=np.zeros((2, 7), np.float32))
    with pytest.raises(BadRecord, match=r"captions\.jsonl:3: region features are \[2, 7\]"):
        _row(record, tokenizer, _config())
