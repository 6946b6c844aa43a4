"""Relative-position tables for another image size; names are tested with the towers."""

from __future__ import annotations

import numpy as np
import pytest

from rc3_jax.convert.vision_names import resize_relative_positions


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
def test_resized_tables_equal_a_slow_computation(old, new, extra):
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


def test_resizing_to_the_same_window_and_what_it_refuses():
    table = np.ones((25, 2), np.float32)
    assert resize_relative_positions(table, 3) is table
    np.testing.assert_allclose(resize_relative_positions(table, 6), 1.0, rtol=1e-6)
    for wrong, window, extra in (
        (table, 2, 0),
        (table[:9], 4, 0),
        (table, 4, 3),
        (table[1:], 4, 0),
    ):
        with pytest.raises(ValueError, match="cannot be resized|no table of a square window"):
            resize_relative_positions(wrong, window, extra)
