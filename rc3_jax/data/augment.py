"""Images changed at random: cropped, resized, recoloured, mirrored, with the boxes on them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image

from rc3_jax.data.image import Encoded
from rc3_jax.data.rand_augment import rand_augment

CROP_RATIO = (3 / 4, 4 / 3)
"""Least and largest width/height of a random crop."""
MIN_VISIBLE = 0.5
"""Share of a box that has to be in a crop for it to count as visible."""

_SAME = np.eye(3, 4)
_GREY = np.tile([0.299, 0.587, 0.114, 0], (3, 1))  # ITU-R 601, as in Pillow's conversion to grey
cv2.setNumThreads(1)  # rows are made in threads or processes already


def augment(
    picture: np.ndarray | Encoded,
    boxes: np.ndarray | None,
    size: int,
    rng: np.random.Generator,
    *,
    crop_scale: tuple[float, float] = (1.0, 1.0),
    crop: tuple[int, int, int, int] | None = None,
    jitter: float | Sequence[float] = 0.0,
    may_flip: bool = False,
    operations: tuple[int, float] = (0, 0),
    geometric: bool = False,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Crops at random, resizes (antialiased), jitters colours and maybe mirrors.

    Args:
      picture: uint8 `[height, width, 3]`, or what `read_header` returns: a JPEG is then decoded at
        the smallest size at which the crop has enough pixels.
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
    height, width = picture.shape[:2]
    crop = crop or random_crop(width, height, rng, crop_scale)
    factors = 1 + np.multiply(jitter, rng.uniform(-1, 1, 3))
    flip = bool(rng.random() < 0.5) and may_flip

    by = 1
    if isinstance(picture, Encoded):
        by = picture.reduction(crop[2] - crop[0], crop[3] - crop[1], size)
        picture = picture.decode(by)
    x1, y1, x2, y2 = crop[0] // by, crop[1] // by, -(-crop[2] // by), -(-crop[3] // by)
    pixels = _resized(picture[y1:y2, x1:x2], size)
    if (factors != 1).any():
        pixels = _jittered(pixels, *np.maximum(factors, 0))
    if flip:
        pixels = cv2.flip(pixels, 1)
    if operations[0]:
        pixels = np.array(rand_augment(Image.fromarray(pixels), *operations, rng, geometric))

    if boxes is None:
        return pixels, np.zeros((0, 4), np.float32), np.zeros(0, bool)
    seen = np.multiply((x1, y1, x2, y2), by) / (width, height, width, height)
    boxes, visible = crop_boxes(boxes.astype(np.float64), seen, MIN_VISIBLE)
    if flip:
        boxes = np.stack([1 - boxes[:, 2], boxes[:, 1], 1 - boxes[:, 0], boxes[:, 3]], axis=1)
    return pixels, boxes.astype(np.float32), visible


def _resized(pixels: np.ndarray, size: int) -> np.ndarray:
    """Squashes uint8 `[height, width, 3]` to `[size, size, 3]`.

    Shrinking by 3 at most averages four points of each new pixel, between the old ones. More takes
    the mean over a new pixel's area, which is slower. Enlarging is bicubic.
    """
    height, width = pixels.shape[:2]
    square = (size, size)
    if size < max(height, width) <= 3 * size:
        twice = cv2.resize(pixels, (2 * size, 2 * size), interpolation=cv2.INTER_LINEAR)
        return cv2.resize(twice, square, interpolation=cv2.INTER_AREA)
    least = (min(width, size), min(height, size))
    small = cv2.resize(pixels, least, interpolation=cv2.INTER_AREA)
    return cv2.resize(small, square, interpolation=cv2.INTER_CUBIC)


def random_crop(
    width: int, height: int, rng: np.random.Generator, scale: tuple[float, float]
) -> tuple[int, int, int, int]:
    """Draws x1, y1, x2, y2, whole pixels and at least one.

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
    x1, y1 = (rng.random(2) * [width - crop_width, height - crop_height]).tolist()
    left, top = min(round(x1), width - 1), min(round(y1), height - 1)
    right, bottom = round(x1 + crop_width), round(y1 + crop_height)
    return left, top, max(right, left + 1), max(bottom, top + 1)


def crop_boxes(
    boxes: np.ndarray, crop: np.ndarray, min_visible: float
) -> tuple[np.ndarray, np.ndarray]:
    """Boxes as fractions of the crop (itself fractions), clipped, and which remain visible."""
    origin, extent = crop[:2], crop[2:] - crop[:2]
    moved = ((boxes.reshape(-1, 2, 2) - origin) / extent).reshape(-1, 4)
    clipped = moved.clip(0, 1)
    area, kept = (np.prod(b[:, 2:] - b[:, :2], axis=1) for b in (moved, clipped))
    return clipped, (kept > 0) & (kept >= min_visible * area)


def _jittered(
    pixels: np.ndarray, brightness: float, contrast: float, saturation: float
) -> np.ndarray:
    """Scales brightness, then contrast around the mean grey, then saturation, in one pass.

    All three are affine in the colour, so their product is one 3x4 matrix; only the end result
    is clipped.
    """
    matrix = brightness * contrast * (saturation * _SAME + (1 - saturation) * _GREY)
    matrix[:, 3] = (1 - contrast) * brightness * (_GREY[0, :3] @ cv2.mean(pixels)[:3])
    return cv2.transform(pixels, matrix)
