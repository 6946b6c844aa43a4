"""Crops about an element, and the patches that a box touches; against brute force."""

from __future__ import annotations

import collections

import numpy as np
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from rc3_jax.data.example import (
    crop_around,
    tokens_inside,
)
from tests.data.files import boxes


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


@given(boxes(), st.integers(1, 20))
def test_tokens_are_those_of_the_patches_that_a_box_touches(corners, grid):
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
