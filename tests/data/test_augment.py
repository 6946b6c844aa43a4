"""Crops, mirrored images and colours: what pixels show is where boxes say."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image

from rc3_jax.data import image
from rc3_jax.data.augment import augment


def photograph(height: int = 60, width: int = 90, seed: int = 0) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    return np.array(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def coordinates(height: int, width: int) -> np.ndarray:
    """Red tells the column and green the row of a pixel, up to 256 of each."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([columns, rows, np.zeros_like(rows)], axis=2).astype(np.uint8)


def crop_seen_in(pixels: np.ndarray) -> np.ndarray:
    """Returns x1, y1, x2, y2 in pixels of `coordinates`; x1 > x2 where it is mirrored."""
    size = len(pixels)
    inner = np.arange(size // 8, size - size // 8)
    ends = []
    for values in (pixels[..., 0].mean(axis=0), pixels[..., 1].mean(axis=1)):
        slope, start = np.polyfit((inner + 0.5) / size, values[inner] + 0.5, 1)
        ends.append((start, start + slope))
    (x1, x2), (y1, y2) = ends
    return np.array([x1, y1, x2, y2])


boxes_in_the_unit_square = st.tuples(
    st.floats(0, 0.8), st.floats(0, 0.8), st.floats(0.1, 0.9), st.floats(0.1, 0.9)
).map(lambda b: [b[0], b[1], min(b[0] + b[2], 1), min(b[1] + b[3], 1)])


@given(seed=st.integers(0, 10**6), boxes=st.lists(boxes_in_the_unit_square, max_size=4))
def test_boxes_follow_the_crop_that_the_pixels_show(seed, boxes):
    height, width = 160, 240
    pixels, moved, visible = augment(
        coordinates(height, width),
        np.reshape(np.array(boxes, np.float32), (-1, 4)),
        64,
        np.random.default_rng(seed),
        crop_scale=(0.2, 1.0),
        may_flip=True,
    )
    x1, y1, x2, y2 = crop_seen_in(pixels)
    assert moved.dtype == np.float32 and moved.shape == (len(boxes), 4)
    for box, after, is_visible in zip(boxes, moved, visible, strict=True):
        left, right = sorted((np.array(box)[[0, 2]] * width - x1) / (x2 - x1))
        top, bottom = (np.array(box)[[1, 3]] * height - y1) / (y2 - y1)
        expected = np.clip([left, top, right, bottom], 0, 1)
        np.testing.assert_allclose(after, expected, atol=0.02)
        kept = (expected[2] - expected[0]) * (expected[3] - expected[1])
        share = kept / ((right - left) * (bottom - top))
        if abs(share - 0.5) > 0.1:
            assert is_visible == (share > 0.5)


def test_crops_use_the_whole_range_of_areas_ratios_and_places():
    areas, ratios, places = [], [], []
    for seed in range(300):
        pixels, *_ = augment(
            coordinates(100, 100), None, 32, np.random.default_rng(seed), crop_scale=(0.2, 1.0)
        )
        x1, y1, x2, y2 = crop_seen_in(pixels)
        areas.append((x2 - x1) * (y2 - y1) / 100**2)
        ratios.append(np.log((x2 - x1) / (y2 - y1)))
        if areas[-1] < 0.5:
            places.append([x1 / (100 - x2 + x1), y1 / (100 - y2 + y1)])
    assert np.mean(areas) == pytest.approx(0.6, abs=0.05)
    assert min(areas) < 0.25 and max(areas) > 0.95
    assert abs(np.mean(ratios)) < 0.03 and min(ratios) < -0.2 and max(ratios) > 0.2
    np.testing.assert_allclose(np.mean(places, axis=0), 0.5, atol=0.1)
    assert np.min(places) < 0.05 and np.max(places) > 0.95
    assert abs(np.corrcoef(np.transpose(places))[0, 1]) < 0.3


def test_elongated_image_gives_the_largest_crop_of_the_nearest_ratio():
    for seed in range(5):
        pixels, *_ = augment(
            coordinates(40, 240), None, 64, np.random.default_rng(seed), crop_scale=(0.9, 1.0)
        )
        x1, y1, x2, y2 = crop_seen_in(pixels)
        assert x2 - x1 == pytest.approx(40 * 4 / 3, abs=2)
        assert y2 - y1 == pytest.approx(40, abs=2)


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (5, 2), (300, 3)])
def test_tiny_images_are_augmented(shape):
    picture = np.full((*shape, 3), 77, np.uint8)
    for seed in range(20):
        pixels, *_ = augment(
            picture, None, 16, np.random.default_rng(seed), crop_scale=(0.01, 1.0), may_flip=True
        )
        assert pixels.shape == (16, 16, 3) and np.all(pixels == 77)


def whole_resized(picture: np.ndarray, size: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    return augment(picture, None, size, rng, crop=(0, 0, *picture.shape[1::-1]))[0].astype(float)


def test_crop_of_everything_is_near_the_evaluation_resize():
    for height, width in ((20, 20), (32, 32), (50, 50), (40, 70), (90, 150)):
        picture = photograph(height, width)
        difference = whole_resized(picture, 32) - image.resize(picture, 32)
        assert np.abs(difference).max() <= 6, (height, width)  # of 255


def area_mean(picture: np.ndarray, size: int) -> np.ndarray:
    """The mean over the area of each new pixel."""

    def weights(side: int) -> np.ndarray:
        edges, old = np.arange(size + 1) * side / size, np.arange(side)
        ends = np.minimum(edges[1:, None], old + 1) - np.maximum(edges[:-1, None], old)
        return np.maximum(ends, 0) * size / side

    height, width = picture.shape[:2]
    return np.einsum("ih,jw,hwc->ijc", weights(height), weights(width), picture.astype(float))


@pytest.mark.parametrize("shape", [(80, 80), (96, 70), (64, 96), (130, 120), (200, 40)])
def test_shrinking_removes_patterns_that_are_too_fine(shape):
    rng = np.random.default_rng(0)
    for picture in (
        rng.integers(0, 256, (*shape, 3)),
        np.tile(np.indices(shape).sum(axis=0)[..., None] % 2 * 255, 3),
    ):
        picture = picture.astype(np.uint8)
        expected, found = area_mean(picture, 32), whole_resized(picture, 32)
        assert abs(found.mean() - expected.mean()) < 2
        assert found.std() < expected.std() + 0.05 * picture.std()


def test_augmentation_is_a_function_of_the_generator_alone():
    picture, boxes = photograph(), np.array([[0.2, 0.2, 0.9, 0.9]])

    def augmented(seed):
        rng = np.random.default_rng(seed)
        options = {"crop_scale": (0.2, 1.0), "jitter": 0.4, "may_flip": True}
        return augment(picture, boxes, 32, rng, **options)

    for first, second in zip(augmented(3), augmented(3), strict=True):
        assert np.array_equal(first, second)
    assert not np.array_equal(augmented(3)[0], augmented(4)[0])


def test_half_is_mirrored_and_only_where_allowed():
    picture = coordinates(64, 64)
    mirrored = 0
    for seed in range(200):
        pixels = {
            may_flip: augment(
                picture,
                None,
                32,
                np.random.default_rng(seed),
                crop_scale=(0.5, 1.0),
                jitter=0.3,
                may_flip=may_flip,
            )[0]
            for may_flip in (False, True)
        }
        assert pixels[False][:, -8:, 0].mean() > pixels[False][:, :8, 0].mean()
        if np.array_equal(pixels[True], pixels[False][:, ::-1]):
            mirrored += 1
        else:  # permission to mirror changes nothing else
            assert np.array_equal(pixels[True], pixels[False])
    assert 70 < mirrored < 130


def jittered(picture: np.ndarray, jitter, seed: int) -> np.ndarray:
    options = {"crop_scale": (1.0, 1.0), "jitter": jitter}
    pixels, *_ = augment(picture, None, 48, np.random.default_rng(seed), **options)
    return pixels.astype(float)


LUMA = np.array([0.299, 0.587, 0.114])


@given(seed=st.integers(0, 10**6))
def test_each_colour_jitter_scales_what_it_is_named_for(seed):
    picture = photograph(48, 48, seed) // 3 + 80  # in [80, 165]: nothing is clipped
    plain = jittered(picture, 0.0, seed)
    assert np.array_equal(plain, picture)

    def factor(changed, centre):
        """The factor between distances from the centre, if there is one for all pixels."""
        before, after = (plain - centre).ravel(), (changed - centre).ravel()
        found = before @ after / (before @ before)
        np.testing.assert_allclose(after, found * before, atol=2)
        assert 0.69 < found < 1.31
        return found

    assume(np.ptp(plain) > 20)
    found = [
        factor(jittered(picture, (0.3, 0, 0), seed), 0),
        factor(jittered(picture, (0, 0.3, 0), seed), (plain @ LUMA).mean()),
        factor(jittered(picture, (0, 0, 0.3), seed), (plain @ LUMA)[..., None]),
    ]
    # Together: one after another, each around the centre that the one before left behind.
    brightness, contrast, saturation = found
    expected = plain * brightness
    expected = (expected - (expected @ LUMA).mean()) * contrast + (expected @ LUMA).mean()
    grey = (expected @ LUMA)[..., None]
    expected = np.clip((expected - grey) * saturation + grey, 0, 255)
    np.testing.assert_allclose(jittered(picture, 0.3, seed), expected, atol=4)
