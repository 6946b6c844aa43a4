"""Pictures that cannot be decoded take their rows with them, and no more."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from rc3_jax.data.record import DataError
from rc3_jax.downstream.damaged import without_damaged
from rc3_jax.downstream.examples import Example, Picture, TaskData


def jpeg(seed: int, cut: int | None = None) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (80, 90, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()[:cut]


def task(tmp_path, damaged, count=40):
    """Examples about two pictures each, next to one another; language fr has the first alone."""
    pictures = []
    for number in range(count):
        file = tmp_path / f"{number}.jpg"
        file.write_bytes(damaged.get(number, jpeg(number)))
        pictures.append(Picture(f"{number}.jpg", file))
    examples = [
        Example(f"test:{n}", str(n), "text", (pictures[n], pictures[n + 1]), 0)
        for n in range(count - 1)
    ]
    splits = {"test": {"en": examples, "fr": examples[:1]}}
    return TaskData(("no", "yes"), splits, {"test": {"en": 3}})


@pytest.mark.parametrize("content", [b"", b"no picture", jpeg(7, cut=2000)])
def test_rows_about_a_damaged_picture_are_left_out(tmp_path, content):
    data, said = task(tmp_path, {7: content}), []
    found = without_damaged(data, 2, False, said.append)
    kept = [example.identity for example in found.splits["test"]["en"]]
    assert kept == [str(n) for n in range(39) if n not in (6, 7)]
    assert found.splits["test"]["fr"] == data.splits["test"]["fr"]
    assert found.left_out == {"test": {"en": 5}}
    assert "7.jpg" in said[0]
    assert data.left_out == {"test": {"en": 3}}


def test_whole_pictures_change_nothing(tmp_path):
    data = task(tmp_path, {})
    assert without_damaged(data, 2, False, pytest.fail) is data


def test_too_many_stop_the_task_unless_allowed(tmp_path):
    data = task(tmp_path, {0: b"", 1: b"", 2: b""})
    with pytest.raises(
        DataError, match="test in en: 3 of 40 pictures cannot be read; first: .*jpg"
    ):
        without_damaged(data, 2, False, pytest.fail)
    found = without_damaged(data, 2, True, [].append)
    assert "fr" not in found.splits["test"]
    assert found.left_out == {"test": {"en": 3 + 3, "fr": 1}}
