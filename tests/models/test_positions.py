"""Position tables for other sizes: PyTorch's bicubic interpolation, and a slow computation."""

from __future__ import annotations

import numpy as np
import pytest

from rc3_jax.models.positions import bicubic_weights, resize_positions, resize_relative_positions
from tests.vision_reference import require


@pytest.mark.parametrize("extra", [0, 1])
@pytest.mark.parametrize("old, new", [(1, 3), (2, 5), (4, 3), (7, 12), (14, 24), (14, 5)])
def test_absolute_positions_equal_those_of_pytorch(old, new, extra):
    torch = require("torch")
    rng = np.random.default_rng(old)
    table = rng.normal(size=(1, extra + old * old, 5)).astype(np.float32)
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


def _spline_matrix(places: np.ndarray, at: np.ndarray) -> np.ndarray:
    """`[at, places]`: a cubic spline's values as a linear function of those at its places.

    Written in powers and truncated powers; the second and the last but one place are no knots.
    """

    def basis(x):
        powers = [x**power for power in range(4)]
        return np.stack(powers + [np.maximum(x - k, 0) ** 3 for k in scaled[2:-2]], axis=-1)

    scaled, at = places / places[-1], at / places[-1]
    return np.linalg.solve(basis(scaled).T, basis(at).T).T


def _resized_slowly(table: np.ndarray, old: int, new: int) -> tuple[np.ndarray, float]:
    """The resized table of one head, and the ratio, a root of 1 + q + q^2 + ... = new - 1."""
    roots = np.roots([1.0] * (old - 2) + [1.0 - (new - 1)])
    (ratio,) = [root.real for root in roots if abs(root.imag) < 1e-9 and root.real > 0]
    half = [sum(ratio**power for power in range(count)) for count in range(1, old)]
    places = np.array([-place for place in reversed(half)] + [0.0] + half)
    matrix = _spline_matrix(places, np.arange(1 - new, new).astype(float))
    return matrix @ table.reshape(2 * old - 1, -1) @ matrix.T, ratio


@pytest.mark.parametrize("old, new, extra", [(7, 12, 0), (7, 8, 0), (3, 5, 0), (14, 24, 3)])
def test_relative_positions_equal_a_slow_computation(old, new, extra):
    count = (2 * old - 1) ** 2
    table = np.random.default_rng(1).normal(size=(count + extra, 3)).astype(np.float32)
    resized = resize_relative_positions(table, new, extra)
    side = 2 * new - 1
    assert resized.shape == (side**2 + extra, 3) and resized.dtype == table.dtype
    np.testing.assert_array_equal(resized[side**2 :], table[count:])
    np.testing.assert_array_equal(resized[side**2 // 2], table[count // 2])
    for head in range(3):
        expected, ratio = _resized_slowly(np.float64(table[:count, head]), old, new)
        actual = resized[: side**2, head].reshape(side, side)
        np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-5)
    if (old, new) == (7, 12):
        np.testing.assert_allclose(ratio, 1.2407, atol=1e-4)


def test_the_own_size_changes_nothing():
    table, windows = np.ones((1, 17, 5), np.float32), np.ones((25, 2), np.float32)
    assert resize_positions(table, 4, 1) is table
    assert resize_relative_positions(windows, 3) is windows


def test_other_tables_are_refused():
    for count, grid, extra in ((5, 3, 0), (4, 3, 1), (1, 2, 1), (4, 0, 0)):
        with pytest.raises(ValueError, match=f"{grid} x {grid}"):
            resize_positions(np.zeros((1, count, 2)), grid, extra)
    for rows, window, extra in ((25, 2, 0), (9, 4, 0), (25, 4, 3), (24, 4, 0)):
        with pytest.raises(ValueError, match="table"):
            resize_relative_positions(np.ones((rows, 2), np.float32), window, extra)
