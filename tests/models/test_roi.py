"""RoI-align against a loop over samples, box geometry, and what the ROI tower listens to."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings

from rc3_jax.models.layers import Stack
from rc3_jax.models.roi import RoiTower, box_geometry, roi_align

GRIDS = [(1, 1), (2, 5), (7, 4), (14, 14)]
BOXES = {
    "whole image": (0.0, 0.0, 1.0, 1.0),
    "inside": (0.21, 0.37, 0.68, 0.93),
    "left and top border": (0.0, 0.0, 0.3, 0.2),
    "right and bottom border": (0.7, 0.8, 1.0, 1.0),
    "tiny": (0.501, 0.499, 0.502, 0.5),
    "tiny in the corner": (0.999, 0.999, 1.0, 1.0),
    "a line": (0.1, 0.6, 0.9, 0.6),
    "a point": (0.25, 0.75, 0.25, 0.75),
    "a column wide": (0.4, 0.0, 0.45, 1.0),
}


def _bilinear(grid: np.ndarray, y: float, x: float) -> np.ndarray:
    """torchvision's `bilinear_interpolate`: cell i has its value at i; zero beyond one cell out."""
    rows, columns, width = grid.shape
    if y < -1 or y > rows or x < -1 or x > columns:
        return np.zeros(width)
    y, x = max(y, 0.0), max(x, 0.0)
    low_y, low_x = min(math.floor(y), rows - 1), min(math.floor(x), columns - 1)
    high_y, high_x = min(low_y + 1, rows - 1), min(low_x + 1, columns - 1)
    y, x = min(y, rows - 1), min(x, columns - 1)
    part_y, part_x = y - low_y, x - low_x
    top = (1 - part_x) * grid[low_y, low_x] + part_x * grid[low_y, high_x]
    bottom = (1 - part_x) * grid[high_y, low_x] + part_x * grid[high_y, high_x]
    return (1 - part_y) * top + part_y * bottom


def _roi_align_by_loops(grid: np.ndarray, box, bins: int) -> np.ndarray:
    """One box: torchvision's `roi_align(aligned=True, sampling_ratio=2)`, then the mean."""
    rows, columns, _ = grid.shape
    x1, y1, x2, y2 = (
        float(number) * size - 0.5
        for number, size in zip(box, (columns, rows, columns, rows), strict=True)
    )
    values = []
    for row in range(bins):
        for column in range(bins):
            for step_y in (0.25, 0.75):
                for step_x in (0.25, 0.75):
                    y = y1 + (y2 - y1) / bins * (row + step_y)
                    x = x1 + (x2 - x1) / bins * (column + step_x)
                    values.append(_bilinear(grid, y, x))
    return np.mean(values, axis=0)


def _assert_aligned(grid: np.ndarray, boxes: np.ndarray, bins: int):
    expected = [
        [_roi_align_by_loops(row.astype(np.float64), box, bins) for box in row_boxes]
        for row, row_boxes in zip(grid, boxes, strict=True)
    ]
    actual = jax.jit(roi_align, static_argnums=2)(grid, boxes, bins)
    np.testing.assert_allclose(actual, np.array(expected), rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", GRIDS)
@pytest.mark.parametrize("bins", [7, 2])
def test_roi_align_equals_the_loop(shape, bins):
    rng = np.random.default_rng(0)
    grid = rng.normal(size=(2, *shape, 3)).astype(np.float32)
    boxes = np.array([list(BOXES.values()), list(BOXES.values())[::-1]], np.float32)
    _assert_aligned(grid, boxes, bins)


_FRACTION = st.floats(0, 1, width=32)


@settings(max_examples=40, deadline=None)
@example((0.0, 1.0), (0.0, 1.0), 0)
@example((1.0, 1.0), (0.0, 0.0), 1)
@given(
    st.tuples(_FRACTION, _FRACTION).map(sorted),
    st.tuples(_FRACTION, _FRACTION).map(sorted),
    st.integers(0, 2**32 - 1),
)
def test_roi_align_equals_the_loop_for_any_box(xs, ys, seed):
    grid = np.random.default_rng(seed).normal(size=(1, 3, 5, 2)).astype(np.float32)
    boxes = np.array([[[xs[0], ys[0], xs[1], ys[1]]]], np.float32)
    _assert_aligned(grid, boxes, bins=7)


def test_roi_align_of_a_ramp_is_the_centre_of_the_box():
    """Independent of any sampling rule: bilinear interpolation is exact on a plane."""
    rows, columns = 8, 12
    y, x = np.mgrid[:rows, :columns]
    grid = np.stack([(x + 0.5) / columns, (y + 0.5) / rows], axis=-1)[None].astype(np.float32)
    boxes = np.array([[[0.2, 0.3, 0.6, 0.5], [0.5, 0.25, 0.8, 0.75]]], np.float32)
    centres = (boxes[..., :2] + boxes[..., 2:]) / 2
    np.testing.assert_allclose(roi_align(grid, boxes), centres, atol=1e-5)


def test_roi_align_in_half_precision_keeps_boxes_exact():
    """Among stripes one cell wide, where a box rounded to bfloat16 is up to 1/8 of a cell off."""
    stripes = np.broadcast_to((-1.0) ** np.arange(64)[:, None], (1, 1, 64, 1))
    left = np.random.default_rng(0).uniform(0.5, 0.99, 20)
    boxes = np.stack([left, 0 * left, left + 0.001, 0 * left + 1], axis=-1).astype(np.float32)
    expected = [_roi_align_by_loops(stripes[0], box, 7) for box in boxes]
    aligned = roi_align(jnp.asarray(stripes, jnp.bfloat16), boxes[None])
    assert aligned.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(aligned[0], np.float64), expected, atol=0.02)


def test_box_geometry_forms():
    boxes = np.array([[[0.1, 0.2, 0.4, 0.8], [0.0, 0.5, 1.0, 0.75]]], np.float32)
    seven = [[0.1, 0.2, 0.4, 0.8, 0.3, 0.6, 0.18], [0.0, 0.5, 1.0, 0.75, 1.0, 0.25, 0.25]]
    np.testing.assert_allclose(box_geometry(boxes, "7d")[0], seven, atol=1e-6)
    five = [row[:4] + row[6:] for row in seven]
    np.testing.assert_allclose(box_geometry(boxes, "5d")[0], five, atol=1e-6)
    assert box_geometry(jnp.asarray(boxes, jnp.bfloat16), "7d").dtype == jnp.float32


TOWER = RoiTower(Stack(2, 3, 20, pre_norm=True, epsilon=1e-5), width=12)
APPLY = jax.jit(TOWER.apply)


def _regions(seed: int = 0) -> dict[str, np.ndarray]:
    """Two rows of five regions, the last two padding; features in the first row only."""
    rng = np.random.default_rng(seed)
    corners = np.sort(rng.uniform(size=(2, 5, 2, 2)), axis=2).astype(np.float32)
    return dict(
        features=rng.normal(size=(2, 5, 9)).astype(np.float32),
        boxes=corners.reshape(2, 5, 4),
        mask=np.broadcast_to(np.arange(5) < 3, (2, 5)),
        has_features=np.array([True, False]),
        grid=rng.normal(size=(2, 3, 4, 12)).astype(np.float32),
    )


@pytest.fixture(scope="module")
def variables():
    rng = np.random.default_rng(7)
    template = jax.eval_shape(lambda: TOWER.init(jax.random.key(0), **_regions()))
    return jax.tree.map(lambda x: rng.normal(0, 0.3, x.shape).astype(x.dtype), template)


def test_features_where_given_and_the_grid_elsewhere(variables):
    regions, other = _regions(0), _regions(1)
    states = APPLY(variables, **regions)
    new_features = APPLY(variables, **regions | {"features": other["features"]})
    new_grid = APPLY(variables, **regions | {"grid": other["grid"]})
    new_boxes = APPLY(variables, **regions | {"boxes": other["boxes"]})
    for row, (listens, deaf) in enumerate([(new_features, new_grid), (new_grid, new_features)]):
        np.testing.assert_array_equal(deaf[row], states[row])
        assert np.abs(listens[row] - states[row])[:3].max(axis=1).min() > 1e-2
        assert np.abs(new_boxes[row] - states[row])[:3].max(axis=1).min() > 1e-2


def test_no_grid_is_needed_where_all_rows_have_features(variables):
    regions = _regions() | {"has_features": np.ones(2, bool)}
    expected = APPLY(variables, **regions)
    np.testing.assert_allclose(
        APPLY(variables, **regions | {"grid": None}), expected, rtol=0, atol=1e-6
    )


def test_padding_regions_have_no_influence(variables):
    regions, other = _regions(0), _regions(1)
    padded = {
        name: np.where(np.expand_dims(regions["mask"], -1), regions[name], 50 * other[name])
        for name in ("features", "boxes")
    }
    expected = APPLY(variables, **regions)[:, :3]
    np.testing.assert_array_equal(APPLY(variables, **regions | padded)[:, :3], expected)


def test_regions_are_a_set(variables):
    regions, order = _regions(), np.array([2, 0, 1, 3, 4])
    states = APPLY(variables, **regions)
    moved = regions | {name: regions[name][:, order] for name in ("features", "boxes")}
    np.testing.assert_allclose(APPLY(variables, **moved), states[:, order], rtol=0, atol=1e-5)
