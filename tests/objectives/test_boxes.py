"""Box losses against areas that are counted pixel by pixel, and against the formula in float64."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from rc3_jax.objectives.boxes import box_losses, generalised_iou

GRID = 16
edges = st.tuples(st.integers(0, GRID), st.integers(0, GRID)).filter(lambda e: e[0] != e[1])
boxes = st.tuples(edges, edges).map(lambda e: (*sorted(e[0]), *sorted(e[1])))


def _centred(box) -> np.ndarray:
    x1, x2, y1, y2 = np.array(box) / GRID
    return np.array([[(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1]], np.float32)


def _pixels(box) -> np.ndarray:
    x1, x2, y1, y2 = box
    inside = np.zeros((GRID, GRID), bool)
    inside[y1:y2, x1:x2] = True
    return inside


@given(boxes, boxes)
def test_generalised_iou_counts_pixels(a, b):
    first, second = _pixels(a), _pixels(b)
    union = (first | second).sum()
    hull = (max(a[1], b[1]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[2], b[2]))
    expected = (first & second).sum() / union - (hull - union) / hull
    np.testing.assert_allclose(generalised_iou(_centred(a), _centred(b)), expected, atol=1e-6)


def test_rows_that_do_not_count_are_left_out_and_none_gives_zero():
    rng = np.random.default_rng(0)
    predicted, target = (rng.uniform(0.2, 0.4, (5, 4)).astype(np.float32) for _ in range(2))
    counted = np.array([1, 0, 1, 1, 0], bool)
    l1, giou = box_losses(predicted, target, counted)
    np.testing.assert_allclose(l1, np.abs(predicted - target)[counted].sum() / 3, rtol=1e-6)
    one = 1 - np.array(generalised_iou(predicted, target))
    np.testing.assert_allclose(giou, one[counted].mean(), rtol=1e-6)
    assert box_losses(predicted, target, np.zeros(5, bool)) == (0, 0)


def test_boxes_without_extent_give_finite_gradients():
    empty = jnp.zeros((2, 4))

    def loss(predicted):
        return sum(box_losses(predicted, empty, np.ones(2, bool)))

    assert np.all(np.isfinite(jax.grad(loss)(empty)))
