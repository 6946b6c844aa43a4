"""Drawings of scenes: shapes against their known areas, extents and symmetry; colours; panes."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rc3_jax.scenes.draw import INSIDE, RGB, coverage, draw
from rc3_jax.scenes.scene import ATTRIBUTES, random_scene

BOX = (0.125, 0.25, 0.625, 0.75)  # 32 pixels wide and high on a canvas of 64

# A pentagram of circumradius 1 has 10 / tan(36°) · r² with inner radius r = 0.382 as its area
# and fills a box of 1.902 by 1.809.
PENTAGRAM_SHARE = 1.12257 / (1.90211 * 1.80902)
AREAS = {
    "circle": math.pi / 4,
    "square": 1.0,
    "triangle": 0.5,
    "star": PENTAGRAM_SHARE,
    "cross": 5 / 9,
}


def on_canvas(shape: str, box, size: int, **options) -> np.ndarray:
    """How much of each pixel of a canvas a shape covers, float32 `[size, size]`."""
    canvas = np.zeros((size, size), np.float32)
    place, covered = coverage(shape, box, size, **options)
    canvas[place] = covered
    return canvas


@pytest.mark.parametrize("shape", INSIDE)
def test_mask_is_symmetric_and_has_the_area_and_the_box_of_its_shape(shape):
    mask = on_canvas(shape, BOX, 64, samples=8)
    assert mask.dtype == np.float32 and mask.shape == (64, 64)
    assert mask.sum() / 32**2 == pytest.approx(AREAS[shape], abs=0.01)
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    assert 16 <= rows.min() <= 17 and rows.max() == 47
    assert columns.min() == 8 and columns.max() == 39
    np.testing.assert_array_equal(mask[:, 8:40], mask[:, 39:7:-1])
    for other in set(INSIDE) - {shape}:
        assert np.abs(mask - on_canvas(other, BOX, 64)).mean() > 0.01


def test_edges_are_antialiased_by_how_much_of_a_pixel_is_covered():
    mask = on_canvas("square", (1.25 / 8, 2 / 8, 4.5 / 8, 4 / 8), 8)
    np.testing.assert_allclose(mask[2], [0, 0.75, 1, 1, 0.5, 0, 0, 0])


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**40))
def test_objects_stand_apart_and_are_drawn_with_nothing_else(seed):
    scene = random_scene(np.random.default_rng(seed))
    image = draw(scene)
    assert image.dtype == np.uint8 and image.shape == (64, 64, 3)
    assert 2 <= len(scene.objects) <= 4 and min(scene.background) > 200
    assert len({item.place for item in scene.objects}) == len(scene.objects)
    empty = np.ones((64, 64), bool)
    for item in scene.objects:
        left, top = 0.5 * ("right" in item.place), 0.5 * ("bottom" in item.place)
        x1, y1, x2, y2 = item.box
        assert left < x1 < x2 < left + 0.5 and top < y1 < y2 < top + 0.5
        assert (x2 - x1 > 0.3) == (item.size == "large")
        assert tuple(image[int(32 * (y1 + y2)), int(32 * (x1 + x2))]) == RGB[item.colour]
        empty[int(64 * y1) : math.ceil(64 * y2), int(64 * x1) : math.ceil(64 * x2)] = False
    assert (image[empty] == scene.background).all()


def test_picture_can_be_drawn_at_any_size():
    scene = random_scene(np.random.default_rng(3))
    large = draw(scene, 256).astype(np.float32).reshape(64, 4, 64, 4, 3).mean(axis=(1, 3))
    assert np.abs(large - draw(scene)).mean() < 1


@pytest.mark.parametrize("size", [64, 63])
@pytest.mark.parametrize(("hidden", "seen"), [("colour", "shape"), ("shape", "colour")])
def test_pane_hides_one_attribute_of_its_object_and_shows_the_other(hidden, seen, size):
    whole = random_scene(np.random.default_rng(5))
    first, *others = whole.objects

    def drawn(**changes):
        item = dataclasses.replace(first, **changes)
        return draw(dataclasses.replace(whole, objects=(item, *others)), size)

    covered = drawn(hidden=hidden)
    for value in ATTRIBUTES[hidden]:
        np.testing.assert_array_equal(drawn(hidden=hidden, **{hidden: value}), covered)
    shown = [drawn(hidden=hidden, **{seen: value}) for value in ATTRIBUTES[seen]]
    for one, other in itertools.combinations(shown, 2):
        assert np.sum(np.any(one != other, axis=-1)) >= 8  # pixels
    changed = np.argwhere(np.any(covered != draw(whole, size), axis=-1))
    low, high = np.array(first.box).reshape(2, 2)[:, ::-1] * size
    assert (changed >= np.floor(low)).all() and (changed < np.ceil(high)).all()


def test_hole_shows_the_colour_and_the_shadow_none():
    scene = random_scene(np.random.default_rng(5))
    for item in scene.objects:
        x1, y1, x2, y2 = item.box
        centre = int(32 * (y1 + y2)), int(32 * (x1 + x2))
        for hidden, expected in (("shape", RGB[item.colour]), ("colour", (80, 80, 80))):
            changed = dataclasses.replace(item, hidden=hidden)
            image = draw(dataclasses.replace(scene, objects=(changed,)))
            assert tuple(image[centre]) == expected
            corner = image[int(64 * y1) + 1, int(64 * x1) + 1]
            assert item.shape == "square" and hidden == "colour" or tuple(corner) == (128,) * 3
