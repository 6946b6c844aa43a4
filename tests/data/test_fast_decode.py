"""JPEGs by the fast decoder: Pillow's pixels and Pillow's faults, and smaller where that is enough."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from rc3_jax.data import image
from rc3_jax.data.augment import augment
from rc3_jax.data.record import BadRecord
from tests.data.test_image import encoded, photograph

KINDS = {
    "444": dict(subsampling=0),
    "422": dict(subsampling=1),
    "420": dict(subsampling=2),
    "progressive": dict(progressive=True),
    "restarts": dict(restart_marker_blocks=3),
    "RGB inside": dict(keep_rgb=True),
}


def pillow(data: bytes, by: int = 1) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as opened:
        opened.draft(None, (opened.width // by, opened.height // by))
        return np.array(ImageOps.exif_transpose(opened).convert("RGB"))


def noisy(width: int, height: int, seed: int) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 60, (height, width, 3))
    return Image.fromarray(
        (np.array(photograph(height, width, seed)) // 2 + noise).astype(np.uint8)
    )


@given(
    kind=st.sampled_from([*KINDS, "grey"]),
    size=st.tuples(st.integers(8, 90), st.integers(8, 90)),
    quality=st.integers(20, 98),
    orientation=st.integers(1, 8),
    by=st.sampled_from([1, 2, 4, 8]),
)
def test_pixels_are_pillows_to_the_bit(kind, size, quality, orientation, by):
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = noisy(*size, quality)
    picture = picture.convert("L") if kind == "grey" else picture
    data = encoded(picture, "JPEG", quality=quality, exif=exif, **KINDS.get(kind, {}))
    found = image.read_header(data, "here")
    assert found._decode_fast(by) is not None
    assert found.shape == pillow(data).shape
    assert np.array_equal(found.decode(by), pillow(data, by))


def test_photographs_have_pillows_pixels(shared_data):
    for folder in ("flickr8k", "coco"):
        for path in sorted((shared_data / folder / "images").iterdir())[:60]:
            data = path.read_bytes()
            found = image.read_header(path, "here")
            for by in (1, 2):
                assert found._decode_fast(by) is not None
                assert np.array_equal(found.decode(by), pillow(data, by))


def test_files_with_faults_are_read_as_pillow_reads_them():
    data = encoded(noisy(90, 70, 0), "JPEG")
    middle = len(data) * 2 // 3
    size = b"\xff\xc0\0\x11\x08\0%c"
    read = {
        "print colours": encoded(noisy(30, 20, 0).convert("CMYK"), "JPEG"),
        "a marker too many": data[:middle] + b"\xff\xd3" + data[middle:],
        "zeros": data[:middle] + bytes(40) + data[middle + 40 :],
        "rubbish between markers": data[:20] + b"\0\0\0" + data[20:],
        "a header of a smaller size": data.replace(size % 70, size % 69),
        "a header of a larger size": data.replace(size % 70, size % 200),
    }
    refused = {"no end": data[:-2], "no second half": data[:middle]}
    assert data not in [*read.values(), *refused.values()]
    for name, other in read.items():
        assert np.array_equal(image.decode(other, "here"), pillow(other)), name
    for other in refused.values():
        with pytest.raises(OSError) as told, Image.open(io.BytesIO(other)) as opened:
            opened.load()
        with pytest.raises(BadRecord, match="^here: image cannot be decoded") as raised:
            image.decode(other, "here")
        assert f"({type(told.value).__name__}: {told.value}); replace it" in str(raised.value)


@given(st.integers(1, 4000), st.integers(1, 4000), st.integers(1, 500))
def test_reduction_is_the_largest_that_leaves_enough(width, height, side):
    by = image.Encoded(b"", "", "", (4000, 4000), 8, True).reduction(width, height, side)
    assert by in (1, 2, 4, 8)
    assert by == 1 or min(width, height) / by >= side
    assert by == 8 or min(width, height) / (2 * by) < side
    assert image.Encoded(b"", "", "", (4000, 4000), 1, False).reduction(width, height, side) == 1


def ends_seen(colour: np.ndarray) -> np.ndarray:
    """Where the crop begins and ends, as shares of a picture whose colour goes from 0 to 255."""
    size = len(colour)
    inner = np.arange(size // 8, size - size // 8)
    slope, start = np.polyfit((inner + 0.5) / size, colour[inner] / 255, 1)
    return np.array([start, start + slope])


@given(
    height=st.integers(200, 600),
    ratio=st.floats(0.8, 1.25),
    turned=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_a_crop_of_a_smaller_decoding_shows_what_its_boxes_say(height, ratio, turned, seed):
    across, down = ((np.arange(n) + 0.5) / n * 255 for n in (round(ratio * height), height))
    upright = np.stack([*np.meshgrid(across, down), np.full((height, len(across)), 128.0)], axis=-1)
    stored = Image.fromarray(np.round(upright).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6 if turned else 1
    stored = stored.transpose(Image.Transpose.ROTATE_90) if turned else stored
    data = encoded(stored, "JPEG", quality=98, subsampling=0, exif=exif)
    box = np.array([[0.45, 0.4, 0.55, 0.6]], np.float32)  # lies in every crop as large as these
    rng = np.random.default_rng(seed)
    found = image.read_header(data, "here")
    assert found.shape == upright.shape
    pixels, moved, visible = augment(found, box, 48, rng, crop_scale=(0.7, 1.0))
    assert visible.all()
    for axis, colour in enumerate((pixels[..., 0].mean(axis=0), pixels[..., 1].mean(axis=1))):
        extent = (box[0, 2 + axis] - box[0, axis]) / (moved[0, 2 + axis] - moved[0, axis])
        begin = box[0, axis] - moved[0, axis] * extent
        expected = np.array([begin, begin + extent])
        np.testing.assert_allclose(ends_seen(colour), expected, atol=1 / 200)
