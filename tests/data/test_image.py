from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from rc3_jax.data import image
from rc3_jax.data.record import BadRecord


def encoded(picture: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def photograph(height: int = 60, width: int = 90, seed: int = 0) -> Image.Image:
    """Smooth colours, so that lossy formats change little."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


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
    pixels, moved, visible = image.augment(
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


@given(
    seed=st.integers(0, 10**6),
    height=st.integers(30, 120),
    width=st.integers(30, 120),
    box=boxes_in_the_unit_square,
)
def test_white_box_is_found_where_the_box_went(seed, height, width, box):
    x1, y1, x2, y2 = np.round(np.array(box) * [width, height] * 2 if False else
                              np.array(box) * [width, height, width, height]).astype(int)
    assume(x2 - x1 >= 4 and y2 - y1 >= 4)
    picture = np.zeros((height, width, 3), np.uint8)
    picture[y1:y2, x1:x2] = 255
    size = 96
    pixels, [after], [is_visible] = image.augment(
        picture,
        np.array([[x1 / width, y1 / height, x2 / width, y2 / height]]),
        size,
        np.random.default_rng(seed),
        crop_scale=(0.3, 1.0),
        may_flip=True,
    )
    white = pixels[..., 0] > 127
    if not white.any():
        assert (after[2:] - after[:2]).min() * size < 3
        return
    found_x, found_y = np.flatnonzero(white.any(axis=0)), np.flatnonzero(white.any(axis=1))
    found = [found_x[0], found_y[0], found_x[-1] + 1, found_y[-1] + 1]
    np.testing.assert_allclose(after * size, found, atol=2.5)
