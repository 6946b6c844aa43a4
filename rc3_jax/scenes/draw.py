"""Scenes as pixels, with antialiasing."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from rc3_jax.scenes.scene import Box, Scene, SceneObject

CANVAS_SIZE = 64  # pixels
RGB = {
    "red": (205, 25, 40),
    "green": (35, 150, 60),
    "blue": (35, 75, 215),
    "yellow": (245, 210, 20),
    "black": (25, 25, 25),
    "orange": (245, 120, 10),
}
_PANE, _SHADOW = (128, 128, 128), (80, 80, 80)


def draw(scene: Scene, size: int = CANVAS_SIZE) -> np.ndarray:
    """Draws a scene, uint8 `[size, size, 3]`."""
    image = np.full((size, size, 3), scene.background, np.float32)
    for item in scene.objects:
        for shape, box, colour in _layers(item):
            place, covered = coverage(shape, box, size)
            part = image[place]
            part += covered[..., None] * (np.array(colour, np.float32) - part)
    return np.rint(image).astype(np.uint8)


def _layers(item: SceneObject) -> list[tuple[str, Box, tuple[int, int, int]]]:
    """Shapes, boxes and RGB that show an object, one above the other.

    A grey pane as large as the object shows its shadow where it hides the colour, and has a hole in
    the middle, a third as wide, where it hides the shape.
    """
    pane = "square", item.box, _PANE
    if item.hidden == "colour":
        return [pane, (item.shape, item.box, _SHADOW)]
    if item.hidden == "shape":
        x1, y1, x2, y2 = item.box
        third = (x2 - x1) / 3, (y2 - y1) / 3
        hole = x1 + third[0], y1 + third[1], x2 - third[0], y2 - third[1]
        return [pane, ("square", hole, RGB[item.colour])]
    return [(item.shape, item.box, RGB[item.colour])]


def coverage(
    shape: str, box: Box, size: int, samples: int = 4
) -> tuple[tuple[slice, slice], np.ndarray]:
    """How much of each pixel a shape covers, on a canvas of size x size pixels.

    Returns:
      The rows and columns of the pixels that the box touches, and their coverage, float32 in
      [0, 1]: the share of samples x samples points that lie inside.
    """
    x1, y1, x2, y2 = (size * edge for edge in box)
    left, top, right, bottom = int(x1), int(y1), int(np.ceil(x2)), int(np.ceil(y2))
    x = left + (np.arange((right - left) * samples) + 0.5) / samples
    y = top + (np.arange((bottom - top) * samples) + 0.5) / samples
    u = ((x - x1) / (x2 - x1))[None, :]
    v = ((y - y1) / (y2 - y1))[:, None]
    inside = INSIDE[shape](u, v) & (0 <= u) & (u <= 1) & (0 <= v) & (v <= 1)
    cells = inside.reshape(bottom - top, samples, right - left, samples)
    covered = cells.sum(axis=(1, 3), dtype=np.float32) / np.float32(samples * samples)
    return (slice(top, bottom), slice(left, right)), covered


def _star(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """The points on the inner side of at least four of the five lines of a pentagram."""
    tips = 2 * np.pi * np.arange(5) / 5 - np.pi / 2  # angles; the first points upwards
    x = (u - 0.5) * 2 * np.cos(tips[1])
    y = v * (1 + np.sin(tips[2])) - 1
    inner = [x * np.cos(tip) + y * np.sin(tip) <= np.cos(2 * np.pi / 5) for tip in tips]
    return np.sum(inner, axis=0) >= 4


INSIDE: Mapping[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "circle": lambda u, v: (u - 0.5) ** 2 + (v - 0.5) ** 2 <= 0.25,
    "square": lambda u, v: np.maximum(np.abs(u - 0.5), np.abs(v - 0.5)) <= 0.5,
    "triangle": lambda u, v: np.abs(u - 0.5) <= v / 2,
    "star": _star,
    "cross": lambda u, v: np.minimum(np.abs(u - 0.5), np.abs(v - 0.5)) <= 1 / 6,
}
"""Which points lie inside a shape, with u to the right and v downwards across its box, 0 to 1."""
