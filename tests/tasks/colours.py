"""Tasks that a few steps can learn: texts that name the colour of a picture, or do not."""

from __future__ import annotations

import functools

import numpy as np

from rc3_jax.tasks.base import Example, Picture, TaskData

COLOURS = {"red": (220, 30, 30), "blue": (30, 30, 220), "green": (30, 200, 30)}
WORDS = {"en": ("red", "blue", "green"), "de": ("rot", "blau", "grün")}
BOX = np.array([[0.1, 0.1, 0.9, 0.9]], np.float32)


def paint(colour: str, seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(-20, 20, (32, 32, 3))
    return np.clip(np.array(COLOURS[colour]) + noise, 0, 255).astype(np.uint8)


def picture(colour: str, seed: int) -> Picture:
    features = np.full((1, 64), list(COLOURS).index(colour), np.float32)
    return Picture(f"{colour}-{seed}", functools.partial(paint, colour, seed), BOX, features)


def example(split: str, language: str, number: int, pictures: int) -> Example:
    """True where the text names the colour of the picture, or of both."""
    rng = np.random.default_rng([number, len(split)])
    seeds = [number * 10 + len(split) * 1000 + i for i in range(pictures)]
    said = int(rng.integers(3))
    same = number % 2 == 1
    drawn = [said] * pictures
    if not same:
        drawn[int(rng.integers(pictures))] = (said + 1 + int(rng.integers(2))) % 3
    shown = [picture(list(COLOURS)[c], seed) for c, seed in zip(drawn, seeds, strict=True)]
    return Example(f"{split}:{number}", str(number), WORDS[language][said], tuple(shown), int(same))


def colour_task(pictures: int = 1, train: int = 48) -> TaskData:
    sizes = {"train": ("en",), "dev": ("en",), "test": ("en", "de")}
    return TaskData(
        ("false", "true"),
        {
            split: {
                code: [
                    example(split, code, i, pictures)
                    for i in range(train if split == "train" else 16)
                ]
                for code in codes
            }
            for split, codes in sizes.items()
        },
    )
