"""One record to one row: texts, mirrored images, dropped parts, and parts of images."""

from __future__ import annotations

import collections
import dataclasses

import jax
import ml_collections
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from rc3_jax.data.corpus import Corpus, run_tokenizer
from rc3_jax.data.example import (
    caption_groups,
    evaluation_row,
    region_row,
    training_row,
)
from rc3_jax.data.image import resize
from rc3_jax.data.kinds import language_pairs
from rc3_jax.data.record import BadRecord, Element, Record
from rc3_jax.data.shapes import example_batch
from rc3_jax.data.text import IGNORED
from rc3_jax.data.tokenizer import train_tokenizer
from tests.data.files import boxes
from tests.tiny import tiny_config, with_tower

NEUTRAL = {"en": ("a red ball",), "de": ("ein Ball",)}
PIXELS = np.full((32, 32, 3), 40, np.uint8)
PIXELS[:, :16, 0] = PIXELS[:, 16:, 2] = 200  # red on the left, blue on the right
BOXES = np.array([[0, 0.25, 0.5, 0.75], [0.5, 0, 1, 1]], np.float32)  # left and right half
WORDS = [f"{c} {s}" for c in ("red", "green", "blue", "white", "grey") for s in ("ball", "box")]
SIDE = 32  # of a row's image
BASE = 17  # group of a record


@pytest.fixture(scope="module")
def tokenizer():
    texts = [*WORDS, "a ball on the left all of it", "ein Ball links rechts", "he whetū", "左上"]
    return train_tokenizer(texts * 3, 150, 12)


def _config(**changes) -> ml_collections.ConfigDict:
    config = tiny_config()
    config.data.max_length = 12
    config.model.roi.update(regions=3, feature_size=5)
    config.data.image.update(crop_scale=(1.0, 1.0), jitter=0.0, flip=True)
    config.data.regions.update(per_image=5)
    config.data.modality_dropout = 0.0
    config.update_from_flattened_dict(changes)
    return with_tower(config)


def _record(texts=None, boxes=BOXES, image=lambda: PIXELS) -> Record:
    features = None if boxes is None else np.ones((len(boxes), 5), np.float32)
    return Record("captions.jsonl:3", 0, texts or NEUTRAL, image, boxes, features)


def _rng(number: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(number))


def _row(record: Record, tokenizer, config=None, number: int = 0) -> dict:
    [pair] = language_pairs(record.texts)
    return training_row(
        record, np.array([BASE]), pair, tokenizer, config or _config(), _rng(number)
    )


def _region_row(elements, tokenizer, number=0, whole=None, config=None, pixels=PIXELS) -> dict:
    record = Record("file:3", 7, whole or {}, lambda: pixels, elements=tuple(elements))
    groups = BASE + np.arange(1 + len(elements))
    return region_row(record, groups, (), tokenizer, config or _config(), _rng(number))


def _texts(row, tokenizer) -> list[str]:
    return [tokenizer.decode(ids) for ids in row["ids_a"]]


def _element(box=(0, 0, 1, 1), text="red ball", language="en", **attributes) -> Element:
    return Element(box, {language: (text,)}, attributes)


def _is_mirrored(row) -> bool:
    return bool(row["image"][SIDE // 2, 2, 2] > 127)


def _at_chance(hits: int, draws: int, chance: float) -> bool:
    return stats.binomtest(int(hits), draws, chance).pvalue > 1e-3


def test_half_of_the_images_with_neutral_captions_are_mirrored_with_their_boxes(tokenizer):
    rows = [_row(_record(), tokenizer, number=i) for i in range(400)]
    assert _at_chance(sum(map(_is_mirrored, rows)), 400, 0.5)
    for row in rows:
        kept = BOXES if not _is_mirrored(row) else np.array([[0.5, 0.25, 1, 0.75], [0, 0, 0.5, 1]])
        np.testing.assert_allclose(row["region_boxes"][:2], kept, atol=1e-6)
        assert np.array_equal(row["region_features"][:2], _record().features)
    config = _config(**{"data.image.flip": False})
    assert not any(_is_mirrored(_row(_record(), tokenizer, config, i)) for i in range(30))


@pytest.mark.parametrize(
    ("texts", "chance"),
    [
        ({"en": ("a ball on the left",), "de": ("ein Ball",)}, 0),
        ({"en": ("a ball",), "de": ("ein Ball rechts",)}, 0),
        ({"en": ("a ball",), "zh": ("左上",)}, 0),
        ({"en": ("a ball", "a ball on the left")}, 0),
        ({"en": ("a ball",), "mi": ("he whetū",)}, 0),  # a language without a word list
        ({"en": ("a ball", "a ball on the left"), "de": ("ein Ball",)}, 0.25),  # if drawn
    ],
)
def test_no_image_is_mirrored_of_which_a_drawn_caption_speaks_of_sides(tokenizer, texts, chance):
    rows = [_row(_record(texts), tokenizer, number=i) for i in range(200)]
    assert _at_chance(sum(map(_is_mirrored, rows)), 200, chance)


@pytest.mark.parametrize(
    ("elements", "whole", "chance"),
    [
        ([_element()], None, 0.5),
        ([_element(text="left ball")], None, 0),
        ([_element(en=("left",))], None, 0),
        ([_element(text="Ball links", language="de")], None, 0),
        ([_element()], {"en": ("all of it left",)}, 0),
        ([_element(language="und")], None, 0),  # it might
    ],
)
def test_no_image_is_mirrored_of_which_a_part_s_text_speaks_of_sides(
    tokenizer, elements, whole, chance
):
    rows = [_region_row(elements, tokenizer, n, whole) for n in range(200)]
    assert _at_chance(sum(map(_is_mirrored, rows)), 200, chance)


def test_each_visual_part_is_dropped_with_its_chance_and_never_both(tokenizer):
    config = _config(**{"data.modality_dropout": 0.15})
    rows = [_row(_record(), tokenizer, config, i) for i in range(2000)]
    patches, regions = (np.array([row[f"use_{p}"] for row in rows]) for p in ("patches", "regions"))
    assert patches.dtype == regions.dtype == bool and np.all(patches | regions)
    assert _at_chance(np.sum(~patches), 2000, 0.15) and _at_chance(np.sum(~regions), 2000, 0.15)


@pytest.mark.parametrize("form", ["patches", "regions"])
def test_training_may_show_one_visual_form_alone(tokenizer, form):
    config = _config(**{"data.modality_dropout": 0.5, "data.visual_forms": form})
    rows = [_row(_record(), tokenizer, config, i) for i in range(20)]
    for name in ("patches", "regions"):
        assert {bool(row[f"use_{name}"]) for row in rows} == {name == form}
    assert _row(_record(boxes=None), tokenizer, config)["use_patches"]  # it has nothing else


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
    config = _config(**{"data.mask_ratio": 0.5, "data.max_masked": 4})
    encoded = [ids.tolist() for [text] in NEUTRAL.values() for ids in tokenizer.encode([text])]
    firsts = set()
    for number in range(20):
        row = _row(_record(), tokenizer, config, number)
        a, b = (row[name].tolist() for name in ("ids_a", "ids_b"))
        assert sorted([a, b]) == sorted(encoded)
        firsts.add(tuple(a))
        count = int(np.sum(row["masked_labels"] != IGNORED))
        words = int(np.sum(row["ids_a"] > 2))
        assert count == min(4, max(1, round(0.5 * words))) and row["masked_labels"].shape == (4,)
        restored = row["masked_ids"].copy()
        restored[row["masked_positions"][:count]] = row["masked_labels"][:count]
        assert restored.tolist() == a
        assert row["groups"] == BASE and row["groups"].dtype == np.int32
    assert len(firsts) == 2


def test_a_row_is_a_function_of_its_random_generator(tokenizer):
    config = _config(**{"data.image.crop_scale": (0.3, 1.0), "data.image.jitter": 0.4})
    elements = [_element((0.1, 0.1, 0.5, 0.6)), _element((0.4, 0.4, 1, 1), "blue box")]
    for make in (
        lambda number: _row(_record(), tokenizer, config, number),
        lambda number: _region_row(elements, tokenizer, number),
    ):
        one, same, other = map(make, (1, 1, 2))
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


def test_what_makes_no_row_is_named_with_the_record(tokenizer, tmp_path):
    record = dataclasses.replace(_record(), features=np.zeros((2, 7), np.float32))
    with pytest.raises(BadRecord, match=r"captions\.jsonl:3: .*\[2, 7\].*model.roi.feature_size=5"):
        evaluation_row(record, _config())
    (tmp_path / "tokenizer.json").write_text(tokenizer.to_json(), encoding="utf-8")
    config = _config(**{"data.clean_captions": True, "data.tokenizer.path": str(tmp_path)})
    cleaning = run_tokenizer(config, Corpus({}, [], []), None)
    with pytest.raises(BadRecord, match=r"file:3: .*'\?!'.*set data.clean_captions to False"):
        _region_row([_element(text="?!")], cleaning)
    config.data.clean_captions = False
    _region_row([_element(text="?!")], run_tokenizer(config, Corpus({}, [], []), None))


@settings(max_examples=60)
@given(corners=boxes(), has_whole=st.booleans(), per_image=st.integers(1, 7), seed=st.integers(0))
def test_slots_hold_elements_of_the_crop_each_before_any_again(
    tokenizer, corners, has_whole, per_image, seed
):
    words = WORDS[: len(corners)]
    elements = [_element(box, text) for box, text in zip(corners, words, strict=True)]
    whole = {"en": ("left all of it",)} if has_whole else {}
    config = _config(**{"data.regions.per_image": per_image})
    row = _region_row(elements, tokenizer, seed % 2**60, whole, config)
    texts = _texts(row, tokenizer)
    assert row["is_image"].tolist() == [has_whole] + [False] * (per_image - 1)
    if has_whole:
        assert texts[0] == "left all of it" and row["groups"][0] == BASE
        assert row["boxes"][0].tolist() == [0.5, 0.5, 1, 1] and row["region_tokens"][0].all()
    numbers = [words.index(text) for text in texts[has_whole:]]
    assert row["groups"][has_whole:].tolist() == [BASE + 1 + number for number in numbers]
    cycle = len(set(numbers))
    assert numbers == (numbers[:cycle] * per_image)[: len(numbers)]  # cyclic, nothing twice before
    assert np.all((row["masked_labels"] >= 0).sum(axis=1) >= 1)
    low, high = (row["boxes"][:, :2] + sign * row["boxes"][:, 2:] / 2 for sign in (-1, 1))
    assert np.all(low > -1e-6) and np.all(high < 1 + 1e-6) and np.all(row["boxes"][:, 2:] > 0)


@settings(max_examples=40)
@given(corners=boxes(most=3), seed=st.integers(0, 2**60), flip=st.booleans())
def test_boxes_and_patches_frame_what_the_picture_shows(tokenizer, corners, seed, flip):
    """A drawn box comes out where the row says, whatever crop, mirror and scale."""
    x1, y1, x2, y2 = (round(e * n) for e, n in zip(corners[0], (60, 40, 60, 40), strict=True))
    pixels = np.zeros((400, 600, 3), np.uint8)
    pixels[10 * y1 : 10 * y2, 10 * x1 : 10 * x2] = 255
    changes = {"data.image.flip": flip, "data.regions.per_image": 1, "model.patch.image_size": 64}
    row = _region_row(
        [_element(corners[0])], tokenizer, seed, config=_config(**changes), pixels=pixels
    )
    lit = row["image"][..., 0] > 127
    cx, cy, width, height = 64 * row["boxes"][0]
    rows, columns = np.flatnonzero(lit.any(axis=1)), np.flatnonzero(lit.any(axis=0))
    assert np.allclose([columns[0], columns[-1] + 1], [cx - width / 2, cx + width / 2], atol=1.1)
    assert np.allclose([rows[0], rows[-1] + 1], [cy - height / 2, cy + height / 2], atol=1.1)
    patches = row["region_tokens"][0, 1:].reshape(8, 8)
    covered = lit.reshape(8, 8, 8, 8).mean(axis=(1, 3))
    assert not (covered[~patches] > 0.3).any() and (covered[patches] > 0).any()


def test_elements_of_which_the_crop_shows_half_or_less_are_left_out(tokenizer):
    halves = [_element((0, 0, 0.5, 1)), _element((0.5, 0, 1, 1), "blue ball")]
    seen = set()
    for number in range(60):
        row = _region_row(halves, tokenizer, number)
        width_of = {t: b[2] for t, b in zip(_texts(row, tokenizer), row["boxes"], strict=True)}
        seen |= width_of.keys()
        # Both halves are as wide in the picture, so one is shown by more than half of the other.
        widths = list(width_of.values())
        assert sum(widths) <= 1 + 1e-6
        assert len(widths) == 1 or min(widths) > 0.5 * max(widths) - 1e-6
    assert seen == {"red ball", "blue ball"}


def test_attributes_stand_before_their_caption_in_a_language_that_is_equally_likely(tokenizer):
    texts = {"en": ("ball", "box"), "de": ("Ball",), "fr": ("all",)}
    element = Element((0, 0, 1, 1), texts, {"en": ("red", "blue"), "cs": ("left",)})
    drawn = collections.Counter(
        t for n in range(300) for t in _texts(_region_row([element], tokenizer, n), tokenizer)
    )
    english = [
        drawn.pop(f"{colour} {thing}") for colour in ("red", "blue") for thing in texts["en"]
    ]
    assert drawn.keys() == {"Ball", "all"}
    assert stats.chisquare([sum(english), *drawn.values()]).pvalue > 1e-3


class Plain:
    @staticmethod
    def clean(text):
        return text


LANGUAGE_TEXTS = st.dictionaries(
    st.sampled_from(("en", "de")), st.lists(st.sampled_from("abcde"), max_size=2), max_size=2
)


@given(st.lists(LANGUAGE_TEXTS, min_size=1, max_size=6))
def test_captions_in_common_make_one_group_be_it_through_others(captions):
    groups = caption_groups(captions, Plain)
    said = [{(code, t) for code, texts in one.items() for t in texts} for one in captions]
    # Reachability by repeated squaring, as the independent reference.
    linked = np.array([[bool(a & b) or a is b for b in said] for a in said])
    for _ in captions:
        linked = linked @ linked
    assert np.array_equal(groups[:, None] == groups[None], linked)
    assert groups.dtype == np.int32 and np.all((groups >= 0) & (groups < len(captions)))


def test_further_changes_move_no_box(tokenizer):
    changes = {"data.image.rand_augment": (4, 9), "data.image.flip": False}
    changed, plain = _config(**changes), _config(**{"data.image.flip": False})
    for make in (
        lambda config, n: _region_row([_element()], tokenizer, n, config=config),
        lambda config, n: _row(_record(), tokenizer, config, n),
    ):
        differing = 0
        for number in range(20):
            images = [make(config, number)["image"] for config in (changed, plain)]
            differing += not np.array_equal(*images)
            away = np.delete(np.arange(SIDE), range(SIDE // 2 - 2, SIDE // 2 + 2))  # from the edge
            assert np.array_equal(*(np.argmax(image[:, away], axis=-1) for image in images))
        assert differing > 5
