"""The loss of a run does not depend on how many devices and processes compute it."""

import json
import pathlib

import numpy as np
import pytest

from tests.processes import ended, in_cluster, launched

STEPS = 8
LAYOUTS = {
    "data=4 fsdp=2 microbatches=2": (8, dict(data=4, fsdp=2)),
    "data=2 fsdp=2 tensor=2": (8, dict(data=2, fsdp=2, tensor=2)),
}


def start(tmp_path, name, devices, axes, *arguments):
    settings = dict(steps=STEPS, batch_size=64, log_every=1)
    settings |= {"mesh.fsdp_threshold": 64, "checkpoint.every": 0}
    settings |= {f"mesh.{axis}": size for axis, size in axes.items()}
    return launched(
        "train.py",
        "--config=tests/tiny_run.py:rc3_demo",
        f"--workdir={tmp_path / name}",
        *(f"--config.{key}={value}" for key, value in settings.items()),
        *arguments,
        devices=devices,
    )


def curve(folder: pathlib.Path, *processes) -> np.ndarray:
    ended(*processes)
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    losses = [row["loss"] for row in map(json.loads, lines) if "loss" in row]
    assert len(losses) == STEPS
    return np.array(losses)


def scores_of(folder: pathlib.Path) -> dict:
    return json.loads((folder / "scores.json").read_text())


@pytest.fixture(scope="module")
def of_one_device(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    return curve(folder / "one", start(folder, "one", 1, {})), scores_of(folder / "one")


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_devices(tmp_path, of_one_device, layout):
    devices, axes = LAYOUTS[layout]
    nothing = ("--config.evaluation.images=0", "--config.evaluation.dependence_rows=0")
    parts = "--config.microbatches=" + ("2" if "microbatches" in layout else "1")
    losses = curve(tmp_path / "run", start(tmp_path, "run", devices, axes, parts, *nothing))
    difference = np.abs(losses / of_one_device[0] - 1).max()
    print(f"{layout}: the loss of {STEPS} steps differs by {difference:.1e} of it")
    assert difference <= 1e-5


@pytest.mark.slow
def test_two_processes_with_four_devices_each(tmp_path, of_one_device):
    axes = dict(replica=2, data=2, fsdp=2)
    both = [start(tmp_path, "run", 4, axes, *flags) for flags in in_cluster(2)]
    losses = curve(tmp_path / "run", *both)
    difference = np.abs(losses / of_one_device[0] - 1).max()
    print(f"two processes: the loss of {STEPS} steps differs by {difference:.1e} of it")
    assert difference <= 1e-5
    scores = scores_of(tmp_path / "run")
    assert scores["dependence"] == pytest.approx(of_one_device[1]["dependence"], abs=1e-4)
    assert scores["retrieval"].keys() == of_one_device[1]["retrieval"].keys()
