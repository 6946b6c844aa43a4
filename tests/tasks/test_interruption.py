"""Fine-tuning that is killed goes on as if it had not been; processes share it."""

from __future__ import annotations

import json
import runpy
import shutil
import signal
from unittest.mock import Mock

import numpy as np
import pytest

from rc3_jax.scenes.tasks import miniature
from rc3_jax.settings import ConfigError
from rc3_jax.tasks.evaluate import check_settings, evaluate
from rc3_jax.tasks.finetune import finetune
from rc3_jax.training.checkpoint import read_params
from tests.processes import ended, in_cluster
from tests.tasks.colours import colour_task
from tests.tasks.tuned import pretrain, start
from tests.tasks.tuning import tuning
from tests.tiny import ROOT, quiet, tiny_config


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    return pretrain(tmp_path_factory.mktemp("pretrained"))


@pytest.fixture(scope="module")
def whole(pretrained, tmp_path_factory):
    """Classification that nothing interrupts, with two learning rates."""
    folder = tmp_path_factory.mktemp("whole") / "tuned"
    ended(start("xvnli", pretrained, folder, "--config.lrs=(1e-3,3e-3)", epochs=3))
    return folder


def begun(*_):
    raise StopIteration


def read(folder):
    return json.loads((folder / "scores.json").read_text())


def assert_same_parameters(one, other, tolerance=0.0):
    expected, found = read_params(one), read_params(other)
    assert expected.keys() == found.keys()
    for path, value in expected.items():
        np.testing.assert_allclose(found[path], value, rtol=0, atol=tolerance)


def kill_after(line: str, process) -> None:
    """Kills a process that prints a line with these words."""
    for printed in process.stdout:
        if line in printed:
            process.send_signal(signal.SIGKILL)
            process.wait()
            return
    pytest.fail(f"it ended without {line!r}")


@pytest.mark.slow
def test_killed_fine_tuning_goes_on_to_the_same_end(pretrained, whole, tmp_path):
    folder = tmp_path / "tuned"
    again = ("xvnli", pretrained, folder, "--config.lrs=(1e-3,3e-3)")
    kill_after("epoch 2/3  lr 0.001", start(*again, epochs=3))
    assert not (folder / "scores.json").exists()
    kill_after("epoch 1/3  lr 0.003", start(*again, epochs=3))
    [output] = ended(start(*again, epochs=3))
    assert "lr 0.003: resuming after epoch 1" in output
    assert "lr 0.001 " not in output
    assert read(folder) == read(whole)
    assert len(read(folder)["dev"]) == 6
    assert_same_parameters(whole, folder)
    names = {path.name for path in folder.iterdir()}
    assert names == {"params", "config.json", "tokenizer.json", "scores.json", "predictions"}


@pytest.mark.slow
def test_a_rate_that_diverges_leaves_the_others(pretrained, tmp_path):
    console, data = quiet(), colour_task(1)
    config = tuning("xvnli", epochs=2, lrs=(1e30, 1e-3))
    result = finetune(config, data, pretrained, tmp_path / "tuned", console)
    assert "lr 1e+30: step 1: " in console.file.getvalue()
    assert {epoch["lr"] for epoch in result["dev"]} == {1e-3}
    with pytest.raises(FloatingPointError, match="step 1"):
        alone = tuning("xvnli", epochs=1, lrs=(1e30,))
        finetune(alone, data, pretrained, tmp_path / "alone", quiet())


def test_a_folder_of_something_else_is_not_written_over(pretrained, tmp_path, monkeypatch):
    monkeypatch.setattr("rc3_jax.tasks.finetune.make_head", lambda *_: Mock())
    monkeypatch.setattr("rc3_jax.tasks.train._Trainer", begun)
    before = {path: path.stat().st_mtime_ns for path in pretrained.rglob("*")}
    config, data = tuning("xvnli", epochs=1), colour_task(1)
    with pytest.raises(ConfigError, match=r"use launch/finetune\.py"):
        evaluate(config, data, pretrained, console=quiet())
    with pytest.raises(ConfigError, match=f"{pretrained} .*choose another --workdir"):
        finetune(config, data, pretrained, pretrained, quiet())
    with pytest.raises(StopIteration):
        finetune(config, data, pretrained, tmp_path / "another", quiet())
    assert {path: path.stat().st_mtime_ns for path in pretrained.rglob("*")} == before
    other = tmp_path / "tuned" / "unfinished" / "identity.json"
    other.parent.mkdir(parents=True)
    other.write_text(json.dumps({"seed": 1, "optimizer": {"lr": 1.0}}))
    with pytest.raises(ConfigError, match="optimizer.* remove the folder") as refused:
        finetune(config, data, pretrained, tmp_path / "tuned", quiet())
    shutil.rmtree(str(refused.value).split(" holds ")[0])
    with pytest.raises(StopIteration):
        finetune(config, data, pretrained, tmp_path / "tuned", quiet())


def test_scores_are_written_where_there_are_none(pretrained, tmp_path, monkeypatch):
    monkeypatch.setattr("rc3_jax.tasks.evaluate.make_head", begun)
    config, data = tuning("xflickrco"), miniature("xflickrco", {"train": 1, "dev": 1, "test": 2})
    (tmp_path / "scores.json").write_text("{}")
    with pytest.raises(ConfigError, match="choose another --output"):
        evaluate(config, data, pretrained, tmp_path, quiet())
    with pytest.raises(StopIteration):
        evaluate(config, data, pretrained, tmp_path / "another", quiet())


def test_settings_of_no_task_are_refused():
    with pytest.raises(ConfigError, match="of no task; name a file of") as refused:
        check_settings(tiny_config())
    for file in (ROOT / str(refused.value).split()[-1]).glob("*.py"):
        check_settings(runpy.run_path(str(file))["get_config"](""))


@pytest.mark.slow
def test_the_best_epoch_is_kept(whole):
    result = read(whole)
    best = max(epoch["dev"]["en"]["accuracy"] for epoch in result["dev"])
    first = next(e for e in result["dev"] if e["dev"]["en"]["accuracy"] == best)
    assert {epoch["lr"] for epoch in result["dev"]} == {1e-3, 3e-3}
    assert result["best"] == {"epoch": first["epoch"], "lr": first["lr"]}


@pytest.mark.slow
def test_processes_share_the_work(pretrained, tmp_path):
    task = "xflickrco"
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    ended(start(task, pretrained, alone, epochs=2))
    both = [
        start(
            *(task, pretrained, shared, *flags),
            devices=2,
            **{"epochs": 2, "mesh.data": 2, "mesh.fsdp": 2, "mesh.fsdp_threshold": 64},
        )
        for flags in in_cluster(2)
    ]
    first, second = ended(*both)
    assert "epoch 2/2" in first
    assert "epoch" not in second
    one, two = read(alone), read(shared)
    for before, after in zip(one["dev"], two["dev"], strict=True):
        assert after["loss"] == pytest.approx(before["loss"], rel=1e-5)
    assert one["test"] == two["test"]
    assert_same_parameters(alone, shared, tolerance=1e-4)
