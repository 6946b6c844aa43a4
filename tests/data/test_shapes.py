"""Masks of the shapes against their known areas, extents and symmetry."""

import math

import numpy as np
import pytest

from rc3_jax.data.shapes import COLOURS, INSIDE, paint, shape_mask

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


@pytest.mark.parametrize("shape", INSIDE)
def test_mask_has_the_area_of_its_shape(shape):
    mask = shape_mask(shape, BOX, 64, samples=8)
    assert mask.dtype == np.float32 and mask.shape == (64, 64)
    assert mask.sum() / 32**2 == pytest.approx(AREAS[shape], abs=0.01)


@pytest.mark.parametrize("shape", INSIDE)
def test_mask_fills_its_box_and_no_more(shape):
    mask = shape_mask(shape, BOX, 64)
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    assert rows.min() <= 17 and rows.max() == 47
    assert columns.min() == 8 and columns.max() == 39
    assert rows.min() >= 16


@pytest.mark.parametrize("shape", INSIDE)
def test_mask_is_symmetric_from_left_to_right(shape):
    mask = shape_mask(shape, (0.25, 0.25, 0.75, 0.75), 64)
    np.testing.assert_array_equal(mask, mask[:, ::-1])


@pytest.mark.parametrize("shape", INSIDE)
def test_mask_tells_the_shapes_apart(shape):
    mask = shape_mask(shape, BOX, 64)
    for other in set(INSIDE) - {shape}:
        assert np.abs(mask - shape_mask(other, BOX, 64)).mean() > 0.01


def test_edges_are_antialiased_by_how_much_of_a_pixel_is_covered():
    mask = shape_mask("square", (1.25 / 8, 2 / 8, 4.5 / 8, 4 / 8), 8)
    np.testing.assert_allclose(mask[2], [0, 0.75, 1, 1, 0.5, 0, 0, 0])


def test_paint_changes_covered_pixels_only():
    image = np.full((8, 8, 3), 240, np.float32)
    paint(image, "square", "blue", (0, 0, 0.5, 0.5))
    np.testing.assert_allclose(image[:4, :4], np.broadcast_to(COLOURS["blue"], (4, 4, 3)))
    assert (image[4:] == 240).all() and (image[:, 4:] == 240).all()
