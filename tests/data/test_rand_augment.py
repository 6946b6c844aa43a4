"""Random changes of images, operation by operation."""

from __future__ import annotations

import collections

import numpy as np
import pytest
from PIL import Image

from rc3_jax.data import rand_augment as module
from rc3_jax.data.augment import augment
from rc3_jax.data.rand_augment import (
    COLOUR_OPERATIONS,
    GEOMETRIC_OPERATIONS,
    change,
    rand_augment,
)

EVERY = COLOUR_OPERATIONS + GEOMETRIC_OPERATIONS
NOISE = Image.fromarray(np.random.default_rng(0).integers(60, 190, (40, 40, 3)).astype(np.uint8))
POINT = np.zeros((41, 41, 3), np.uint8)
POINT[10, 30] = 255


def _centre(pixels: np.ndarray) -> np.ndarray:
    """Row and column around which the light is."""
    light = np.where(pixels[..., 0] == 128, 0, pixels[..., 0]).astype(float)
    places = np.indices(light.shape)
    return (places * light).sum(axis=(1, 2)) / light.sum()


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(
    ("operation", "moved"),
    [
        ("shear_x", lambda s: (10, 30 - s * 0.5 * 0.3 * 10.5)),  # rows go from 0, at pixel centres
        ("shear_y", lambda s: (10 - s * 0.5 * 0.3 * 30.5, 30)),
        ("translate_x", lambda s: (10, 30 - s * 5)),
        ("translate_y", lambda s: (10 - s * 5, 30)),
        # 15 degrees about the centre, which lies at (20, 20).
        (
            "rotate",
            lambda s: (
                20 - 10 * np.cos(s * np.pi / 12) - 10 * np.sin(s * np.pi / 12),
                20 + 10 * np.cos(s * np.pi / 12) - 10 * np.sin(s * np.pi / 12),
            ),
        ),
    ],
)
def test_geometry_moves_a_point_as_far_as_its_strength_says(operation, moved, sign):
    pixels = np.array(change(Image.fromarray(POINT), operation, 0.5, sign))
    np.testing.assert_allclose(_centre(pixels), moved(sign), atol=0.3)
    # What comes into view is grey.
    corners = pixels[[0, 0, -1, -1], [0, -1, 0, -1]]
    assert (corners == 128).all(axis=1).any()


@pytest.mark.parametrize("operation", GEOMETRIC_OPERATIONS)
def test_no_strength_leaves_every_object_in_its_place(operation):
    assert np.array_equal(change(NOISE, operation, 0.0, 1), NOISE)


def test_colours_change_as_named():
    pixels = np.asarray(NOISE).astype(float)
    assert np.array_equal(change(NOISE, "identity", 0.7, 1), NOISE)
    for strength, factor in ((0.5, 1.0), (0.7, 1.36), (0.0, 0.1)):
        bright = np.asarray(change(NOISE, "brightness", strength, 1)).astype(float)
        np.testing.assert_allclose(bright, np.clip(pixels * factor, 0, 255), atol=1)
    spread = np.asarray(change(NOISE, "autocontrast", 0.7, 1))
    assert np.all(spread.min(axis=(0, 1)) == 0) and np.all(spread.max(axis=(0, 1)) >= 254)
    equal = np.asarray(change(NOISE, "equalize", 0.7, 1))
    assert np.std(np.histogram(equal, 8, (0, 256))[0]) < np.std(
        np.histogram(pixels, 8, (0, 256))[0]
    )
    contrasts = [np.asarray(change(NOISE, "sharpness", s, 1)).std() for s in (0.0, 0.5, 0.9)]
    assert contrasts == sorted(contrasts) and contrasts[1] == pytest.approx(pixels.std())


def test_operations_are_drawn_equally_and_half_of_them_applied(monkeypatch):
    applied = []

    def note(image, operation, strength, sign):
        applied.append((operation, strength, sign))
        return image

    monkeypatch.setattr(module, "change", note)
    rng = np.random.Generator(np.random.Philox(0))
    for _ in range(4000):
        rand_augment(NOISE, 2, 7, rng)
    counts = collections.Counter(operation for operation, _, _ in applied)
    assert set(counts) == set(EVERY) and {strength for _, strength, _ in applied} == {0.7}
    assert all(abs(count - 400) < 80 for count in counts.values())  # 4 standard deviations
    assert abs(sum(sign for _, _, sign in applied)) < 260
    applied.clear()
    for _ in range(400):
        rand_augment(NOISE, 2, 7, rng, geometric=False)
    assert {operation for operation, _, _ in applied} == set(COLOUR_OPERATIONS)


def test_no_operation_takes_no_randomness_and_changes_nothing():
    rng, other = (np.random.Generator(np.random.Philox(3)) for _ in range(2))
    assert rand_augment(NOISE, 0, 0, rng) is NOISE
    assert rng.random() == other.random()


def test_augment_applies_them_last():
    rng = np.random.Generator(np.random.Philox(5))
    options = dict(crop_scale=(1.0, 1.0))
    images = [
        augment(np.asarray(NOISE), None, 40, rng, operations=(2, 7), geometric=True, **options)[0]
        for _ in range(30)
    ]
    plain = augment(np.asarray(NOISE), None, 40, rng, **options)[0]
    same = sum(np.array_equal(image, plain) for image in images)
    assert 0 < same < 20  # a quarter, and what identity adds to it
