"""Random changes of one strength, as CCLM.md section 3.5 lists them (after RandAugment, Cubuk et
al., arXiv 1909.13719)."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

MAX_MAGNITUDE = 10
COLOUR_OPERATIONS = ("identity", "autocontrast", "equalize", "brightness", "sharpness")
GEOMETRIC_OPERATIONS = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate")
_CHANCE = 0.5  # that an operation, once drawn, is applied
_FILL = (128, 128, 128)
_MOST_SHEAR = 0.3
_MOST_TRANSLATION = 10.0  # pixels
_MOST_ROTATION = 30.0  # degrees


def rand_augment(
    image: Image.Image,
    operations: int,
    magnitude: float,
    rng: np.random.Generator,
    geometric: bool = True,
) -> Image.Image:
    """Applies so many operations, drawn with replacement, each with probability 1/2.

    Args:
      image: RGB.
      magnitude: strength, 0 to `MAX_MAGNITUDE`. It bears on brightness, sharpness and geometry.
      geometric: draw from all ten; otherwise from those that leave every object in its place.
    """
    names = COLOUR_OPERATIONS + (GEOMETRIC_OPERATIONS if geometric else ())
    for number in rng.integers(len(names), size=operations):
        applied, sign = rng.random() < _CHANCE, 1 if rng.random() < 0.5 else -1
        if applied:
            image = change(image, names[number], magnitude / MAX_MAGNITUDE, sign)
    return image


def change(image: Image.Image, operation: str, strength: float, sign: int) -> Image.Image:
    """One operation.

    Args:
      operation: one of `COLOUR_OPERATIONS` or `GEOMETRIC_OPERATIONS`.
      strength: 0 to 1.
      sign: direction of a geometric operation, 1 or -1.
    """
    if operation == "identity":
        return image
    if operation == "autocontrast":
        return ImageOps.autocontrast(image)
    if operation == "equalize":
        return ImageOps.equalize(image)
    factor = 0.1 + 1.8 * strength  # 1 leaves the image as it is
    if operation == "brightness":
        return ImageEnhance.Brightness(image).enhance(factor)
    if operation == "sharpness":
        return ImageEnhance.Sharpness(image).enhance(factor)
    amount = sign * strength
    if operation == "rotate":
        angle = amount * _MOST_ROTATION
        return image.rotate(angle, Image.Resampling.BILINEAR, fillcolor=_FILL)
    shear, shift = amount * _MOST_SHEAR, amount * _MOST_TRANSLATION
    matrix = {  # from a place in the result to one in the image
        "shear_x": (1, shear, 0, 0, 1, 0),
        "shear_y": (1, 0, 0, shear, 1, 0),
        "translate_x": (1, 0, shift, 0, 1, 0),
        "translate_y": (1, 0, 0, 0, 1, shift),
    }[operation]
    return image.transform(
        image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=_FILL
    )
