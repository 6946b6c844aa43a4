"""Images of every mode and format, upright; damaged ones are bad records."""

from __future__ import annotations

import io
import os
import re
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from rc3_jax.data import image
from rc3_jax.data.augment import augment
from rc3_jax.data.record import BadRecord


def encoded(picture: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def photograph(height: int = 60, width: int = 90, seed: int = 0) -> Image.Image:
    """Smooth colours, so that lossy formats change little."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


RED, WHITE = [255, 0, 0], [255, 255, 255]
SOLID = {
    "RGB": (Image.new("RGB", (5, 4), "red"), RED),
    "L": (Image.new("L", (5, 4), 90), [90, 90, 90]),
    "1": (Image.new("1", (5, 4), 1), WHITE),
    "P": (Image.new("RGB", (5, 4), "red").quantize(4), RED),
    "RGBA transparent": (Image.new("RGBA", (5, 4), (255, 0, 0, 0)), WHITE),
    "RGBA half": (Image.new("RGBA", (5, 4), (255, 0, 0, 128)), [255, 127, 127]),
    "LA": (Image.new("LA", (5, 4), (0, 0)), WHITE),
    "I;16": (Image.fromarray(np.full((4, 5), 90 * 257, np.uint16)), [90, 90, 90]),
}


@pytest.mark.parametrize("mode", SOLID)
def test_every_mode_becomes_rgb(mode, tmp_path):
    picture, colour = SOLID[mode]
    (tmp_path / "a.png").write_bytes(encoded(picture, "PNG"))
    pixels = image.decode(tmp_path / "a.png", "here")
    assert pixels.dtype == np.uint8 and pixels.shape == (4, 5, 3)
    np.testing.assert_allclose(pixels, np.broadcast_to(colour, (4, 5, 3)), atol=1)


def _ramp(white: float, dtype: type) -> np.ndarray:
    return (np.linspace(0, 1, 256).reshape(16, 16) * white).astype(dtype)


@pytest.mark.parametrize(
    ("white", "dtype"),
    [(1, np.float32), (255, np.float32)]
    + [(white, kind) for white in (255, 65535) for kind in (np.int32, np.uint16)],
)
def test_deep_pictures_keep_their_brightness(white, dtype):
    pixels = image.decode(encoded(Image.fromarray(_ramp(white, dtype)), "TIFF"), "here")
    np.testing.assert_allclose(pixels[..., 0], _ramp(255, float), atol=1)


@pytest.mark.parametrize(
    "ramp", [_ramp(w, t) for w, t in ((700, np.float32), (1.02, np.float32), (2e9, np.int32))]
)
def test_deep_pictures_of_no_known_range_are_bad_records(ramp):
    for wrong in (ramp, ramp - 1, np.where(ramp > 0, np.nan, ramp).astype(np.float32)):
        with pytest.raises(BadRecord, match="here: .*brightness") as refused:
            image.decode(encoded(Image.fromarray(wrong), "TIFF"), "here")
        most, mode = re.search(r"scale it to 0…(\d+) in mode (\w+)", str(refused.value)).groups()
        scaled = (ramp / ramp.max() * int(most)).astype(dict(F="f4", I="i4")[mode])
        image.decode(encoded(Image.fromarray(scaled), "TIFF"), "here")


def test_palette_with_transparency_and_print_colours():
    palette = Image.new("P", (5, 4), 0)
    palette.putpalette([255, 0, 0] + [0] * 765)
    pixels = image.decode(encoded(palette, "PNG", transparency=0), "here")
    assert np.all(pixels == 255)
    cyan = image.decode(encoded(Image.new("CMYK", (16, 16), (255, 0, 0, 0)), "JPEG"), "here")
    np.testing.assert_allclose(cyan, np.broadcast_to([0, 255, 255], cyan.shape), atol=3)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_honoured(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(photograph(), kind, exif=exif)
    expected = np.array(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    pixels = image.decode(data, "here")
    assert np.array_equal(pixels, expected)
    assert image.image_frame(data, "here")[:2] == (pixels.shape[1], pixels.shape[0])
    assert pixels.shape[:2] == ((60, 90) if orientation < 5 else (90, 60))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(
    ("number_type", "value"),
    [(3, b"\0\0\0\0"), (3, b"\0\x09\0\0"), (3, b"\xff\xff\0\0"), (2, b"6\0\0\0"), (1, b"\6\0\0\0")],
)
def test_an_orientation_that_there_is_not_turns_nothing(kind, number_type, value):
    entry = struct.pack(">HHHI", 1, 0x0112, number_type, 1) + value
    exif = b"Exif\0\0MM\0*\0\0\0\x08" + entry + bytes(4)
    data = encoded(photograph(), kind, exif=exif)
    assert image.decode(data, "here").shape == image.read_header(data, "here").shape == (60, 90, 3)
    assert image.image_frame(data, "here") == (90, 60, 1)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_around_a_sound_picture_does_no_harm():
    data = encoded(photograph(), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff garbage")
    assert image.decode(data, "here").shape == (60, 90, 3)
    assert image.image_frame(data, "here")[:2] == (90, 60)


@pytest.mark.parametrize(("kind", "shape"), [("JPEG", (150, 225, 3)), ("PNG", (600, 900, 3))])
def test_large_jpegs_may_be_decoded_small(kind, shape):
    data = encoded(photograph(600, 900), kind)
    assert image.decode(data, "here", 140).shape == shape
    assert image.decode(data, "here").shape == (600, 900, 3)


def png_header(width: int, height: int) -> bytes:
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    return b"\x89PNG\r\n\x1a\n" + chunk + b"\0\0\0\0IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [2**13 + 1, 10_000, 15_000, 2**30])
def test_header_that_claims_a_huge_image_is_refused_unread(side, tmp_path):
    (tmp_path / "bomb.png").write_bytes(png_header(side, side))
    for read in (image.decode, image.image_frame):
        with pytest.raises(BadRecord, match=r"^captions:7: .*bomb.png: .*too large"):
            read(tmp_path / "bomb.png", "captions:7")


def test_a_huge_file_is_refused_unread(tmp_path):
    (tmp_path / "huge.jpg").write_bytes(encoded(photograph(), "JPEG"))
    os.truncate(tmp_path / "huge.jpg", image.MAX_FILE_BYTES + 1)
    with pytest.raises(BadRecord, match=r"^captions:7: .*huge.jpg: .*too large.*make it smaller"):
        image.decode(tmp_path / "huge.jpg", "captions:7")
    os.truncate(tmp_path / "huge.jpg", 2**20)
    image.decode(tmp_path / "huge.jpg", "captions:7")


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.6, 0.97])
def test_truncated_jpeg_is_a_bad_record(share, tmp_path):
    data = encoded(photograph(300, 300), "JPEG")
    (tmp_path / "cut.jpg").write_bytes(data[: int(len(data) * share)])
    with pytest.raises(BadRecord, match=r"^captions:7: .*cut.jpg: image cannot be decoded"):
        image.decode(tmp_path / "cut.jpg", "captions:7")


def test_other_files_are_bad_records(tmp_path):
    (tmp_path / "page.jpg").write_text("<html>404</html>")
    with pytest.raises(BadRecord, match="page.jpg: image cannot be decoded") as refused:
        image.image_frame(tmp_path / "page.jpg", "captions:7")
    for kind in re.search(r"a complete file of type ([\w, ]+)", str(refused.value))[1].split(", "):
        (tmp_path / "page.jpg").write_bytes(encoded(photograph(), kind))
        assert image.decode(tmp_path / "page.jpg", "").shape == (60, 90, 3)
    with pytest.raises(BadRecord, match="gone.jpg: image is missing; restore the file or remove"):
        image.decode(tmp_path / "gone.jpg", "captions:7")
    with pytest.raises(BadRecord, match="cannot be decoded"):
        image.decode(tmp_path, "captions:7")
    with pytest.raises(BadRecord, match="^captions:7: image cannot be decoded"):
        image.decode(encoded(photograph(), "EPS"), "captions:7")  # would start Ghostscript


@given(
    kind=st.sampled_from(["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "PPM"]),
    changes=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=8),
    length=st.floats(0.2, 1),
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_damaged_files_decode_or_are_bad_records_and_nothing_else(kind, changes, length):
    data = bytearray(encoded(photograph(20, 30), kind))
    for place, value in changes:
        data[int(place**3 * (len(data) - 1))] = value  # mostly in the header
    try:
        pixels = image.decode(bytes(data[: int(len(data) * length)]), "here")
    except BadRecord as error:
        assert str(error).startswith("here: image ")
    else:
        assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3


def test_functions_may_draw_or_fetch_images():
    drawn = np.zeros((2, 3, 3), np.uint8)
    assert np.array_equal(image.decode(lambda: drawn, "here"), drawn)
    fetched = image.decode(lambda: encoded(Image.new("RGB", (3, 2), "red"), "PNG"), "here")
    assert np.array_equal(fetched, np.broadcast_to(RED, (2, 3, 3)))
    for wrong in (drawn.astype(float), drawn[..., 0], drawn[..., :2], drawn[:0]):
        with pytest.raises(BadRecord, match=r"^here: drawn image is .*uint8"):
            image.decode(lambda wrong=wrong: wrong, "here")


def test_real_photographs(shared_data):
    for folder in ("flickr8k", "coco"):
        for path in sorted((shared_data / folder / "images").iterdir())[:40]:
            pixels = image.decode(path, "here")
            assert image.image_frame(path, "here")[:2] == pixels.shape[1::-1]
            augmented, *_ = augment(
                pixels, None, 64, np.random.default_rng(0), crop_scale=(0.2, 1.0), jitter=0.4
            )
            assert augmented.shape == (64, 64, 3) and augmented.std() > 1
