"""Position tables for other sizes: equal to PyTorch's bicubic interpolation."""

from __future__ import annotations

import numpy as np
import pytest

from rc3_jax.convert.resize import bicubic_weights, resize_positions
from tests.vision_reference import require


def _table(old: int, extra: int) -> np.ndarray:
    shape = (1, extra + old * old, 5)
    return np.random.default_rng(old).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("extra", [0, 1])
@pytest.mark.parametrize("old, new", [(1, 3), (2, 5), (4, 3), (7, 12), (14, 24), (14, 5)])
def test_equals_pytorch(old, new, extra):
    torch = require("torch")
    table = _table(old, extra)
    image = torch.from_numpy(table[0, extra:].reshape(1, old, old, 5)).permute(0, 3, 1, 2)
    expected = torch.nn.functional.interpolate(
        image, size=(new, new), mode="bicubic", align_corners=False
    )
    expected = expected.permute(0, 2, 3, 1).reshape(1, new * new, 5).numpy()
    resized = resize_positions(table, new, extra)
    assert resized.dtype == np.float32
    np.testing.assert_array_equal(resized[:, :extra], table[:, :extra])
    # PyTorch rounds the weights too: 1e-6 is of the largest entry.
    atol = 1e-6 * np.abs(table).max()
    np.testing.assert_allclose(resized[:, extra:], expected, rtol=0, atol=atol)


def test_weights_of_a_point_sum_to_one():
    np.testing.assert_allclose(bicubic_weights(7, 12).sum(axis=1), 1.0, atol=1e-12)
    np.testing.assert_allclose(bicubic_weights(5, 5), np.eye(5), atol=1e-12)


def test_the_own_size_changes_nothing():
    table = _table(4, 1)
    assert resize_positions(table, 4, 1) is table


@pytest.mark.parametrize("count, grid, extra", [(5, 3, 0), (4, 3, 1), (1, 2, 1), (4, 0, 0)])
def test_what_is_no_square_grid_is_refused(count, grid, extra):
    with pytest.raises(ValueError, match="positions of patches cannot become"):
        resize_positions(np.zeros((1, count, 2)), grid, extra)
