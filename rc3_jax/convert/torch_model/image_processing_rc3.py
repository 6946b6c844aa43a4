"""Pictures to the pixels that an RC³ model reads."""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image
from transformers import BaseImageProcessor, BatchFeature

# Pillow can open more, but some of it (EPS) runs other programs.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
MAX_PIXELS = 2**26
UPRIGHT = dict(zip(range(2, 9), map(Image.Transpose, (0, 3, 1, 5, 4, 6, 2)), strict=True))
"""EXIF orientation -> what turns the image upright."""


class RC3ImageProcessor(BaseImageProcessor):
    """Squashes pictures to a square by bicubic interpolation and normalises their colours.

    Attributes:
      image_size: side of the square.
      image_mean, image_std: of each colour channel, 0 to 1.
    """

    model_input_names = ["pixel_values"]  # noqa: RUF012

    def __init__(
        self,
        image_size: int = 224,
        image_mean: Sequence[float] = (0.5, 0.5, 0.5),
        image_std: Sequence[float] = (0.5, 0.5, 0.5),
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.image_size = image_size
        self.image_mean, self.image_std = list(image_mean), list(image_std)

    def __call__(  # type: ignore[override]  # it takes no other settings
        self, images: Any, return_tensors: str | None = "pt"
    ) -> BatchFeature:
        """`pixel_values` float32 `[batch, 3, image_size, image_size]` of one image or several.

        Args:
          images: Pillow images, paths, or uint8 arrays `[height, width, 3]`.
          return_tensors: "pt" for PyTorch tensors, "np" for arrays.

        Raises:
          ValueError: for pictures that are damaged or too large, and arrays of other types.
          FileNotFoundError: for a file that is missing.
        """
        several = isinstance(images, list | tuple) or getattr(images, "ndim", 3) == 4
        pixels = [self._pixels(image) for image in (images if several else [images])]
        if not pixels:
            raise ValueError("there are no images; give one or several")
        return BatchFeature({"pixel_values": np.stack(pixels)}, tensor_type=return_tensors)

    def _pixels(self, image: Image.Image | str | os.PathLike | np.ndarray) -> np.ndarray:
        """Normalised colours, float32 `[3, image_size, image_size]`."""
        rgb = open_rgb(image).resize((self.image_size,) * 2, Image.Resampling.BICUBIC)
        colours = np.asarray(rgb).astype(np.float32) / np.float32(255)
        mean, std = np.array(self.image_mean, np.float32), np.array(self.image_std, np.float32)
        return ((colours - mean) / std).transpose(2, 0, 1)


def open_rgb(image: Image.Image | str | os.PathLike | np.ndarray) -> Image.Image:
    """A picture as upright RGB; see `RC3ImageProcessor.__call__`."""
    if not isinstance(image, Image.Image | str | os.PathLike):
        pixels = np.asarray(image)
        if pixels.dtype != np.uint8 or pixels.shape[2:] != (3,) or not pixels.size:
            raise ValueError(
                f"an image is {pixels.dtype} {list(pixels.shape)}; give a Pillow image, a path, "
                "or uint8 [height, width, 3]"
            )
        return Image.fromarray(pixels)
    name = "an image" if isinstance(image, Image.Image) else f"{os.fspath(image)}"
    try:
        if isinstance(image, Image.Image):
            return to_upright_rgb(image)
        with Image.open(image, formats=FORMATS) as opened:
            return to_upright_rgb(opened)
    except FileNotFoundError:
        raise
    except Exception as error:  # Pillow raises a dozen types on damaged files, SyntaxError too
        raise ValueError(
            f"{name} cannot be decoded ({type(error).__name__}: {error}); give a complete picture "
            f"of type {', '.join(FORMATS)} of at most {MAX_PIXELS} pixels"
        ) from error


def to_upright_rgb(image: Image.Image) -> Image.Image:
    """Converts images of any mode, turned as their EXIF data say, transparent parts on white."""
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(f"{image.width} x {image.height} pixels")
    image.load()
    transpose = UPRIGHT.get(orientation(image))
    if image.mode[0] in "IF":  # 16 or 32 bits a pixel: convert() would clip, not scale
        image = Image.fromarray(as_bytes(np.asarray(image), image.mode))
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    rgb = image.convert("RGB")
    return rgb if transpose is None else rgb.transpose(transpose)


def orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 (upright) to 8."""
    # Asking a PNG without EXIF for it would decode it. TIFF is turned by Pillow itself.
    if "exif" not in image.info or image.format == "TIFF":
        return 1
    try:
        return image.getexif().get(0x0112, 1)
    except (
        ArithmeticError,
        LookupError,
        OSError,
        SyntaxError,
        TypeError,
        ValueError,
        struct.error,
    ):
        return 1  # damaged EXIF data around a sound picture


def as_bytes(grey: np.ndarray, mode: str) -> np.ndarray:
    """Brightness as uint8, from 0…1 or 0…255 (mode F), 0…255 or 0…65535 (I and I;16)."""
    low, high = float(grey.min()), float(grey.max())
    most = 255 if mode == "F" else 65535
    overshoots = mode == "F" and 1 < high < 2  # nearly black in 0…255, so that 0…1 is meant
    if overshoots or not (low >= 0 and high <= most):
        raise ValueError(
            f"its brightness is between {low:g} and {high:g}; scale it to "
            f"{'0…1' if mode == 'F' else '0…65535'} in mode {mode}"
        )
    white = 1 if mode == "F" and high <= 1 else 255
    return (grey.astype(np.int64) >> 8 if high > 255 else grey * (255 / white)).astype(np.uint8)
