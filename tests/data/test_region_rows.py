"""Region rows: crops, slots, groups, grids, flips; against brute force where that exists."""

from __future__ import annotations

import collections

import ml_collections
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from rc3_jax.data.record import BadRecord, Element, Record
from rc3_jax.data.region_rows import caption_groups, crop_around, region_row, tokens_inside
from rc3_jax.data.tokenizer import train_tokenizer
from tests.tiny import tiny_config

COLOURS = ("red", "green", "blue", "white", "grey", "black")
SIDE = 64  # of a row's image
BASE = 100  # group of a record


def _words(count: int) -> list[str]:
    return [f"{colour} {shape}" for colour in COLOURS for shape in ("ball", "box")][:count]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([*_words(12), "left all of it", "ein Ball links"] * 3, 120, 12)


def _config(**changes) -> ml_collections.ConfigDict:
    config = tiny_config()
    config.data.max_length = 12
    config.data.image.update(jitter=0.0, flip=True)
    config.data.regions.update(per_image=5, grid=8)
    config.model.patch.image_size = SIDE
    config.update_from_flattened_dict(changes)
    return config


def _row(elements, tokenizer, number=0, whole=None, config=None, pixels=None) -> dict:
    pixels = np.zeros((40, 60, 3), np.uint8) if pixels is None else pixels
    record = Record("file:3", 7, whole or {}, lambda: pixels, elements=tuple(elements))
    rng = np.random.Generator(np.random.Philox(number))
    return region_row(record, BASE, (), tokenizer, config or _config(), rng)


def _texts(row, tokenizer) -> list[str]:
    return [tokenizer.decode(ids) for ids in row["ids_a"]]


def _element(box, text="red ball", language="en", **attributes) -> Element:
    return Element(box, {language: (text,)}, attributes)


@st.composite
def boxes(draw, most=6):
    """Boxes at whole pixels of a picture of 60 x 40."""
    found = []
    for _ in range(draw(st.integers(1, most))):
        x1, y1 = draw(st.integers(0, 56)), draw(st.integers(0, 36))
        x2, y2 = draw(st.integers(x1 + 2, 60)), draw(st.integers(y1 + 2, 40))
        found.append((x1 / 60, y1 / 40, x2 / 60, y2 / 40))
    return found


@given(
    st.tuples(*[st.floats(0, 1)] * 2), st.tuples(*[st.floats(0.001, 1)] * 2),
    st.integers(1, 900), st.integers(1, 900), st.integers(0, 2**32),
)  # fmt: skip
def test_a_crop_holds_its_element_and_lies_in_the_image(corner, sides, width, height, seed):
    box = (*corner, *np.minimum(np.add(corner, sides), 1))
    assume(box[0] < box[2] and box[1] < box[3])
    x1, y1, x2, y2 = crop_around(box, width, height, np.random.default_rng(seed))
    assert 0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height
    tolerance = 1e-9 * max(width, height)
    assert x1 <= box[0] * width + tolerance and x2 >= box[2] * width - tolerance
    assert y1 <= box[1] * height + tolerance and y2 >= box[3] * height - tolerance


def test_every_edge_of_a_crop_is_equally_likely():
    rng = np.random.default_rng(0)
    crops = np.array([crop_around((0.3, 0.5, 0.6, 1.0), 10, 4, rng) for _ in range(4000)])
    for column, values in enumerate((range(4), range(3), range(6, 11), [4])):
        counts = collections.Counter(crops[:, column].tolist())
        assert sorted(counts) == list(values)
        assert len(counts) == 1 or stats.chisquare(list(counts.values())).pvalue > 1e-3


@given(boxes(), st.integers(1, 20), st.integers(1, 6))
def test_tokens_are_those_of_the_patches_that_a_box_touches(corners, grid, scale):
    found = tokens_inside(np.array(corners, np.float32), grid)
    assert found.shape == (len(corners), 1 + grid * grid) and found[:, 0].all()
    for box, row in zip(corners, found, strict=True):
        # Fine pixels, so many to a patch that every edge of a box is one of theirs.
        size = 120 * grid
        x1, y1, x2, y2 = (round(edge * size) for edge in box)
        pixels = np.zeros((size, size), bool)
        pixels[y1:y2, x1:x2] = True
        touched = pixels.reshape(grid, 120, grid, 120).any(axis=(1, 3))
        assert np.array_equal(row[1:].reshape(grid, grid), touched)


def test_a_box_thinner_than_anything_still_has_a_patch():
    found = tokens_inside(np.array([[0.5, 0.5, 0.5, 0.5], [1, 1, 1, 1], [0, 0, 1e-9, 1e-9]]), 7)
    assert found[:, 1:].sum(axis=1).tolist() == [1, 1, 1]
    assert [int(row[1:].argmax()) for row in found] == [24, 48, 0]


@settings(max_examples=60)
@given(corners=boxes(), has_whole=st.booleans(), per_image=st.integers(1, 7), seed=st.integers(0))
def test_slots_hold_elements_of_the_crop_each_before_any_again(
    tokenizer, corners, has_whole, per_image, seed
):
    words = _words(len(corners))
    elements = [_element(box, text) for box, text in zip(corners, words, strict=True)]
    whole = {"en": ("left all of it",)} if has_whole else {}
    config = _config(**{"data.regions.per_image": per_image})
    row = _row(elements, tokenizer, seed % 2**60, whole, config)
    texts = _texts(row, tokenizer)

    assert row["is_image"].tolist() == [has_whole] + [False] * (per_image - 1)
    if has_whole:
        assert texts[0] == "left all of it" and row["groups"][0] == BASE
        assert row["boxes"][0].tolist() == [0.5, 0.5, 1, 1] and row["region_tokens"][0].all()
    numbers = [words.index(text) for text in texts[has_whole:]]
    assert row["groups"][has_whole:].tolist() == [BASE + 1 + number for number in numbers]
    cycle = len(set(numbers))
    assert numbers == (numbers[:cycle] * per_image)[: len(numbers)]  # cyclic, nothing twice before

    assert row["image"].shape == (SIDE, SIDE, 3) and row["image"].dtype == np.uint8
    shapes = {name: (value.shape, value.dtype) for name, value in row.items()}
    assert shapes["boxes"] == ((per_image, 4), np.float32)
    assert shapes["groups"] == ((per_image,), np.int32)
    assert shapes["region_tokens"] == ((per_image, 65), bool)
    assert shapes["ids_a"] == shapes["masked_ids"] == ((per_image, 12), np.int32)
    assert shapes["masked_labels"] == shapes["masked_positions"] == ((per_image, 12), np.int32)
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
    config = _config(**{"data.image.flip": flip, "data.regions.per_image": 1})
    row = _row([_element(corners[0])], tokenizer, seed, config=config, pixels=pixels)
    lit = row["image"][..., 0] > 127
    cx, cy, width, height = SIDE * row["boxes"][0]
    rows, columns = np.flatnonzero(lit.any(axis=1)), np.flatnonzero(lit.any(axis=0))
    assert np.allclose([columns[0], columns[-1] + 1], [cx - width / 2, cx + width / 2], atol=1.1)
    assert np.allclose([rows[0], rows[-1] + 1], [cy - height / 2, cy + height / 2], atol=1.1)
    patches = row["region_tokens"][0, 1:].reshape(8, 8)
    covered = lit.reshape(8, 8, 8, 8).mean(axis=(1, 3))
    assert not (covered[~patches] > 0.3).any() and (covered[patches] > 0).any()


def test_elements_of_which_the_crop_shows_half_or_less_are_left_out(tokenizer):
    left, right = _element((0, 0, 0.5, 1), "red ball"), _element((0.5, 0, 1, 1), "blue ball")
    texts = {
        text for n in range(60) for text in _texts(_row([left, right], tokenizer, n), tokenizer)
    }
    assert texts == {"red ball", "blue ball"}
    for number in range(60):
        row = _row([left, right], tokenizer, number)
        shown = {text: box for text, box in zip(_texts(row, tokenizer), row["boxes"], strict=True)}
        widths = [box[2] for box in shown.values()]
        assert sum(widths) <= 1 + 1e-6
        # Both halves are as wide in the picture, so one is shown by more than half of the other.
        assert len(widths) == 1 or min(widths) > 0.5 * max(widths) - 1e-6


def test_attributes_stand_whole_before_their_caption_in_its_language(tokenizer):
    element = Element(
        (0, 0, 1, 1), {"en": ("ball",), "de": ("Ball",)}, {"en": ("red", "blue"), "fr": ("gris",)}
    )
    texts = {t for n in range(40) for t in _texts(_row([element], tokenizer, n), tokenizer)}
    assert texts == {"red ball", "blue ball", "Ball"}


def test_every_language_of_an_element_is_equally_likely(tokenizer):
    element = Element(
        (0, 0, 1, 1), {"en": ("red ball", "red box"), "de": ("Ball",), "fr": ("all",)}
    )
    texts = [t for n in range(300) for t in _texts(_row([element], tokenizer, n), tokenizer)]
    counts = collections.Counter(texts)
    by_language = [counts["red ball"] + counts["red box"], counts["Ball"], counts["all"]]
    assert sum(by_language) == 1500 and stats.chisquare(by_language).pvalue > 1e-3


PIXELS = np.zeros((40, 60, 3), np.uint8)
PIXELS[:, :30, 0] = PIXELS[:, 30:, 2] = 255


@pytest.mark.parametrize(
    ("elements", "whole", "chance"),
    [
        ([_element((0, 0, 1, 1))], None, 0.5),
        ([_element((0, 0, 1, 1), "left ball")], None, 0),
        ([_element((0, 0, 1, 1), en=("left",))], None, 0),
        ([_element((0, 0, 1, 1), "Ball links", "de")], None, 0),
        ([_element((0, 0, 1, 1))], {"en": ("all of it left",)}, 0),
        ([_element((0, 0, 1, 1), language="und")], None, 0),  # it might
    ],
)
def test_no_image_is_mirrored_of_which_a_drawn_text_speaks_of_sides(
    tokenizer, elements, whole, chance
):
    rows = [_row(elements, tokenizer, n, whole, pixels=PIXELS) for n in range(200)]
    mirrored = sum(bool(row["image"][SIDE // 2, 2, 2] > 127) for row in rows)
    assert stats.binomtest(mirrored, 200, chance).pvalue > 1e-3


@given(
    st.lists(
        st.dictionaries(
            st.sampled_from(("en", "de")),
            st.lists(st.sampled_from("abcde"), max_size=2),
            max_size=2,
        ),
        min_size=1,
        max_size=6,
    )
)
def test_captions_in_common_make_one_group_be_it_through_others(captions):
    class Plain:
        @staticmethod
        def clean(text):
            return text

    groups = caption_groups(captions, Plain)
    said = [{(code, t) for code, texts in one.items() for t in texts} for one in captions]
    # Reachability by repeated squaring, as the independent reference.
    linked = np.array([[bool(a & b) or i == j for j, b in enumerate(said)]
                       for i, a in enumerate(said)])  # fmt: skip
    for _ in captions:
        linked = linked @ linked
    assert np.array_equal(groups[:, None] == groups[None], linked)
    assert groups.dtype == np.int32 and np.all((groups >= 0) & (groups < len(captions)))


def test_the_same_caption_of_two_elements_is_one_group(tokenizer):
    elements = [
        _element((0, 0, 1, 1), "red ball"),
        _element((0, 0, 1, 0.9), "blue ball"),
        _element((0, 0, 0.9, 1), "ball", en=("red",)),
    ]
    groups = collections.defaultdict(set)
    for number in range(40):
        row = _row(elements, tokenizer, number)
        for text, group in zip(_texts(row, tokenizer), row["groups"].tolist(), strict=True):
            groups[text].add(group)
    assert groups == {"red ball": {BASE + 1}, "blue ball": {BASE + 2}}


def test_colours_change_but_nothing_moves(tokenizer):
    config = _config(**{"data.image.rand_augment": (4, 9), "data.image.flip": False})
    plain, differing = _config(**{"data.image.flip": False}), 0
    for number in range(20):
        elements = [_element((0, 0, 1, 1))]
        row = _row(elements, tokenizer, number, config=config, pixels=PIXELS)
        other = _row(elements, tokenizer, number, config=plain, pixels=PIXELS)
        differing += not np.array_equal(row["image"], other["image"])
        away = np.delete(np.arange(SIDE), range(SIDE // 2 - 2, SIDE // 2 + 2))  # from the edge
        strongest = [np.argmax(image[:, away], axis=-1) for image in (row["image"], other["image"])]
        assert np.array_equal(*strongest)
    assert differing > 5


def test_a_row_is_a_function_of_its_random_generator(tokenizer):
    elements = [_element((0.1, 0.1, 0.5, 0.6)), _element((0.4, 0.4, 1, 1), "blue box")]
    one, same, other = (_row(elements, tokenizer, n) for n in (1, 1, 2))
    assert all(np.array_equal(one[name], same[name]) for name in one)
    assert not np.array_equal(one["boxes"], other["boxes"])


def test_a_text_that_cleaning_empties_is_told_with_the_record(tokenizer):
    tokenizer = type(tokenizer)(tokenizer._backend, 12, lambda text: text.strip("?! "))
    with pytest.raises(BadRecord, match="file:3: text '\\?!' has no word once it is cleaned"):
        _row([_element((0, 0, 1, 1), "?!")], tokenizer)
