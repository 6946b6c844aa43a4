"""One image: from an encoded file to augmented pixels, with the boxes that lie on it."""

from __future__ import annotations

import contextlib
import io
import math
import pathlib
import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from rc3_jax.data.rand_augment import rand_augment
from rc3_jax.data.record import BadRecord, ImageLike

# Pillow can open more, but some of it (EPS) runs other programs.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
MAX_PIXELS = 2**26
"""Larger images (67 million pixels, 200 MB once decoded) are refused: a header of a few bytes
may claim any size."""
CROP_RATIO = (3 / 4, 4 / 3)
"""Least and largest width/height of a random crop."""
MIN_VISIBLE = 0.5
"""Share of a box that has to be in a crop for it to count as visible."""

_ORIENTATION_TAG = 0x0112
_UPRIGHT = dict(zip(range(2, 9), map(Image.Transpose, (0, 3, 1, 5, 4, 6, 2)), strict=True))
"""EXIF orientation → what turns the image upright."""
_LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R 601, as in Pillow's conversion to grey


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
    if image is None:
        raise BadRecord(where, "the record has no image; it cannot be used where one is needed")
    given = image() if callable(image) else image
    if isinstance(given, np.ndarray):
        if given.dtype != np.uint8 or given.ndim != 3 or given.shape[2] != 3 or not given.size:
            problem = f"drawn image is {given.dtype} {list(given.shape)}"
            raise BadRecord(where, f"{problem}; it must be uint8 [height, width, 3]")
        return given
    with _opened(given, where) as opened:
        transpose = _UPRIGHT.get(_orientation(opened))
        if min_side is not None:
            opened.draft(None, (min_side, min_side))
        rgb = _to_rgb(opened)
        return np.array(rgb if transpose is None else rgb.transpose(transpose))


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
    with _opened(image, where) as opened:
        orientation = _orientation(opened)
        return Frame(*(opened.size[::-1] if orientation >= 5 else opened.size), orientation)


def resize(pixels: np.ndarray, size: int) -> np.ndarray:
    """Squashes uint8 `[height, width, 3]` to `[size, size, 3]`, as for evaluation (bicubic)."""
    return np.array(Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC))


def augment(
    pixels: np.ndarray,
    boxes: np.ndarray | None,
    size: int,
    rng: np.random.Generator,
    *,
    crop_scale: tuple[float, float] = (1.0, 1.0),
    crop: tuple[float, float, float, float] | None = None,
    jitter: float | Sequence[float] = 0.0,
    may_flip: bool = False,
    operations: tuple[int, float] = (0, 0),
    geometric: bool = False,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Crops at random, resizes (bicubic, antialiased), jitters colours and maybe mirrors.

    Args:
      pixels: uint8 `[height, width, 3]`.
      boxes: `[regions, 4]`, x1, y1, x2, y2 as fractions of width and height; None for none.
      size: side of the square that is returned.
      rng: the only source of randomness.
      crop_scale: least and largest share of the area that a crop keeps.
      crop: x1, y1, x2, y2 in pixels; instead of a random one.
      jitter: brightness, contrast and saturation are multiplied by factors drawn uniformly
        from [1 - jitter, 1 + jitter]; one strength or three. 0 leaves the colours alone.
      may_flip: mirror half of the images. Not where a text speaks of sides (left_right.py).
      operations: number and magnitude of further changes, see `rand_augment`.
      geometric: these may move what the image shows, for which there must be no boxes.

    Returns:
      uint8 `[size, size, 3]`; boxes float32 `[regions, 4]`, moved with the picture and clipped
      to it; bool `[regions]`, which boxes are still visible.
    """
    height, width = pixels.shape[:2]
    crop = crop or _random_crop(width, height, rng, crop_scale)
    factors = 1 + np.broadcast_to(jitter, 3) * rng.uniform(-1, 1, 3)
    flip = bool(rng.random() < 0.5) and may_flip

    image = Image.fromarray(pixels).resize(
        (size, size), Image.Resampling.BICUBIC, box=crop, reducing_gap=3.0
    )
    if np.any(factors != 1):
        image = _jittered(image, *np.maximum(factors, 0))
    if flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    image = rand_augment(image, *operations, rng, geometric)

    boxes = np.zeros((0, 4)) if boxes is None else np.asarray(boxes, np.float64)
    boxes, visible = crop_boxes(boxes, np.divide(crop, [width, height] * 2), MIN_VISIBLE)
    if flip:
        boxes = np.stack([1 - boxes[:, 2], boxes[:, 1], 1 - boxes[:, 0], boxes[:, 3]], axis=1)
    return np.array(image), boxes.astype(np.float32), visible


@contextlib.contextmanager
def _opened(image: pathlib.Path | bytes, where: str) -> Iterator[Image.Image]:
    """Opens an encoded image; whatever goes wrong, here or in the body, is a BadRecord."""
    name = "image" if isinstance(image, bytes) else f"{image}: image"
    source = io.BytesIO(image) if isinstance(image, bytes) else image
    try:
        with Image.open(source, formats=FORMATS) as opened:
            if opened.width * opened.height > MAX_PIXELS:
                raise Image.DecompressionBombError(f"{opened.width}x{opened.height} pixels")
            yield opened
    except FileNotFoundError as error:
        raise BadRecord(where, f"{name} is missing; restore the file or remove it") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        problem = f"{name} is too large ({error}; the limit is {MAX_PIXELS} pixels)"
        raise BadRecord(where, f"{problem}; make it smaller") from error
    except BrightnessError as error:
        raise BadRecord(where, f"{name}: {error}") from error
    except Exception as error:  # Pillow raises a dozen types on damaged files, SyntaxError too
        problem = f"{name} cannot be decoded ({type(error).__name__}: {error})"
        remedy = f"replace it by a complete file of type {', '.join(FORMATS)}"
        raise BadRecord(where, f"{problem}; {remedy}") from error


def _orientation(image: Image.Image) -> int:
    """Returns the EXIF orientation, 1 (upright) to 8."""
    # Asking a PNG without EXIF for it would decode it. TIFF is turned by Pillow itself.
    if "exif" not in image.info or image.format == "TIFF":
        return 1
    try:
        return image.getexif().get(_ORIENTATION_TAG, 1)
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
    """Brightness as uint8, from 0…1 or 0…255 (mode F), 0…255 or 0…65535 (I), 0…65535 (I;16).

    Raises:
      BrightnessError: for brightness of another range.
    """
    low, high = float(grey.min()), float(grey.max())
    most = 255 if mode == "F" else 65535
    if not (0 <= low and high <= most):
        raise BrightnessError(
            f"its brightness is between {low:g} and {high:g}; scale it to 0…{most} in mode {mode}"
        )
    deep = high > 255 or mode not in ("F", "I")
    white = 1 if mode == "F" and high <= 1 else 255
    return (grey.astype(np.int64) >> 8 if deep else grey * (255 / white)).astype(np.uint8)


def _random_crop(
    width: int, height: int, rng: np.random.Generator, scale: tuple[float, float]
) -> tuple[float, float, float, float]:
    """Draws x1, y1, x2, y2 in pixels.

    The area is uniform in `scale`, the ratio log-uniform in what of CROP_RATIO fits the image at
    this area. In an image so elongated that nothing fits, the crop is the largest of the nearest
    ratio.
    """
    area = rng.uniform(*scale)
    least = max(CROP_RATIO[0], area * width / height)
    most = min(CROP_RATIO[1], width / height / area)
    if least > most:
        least = most = nearest = np.clip(width / height, *CROP_RATIO)
        area = min(width / height / nearest, nearest * height / width)
    aspect = math.exp(rng.uniform(math.log(least), math.log(most)))
    crop_width = min(width, math.sqrt(area * width * height * aspect))
    crop_height = min(height, math.sqrt(area * width * height / aspect))
    x1, y1 = rng.random(2) * [width - crop_width, height - crop_height]
    return x1, y1, min(x1 + crop_width, width), min(y1 + crop_height, height)


def crop_boxes(
    boxes: np.ndarray, crop: np.ndarray, min_visible: float
) -> tuple[np.ndarray, np.ndarray]:
    """Boxes as fractions of the crop (itself fractions), clipped, and which remain visible."""
    origin, extent = np.tile(crop[:2], 2), np.tile(crop[2:] - crop[:2], 2)
    moved = (boxes - origin) / extent
    clipped = np.clip(moved, 0, 1)
    area, kept = (np.prod(b[:, 2:] - b[:, :2], axis=1) for b in (moved, clipped))
    return clipped, (kept > 0) & (kept >= min_visible * area)


def _jittered(
    image: Image.Image, brightness: float, contrast: float, saturation: float
) -> Image.Image:
    """Scales brightness, then contrast around the mean grey, then saturation, in one pass.

    All three are affine in the colour, so their product is one 3x4 matrix; only the end result
    is clipped.
    """
    mean_colour = image.resize((1, 1), Image.Resampling.BOX).getpixel((0, 0))
    shift = (1 - contrast) * brightness * (_LUMA @ mean_colour)
    mix = saturation * np.eye(3) + (1 - saturation) * _LUMA
    matrix = np.column_stack([brightness * contrast * mix, np.full(3, shift)])
    return image.convert("RGB", tuple(matrix.ravel().tolist()))
