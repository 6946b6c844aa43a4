"""launch/iglue.py as a command: its flags, missing pictures, several processes."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from tests.processes import ended, in_cluster, launched
from tests.tasks import task_files
from tests.tasks.tuned import pretrain

SETTINGS = ("batch_size=4", "threads=2", "max_length=24", "epochs=5", "xvnli/epochs=1")


@pytest.mark.slow
def test_processes_share_the_tasks(tmp_path):
    labels = ("entailment", "neutral", "contradiction", "-")
    made = [task_files.xvnli(number, labels[number % 4]) for number in range(8)]
    for name in ("en/train", "en/dev", "en/test", "fr/test"):
        task_files.write(tmp_path / "data" / "XVNLI" / f"{name}.jsonl", *made)
    (tmp_path / "images").mkdir()
    for number in range(7):  # one is missing
        pixels = np.random.default_rng(number).integers(0, 256, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number}.jpg")
    folders = dict(data=tmp_path / "data", images=tmp_path / "images", workdir=tmp_path / "out")
    arguments = [f"--{name}={path}" for name, path in folders.items()]
    arguments += [f"--from={pretrain(tmp_path / 'model')}", "--allow_missing"]
    arguments += [f"--set={setting}" for setting in SETTINGS]
    processes = (launched("iglue.py", *arguments, *flags) for flags in in_cluster(2))
    first, second = ended(*processes)
    assert "report: " in first and "7.jpg" in first
    assert "epoch" not in second
    assert "fr 7 (1 left out)" in (tmp_path / "out" / "report.md").read_text()
    result = json.loads((tmp_path / "out/xvnli/seed_0/zero_shot/scores.json").read_text())
    assert len(result["dev"]) == 1  # the task's own setting counts, not that of all
