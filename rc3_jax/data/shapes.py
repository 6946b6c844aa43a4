"""Coloured shapes as pixels, with antialiasing.

A shape is a function that tells which points lie inside it, with u to the right and v
downwards, both from 0 to 1 across the shape's box. A colour is RGB of 0 to 255.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

Inside = Callable[[np.ndarray, np.ndarray], np.ndarray]
Box = tuple[float, float, float, float]


def _circle(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return (u - 0.5) ** 2 + (v - 0.5) ** 2 <= 0.25


def _square(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.maximum(np.abs(u - 0.5), np.abs(v - 0.5)) <= 0.5


def _triangle(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.abs(u - 0.5) <= v / 2


def _star(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """The points on the inner side of at least four of the five lines of a pentagram."""
    tips = 2 * np.pi * np.arange(5) / 5 - np.pi / 2  # angles; the first points upwards
    x = (u - 0.5) * 2 * np.cos(tips[1])
    y = v * (1 + np.sin(tips[2])) - 1
    inner = [x * np.cos(tip) + y * np.sin(tip) <= np.cos(2 * np.pi / 5) for tip in tips]
    return np.sum(inner, axis=0) >= 4


def _cross(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.minimum(np.abs(u - 0.5), np.abs(v - 0.5)) <= 1 / 6


COLOURS = {
    "red": (205, 25, 40),
    "green": (35, 150, 60),
    "blue": (35, 75, 215),
    "yellow": (245, 210, 20),
    "black": (25, 25, 25),
    "orange": (245, 120, 10),
}

INSIDE: Mapping[str, Inside] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "cross": _cross,
}


def shape_mask(shape: str, box: Box, size: int, samples: int = 4) -> np.ndarray:
    """How much of each pixel a shape covers.

    Args:
      shape: a key of INSIDE.
      box: x1, y1, x2, y2 as fractions of width and height, inside [0, 1].
      size: side of the square canvas in pixels.
      samples: a pixel's coverage is the mean over samples x samples points.
    Returns:
      float32 `[size, size]` in [0, 1].
    """
    x1, y1, x2, y2 = (size * edge for edge in box)
    left, top, right, bottom = int(x1), int(y1), int(np.ceil(x2)), int(np.ceil(y2))
    x = left + (np.arange((right - left) * samples) + 0.5) / samples
    y = top + (np.arange((bottom - top) * samples) + 0.5) / samples
    u = ((x - x1) / (x2 - x1))[None, :]
    v = ((y - y1) / (y2 - y1))[:, None]
    inside = INSIDE[shape](u, v) & (0 <= u) & (u <= 1) & (0 <= v) & (v <= 1)
    cells = inside.reshape(bottom - top, samples, right - left, samples)
    mask = np.zeros((size, size), np.float32)
    mask[top:bottom, left:right] = cells.mean(axis=(1, 3))
    return mask


def paint(image: np.ndarray, shape: str, colour: str, box: Box) -> None:
    """Paints a shape onto a float32 image `[size, size, 3]` of values 0 to 255, in place."""
    mask = shape_mask(shape, box, len(image))[..., None]
    image += mask * (np.array(COLOURS[colour], np.float32) - image)
