"""launch/iglue.py as a command: its flags, missing pictures, several processes."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from PIL import Image

from tests.downstream import iglue_rows as rows
from tests.downstream.tuned import ended, in_cluster, launched, pretrain

SETTINGS = ("batch_size=4", "threads=2", "max_length=24", "epochs=5", "xvnli/epochs=1")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return pretrain(tmp_path_factory.mktemp("pretrained"))


@pytest.fixture(scope="module")
def arguments(source, tmp_path_factory):
    """Of XVNLI with eight pictures of which one is missing."""
    folder = tmp_path_factory.mktemp("files")
    labels = ("entailment", "neutral", "contradiction", "-")
    made = [rows.xvnli(number, labels[number % 4]) for number in range(8)]
    for file in ("en/train", "en/dev", "en/test", "fr/test"):
        rows.write(folder / "data" / "XVNLI" / f"{file}.jsonl", *made)
    (folder / "images").mkdir()
    for number in range(7):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{number}.jpg")
    folders = f"--from={source}", f"--data={folder / 'data'}", f"--images={folder / 'images'}"
    return *folders, *(f"--set={setting}" for setting in SETTINGS)


@pytest.mark.slow
def test_missing_pictures_stop_it_unless_they_are_allowed(arguments, tmp_path):
    process = launched("iglue.py", *arguments, f"--workdir={tmp_path / 'refused'}")
    output = process.communicate(timeout=300)[0]
    assert process.returncode == 1
    assert "error: " in output
    assert "Traceback" not in output
    assert "7 of 8 images found (87.50%)" in output
    assert "7.jpg" in output
    assert not (tmp_path / "refused" / "report.md").exists()
    arguments = (*arguments, "--allow_missing")
    [output] = ended(launched("iglue.py", *arguments, f"--workdir={tmp_path / 'alone'}"))
    assert "1 more could not be used" in output
    assert "| zero-shot | fr | 1 | 7 | 0 |" in (tmp_path / "alone" / "report.md").read_text()
    shared = (*arguments, f"--workdir={tmp_path / 'shared'}")
    first, second = ended(*(launched("iglue.py", *shared, *flags) for flags in in_cluster(2)))
    assert "report: " in first
    assert "epoch" not in second
    one, two = (
        json.loads((tmp_path / name / "xvnli/seed_0/zero_shot/scores.json").read_text())
        for name in ("alone", "shared")
    )
    assert len(one["dev"]) == 1  # the task's own setting counts, not that of all
    assert two["dev"][0]["loss"] == pytest.approx(one["dev"][0]["loss"], rel=1e-5)
    assert two["test"] == one["test"]


@pytest.mark.parametrize(
    ("flag", "reason"),
    [
        ("--set=epochs", "--set=epochs: write --set=name=value"),
        ("--set=xvnli/epoch=3", "xvnli: .*epoch"),
        ("--seeds=0,a", "--seeds: a is no whole number"),
        ("--tasks=wit", "has no wit, but xvnli"),
        ("--data=", "name a folder of tasks"),
    ],
)
def test_wrong_flags_end_in_one_line(arguments, flag, reason, tmp_path):
    process = launched("iglue.py", *arguments, flag, f"--workdir={tmp_path / 'out'}")
    output = process.communicate(timeout=300)[0]
    assert process.returncode == 1
    [line] = [line for line in output.splitlines() if line.startswith("error: ")]
    assert re.search(reason, line), line
    assert "Traceback" not in output
    assert not (tmp_path / "out").exists()
