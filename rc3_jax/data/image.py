"""One image: from an encoded file to pixels, upright and in RGB."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import pathlib
import struct
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import simplejpeg
from PIL import Image

from rc3_jax.data.record import BadRecord, ImageLike

# Pillow can open more, but some of it (EPS) runs other programs.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
MAX_PIXELS = 2**26
"""Larger images (67 million pixels, 200 MB once decoded) are refused: a header of a few bytes
may claim any size."""

MAX_FILE_BYTES = 2**29
"""Larger files are refused before they are read."""

_ORIENTATION_TAG = 0x0112
_UPRIGHT = dict(zip(range(2, 9), map(Image.Transpose, (0, 3, 1, 5, 4, 6, 2)), strict=True))
"""EXIF orientation → what turns the image upright."""
_FAST = ("YCbCr", "RGB", "Gray")  # colours of the JPEGs that simplejpeg makes RGB as Pillow does


def decode(image: ImageLike | None, where: str, min_side: int | None = None) -> np.ndarray:
    """Decodes the first frame of an image as RGB, upright, transparent parts on white.

    Args:
      image: a path, encoded bytes, or a function that returns one of these or pixels.
      where: the record, for error messages.
      min_side: JPEG files may be decoded at 1/2, 1/4 or 1/8 of their size, as long as width
        and height both stay at least this; None decodes every pixel.

    Returns:
      uint8 `[height, width, 3]`.

    Raises:
      BadRecord: missing, truncated, undecodable or too large.
    """
    picture = read_header(image, where)
    if isinstance(picture, np.ndarray):
        return picture
    return picture.decode(picture.reduction(*picture.size, min_side) if min_side else 1)


def read_header(image: ImageLike | None, where: str) -> np.ndarray | Encoded:
    """Reads an image as `decode` does, but decodes none of its pixels; drawn ones are returned.

    Raises:
      BadRecord: missing, too large, or no image.
    """
    if image is None:
        raise BadRecord(where, "the record has no image; it cannot be used where one is needed")
    given = image() if callable(image) else image
    if isinstance(given, np.ndarray):
        if given.dtype != np.uint8 or given.ndim != 3 or given.shape[2] != 3 or not given.size:
            problem = f"drawn image is {given.dtype} {list(given.shape)}"
            raise BadRecord(where, f"{problem}; it must be uint8 [height, width, 3]")
        return given
    with _opened(given, where, _name(given)) as opened:
        data = given if isinstance(given, bytes) else _content(given)
        jpeg = opened.format in ("JPEG", "MPO")
        return Encoded(data, where, _name(given), opened.size, _orientation(opened), jpeg)


@dataclasses.dataclass(frozen=True)
class Encoded:
    """An encoded image whose header has been read.

    Attributes:
      data: the whole file.
      where: the record, for error messages.
      name: what they call the image.
      size: width and height of the stored image.
      orientation: EXIF, 1 to 8.
      jpeg: whether it may be decoded at a smaller size.
    """

    data: bytes
    where: str
    name: str
    size: tuple[int, int]
    orientation: int
    jpeg: bool

    @property
    def shape(self) -> tuple[int, int, int]:
        """That of all pixels of the upright image."""
        width, height = self.size
        return (width, height, 3) if self.orientation >= 5 else (height, width, 3)

    def reduction(self, width: int, height: int, side: int) -> int:
        """The largest of 1, 2, 4, 8 by which decoding may reduce the image so that a part of
        `width` x `height` pixels keeps at least `side` along both.

        What is to be turned is reduced only without a rest, which would come to lie at another edge.
        """
        for by in (8, 4, 2):
            exact = self.orientation == 1 or not any(length % by for length in self.size)
            if self.jpeg and exact and min(width, height) >= by * side:
                return by
        return 1

    def decode(self, reduction: int = 1) -> np.ndarray:
        """The pixels, those of a JPEG at 1 / `reduction` of width and height, rounded up.

        Both decoders are libjpeg-turbo with the same settings. The faster one refuses files with
        any fault; Pillow then says what is wrong, or reads them in spite of it.

        Raises:
          BadRecord: truncated or undecodable.
        """
        pixels = self._decode_fast(reduction) if self.jpeg else None
        if pixels is None:
            with _opened(self.data, self.where, self.name) as opened:
                opened.draft(None, (self.size[0] // reduction, self.size[1] // reduction))
                pixels = np.array(_to_rgb(opened))
        if (transpose := _UPRIGHT.get(self.orientation)) is None:
            return pixels
        return np.array(Image.fromarray(pixels).transpose(transpose))

    def _decode_fast(self, reduction: int) -> np.ndarray | None:
        """The stored pixels; None for what is left to Pillow."""
        width, height = self.size
        rows, columns = -(-height // reduction), -(-width // reduction)
        with contextlib.suppress(ValueError):
            header = simplejpeg.decode_jpeg_header(self.data)
            if header[:2] == (height, width) and header[2] in _FAST:
                return simplejpeg.decode_jpeg(
                    self.data, min_height=rows, min_width=columns, min_factor=reduction
                )
        return None


class BrightnessError(ValueError):
    """Brightness in a range that is none of those which pictures have."""


class Frame(NamedTuple):
    """Attributes: width, height: of the upright image, in pixels; orientation: EXIF, 1 to 8."""

    width: float
    height: float
    orientation: int = 1


def image_frame(image: pathlib.Path | bytes, where: str) -> Frame:
    """The frame of an image, from its header alone.

    Raises:
      BadRecord: missing, undecodable or too large.
    """
    with _opened(image, where, _name(image)) as opened:
        orientation = _orientation(opened)
        return Frame(*(opened.size[::-1] if orientation >= 5 else opened.size), orientation)


def file_content(path: pathlib.Path, where: str) -> bytes:
    """The bytes of an image file; raises BadRecord if it is missing, too large, or no image."""
    with _opened(path, where, _name(path)):
        return _content(path)


def _name(image: pathlib.Path | bytes) -> str:
    return "image" if isinstance(image, bytes) else f"{image}: image"


def resize(pixels: np.ndarray, size: int) -> np.ndarray:
    """Squashes uint8 `[height, width, 3]` to `[size, size, 3]`, as for evaluation (bicubic)."""
    return np.array(Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC))


@contextlib.contextmanager
def _opened(image: pathlib.Path | bytes, where: str, name: str) -> Iterator[Image.Image]:
    """Opens an encoded image; whatever goes wrong, here or in the body, is a BadRecord."""
    source = io.BytesIO(image) if isinstance(image, bytes) else image
    try:
        with Image.open(source, formats=FORMATS) as opened:
            if opened.width * opened.height > MAX_PIXELS:
                raise Image.DecompressionBombError(f"{opened.width}x{opened.height} pixels")
            yield opened
    except FileNotFoundError as error:
        raise BadRecord(where, f"{name} is missing; restore the file or remove it") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        limit = f"{MAX_PIXELS} pixels and {MAX_FILE_BYTES} bytes"
        problem = f"{name} is too large ({error}; the limit is {limit})"
        raise BadRecord(where, f"{problem}; make it smaller") from error
    except BrightnessError as error:
        raise BadRecord(where, f"{name}: {error}") from error
    except Exception as error:  # Pillow raises a dozen types on damaged files, SyntaxError too
        problem = f"{name} cannot be decoded ({type(error).__name__}: {error})"
        remedy = f"replace it by a complete file of type {', '.join(FORMATS)}"
        raise BadRecord(where, f"{problem}; {remedy}") from error


def _content(path: pathlib.Path) -> bytes:
    if (size := path.stat().st_size) > MAX_FILE_BYTES:
        raise Image.DecompressionBombError(f"{size} bytes")
    return path.read_bytes()


def _orientation(image: Image.Image) -> int:
    """Returns the EXIF orientation, 1 (upright) to 8."""
    # Asking a PNG without EXIF for it would decode it. TIFF is turned by Pillow itself.
    if "exif" not in image.info or image.format == "TIFF":
        return 1
    try:
        found = image.getexif().get(_ORIENTATION_TAG, 1)
        return int(found) if found in _UPRIGHT else 1
    except (
        ArithmeticError,
        LookupError,
        OSError,
        SyntaxError,
        TypeError,
        ValueError,
        struct.error,
    ):
        return 1  # damaged EXIF, of whatever kind, around a sound picture


def _to_rgb(image: Image.Image) -> Image.Image:
    """Converts grey, deep, palette, CMYK and transparent images."""
    if image.mode[0] in "IF":  # 16 or 32 bits a pixel: convert() would clip, not scale
        image = Image.fromarray(as_bytes(np.asarray(image), image.mode))
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert("RGB")


def as_bytes(grey: np.ndarray, mode: str) -> np.ndarray:
    """Brightness as uint8, from 0…1 or 0…255 (mode F), 0…255 or 0…65535 (I and I;16).

    Raises:
      BrightnessError: for brightness of another range.
    """
    low, high = float(grey.min()), float(grey.max())
    most = 255 if mode == "F" else 65535
    overshoots = mode == "F" and 1 < high < 2  # nearly black in 0…255, so that 0…1 is meant
    if overshoots or not (low >= 0 and high <= most):
        raise BrightnessError(
            f"its brightness is between {low:g} and {high:g}; scale it to "
            f"{'0…1' if mode == 'F' else '0…65535'} in mode {mode}"
        )
    white = 1 if mode == "F" and high <= 1 else 255
    return (grey.astype(np.int64) >> 8 if high > 255 else grey * (255 / white)).astype(np.uint8)
