"""Fine-tuning that is killed goes on as if it had not been; processes share it."""

from __future__ import annotations

import json
import signal

import numpy as np
import pytest

from tests.downstream.tuned import ended, in_cluster, pretrain, start
from tests.downstream.tuning import params_of


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    return pretrain(tmp_path_factory.mktemp("pretrained"))


@pytest.fixture(scope="module")
def whole(pretrained, tmp_path_factory):
    """Classification that nothing interrupts, with two learning rates."""
    folder = tmp_path_factory.mktemp("whole") / "tuned"
    ended(start("xvnli", pretrained, folder, "--config.lrs=(1e-3,3e-3)", epochs=3))
    return folder


def read(folder):
    return json.loads((folder / "scores.json").read_text())


def assert_same_parameters(one, other, tolerance=0.0):
    expected, found = params_of(one), params_of(other)
    assert expected.keys() == found.keys()
    for path, value in expected.items():
        np.testing.assert_allclose(found[path], value, rtol=0, atol=tolerance)


def kill_after(line: str, process) -> None:
    """Kills a process that prints a line beginning so."""
    for printed in process.stdout:
        if printed.startswith(line):
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
    assert "goes on after epoch 1" in output
    assert "lr 0.001 " not in output
    assert read(folder) == read(whole)
    assert len(read(folder)["dev"]) == 6
    assert_same_parameters(whole, folder)
    names = {path.name for path in folder.iterdir()}
    assert names == {"params", "config.json", "tokenizer.json", "scores.json", "predictions"}


@pytest.mark.slow
def test_a_rate_that_diverges_leaves_the_others(pretrained, tmp_path):
    folder = tmp_path / "tuned"
    [output] = ended(start("xvnli", pretrained, folder, "--config.lrs=(1e30,1e-3)", epochs=2))
    assert "with lr 1e+30 is nan; lower it; the other rates and epochs remain" in output
    assert {epoch["lr"] for epoch in read(folder)["dev"]} == {1e-3}
    alone = start("xvnli", pretrained, tmp_path / "alone", "--config.lrs=(1e30,)", epochs=1)
    assert "error: the loss of epoch 1 with lr 1e+30 is nan" in alone.communicate(timeout=300)[0]
    assert alone.returncode == 1


@pytest.mark.slow
def test_the_folder_of_a_model_is_not_written_over(pretrained):
    for folder in (pretrained, pretrained / "."):
        process = start("xvnli", pretrained, folder)
        assert "holds a model or scores already" in process.communicate(timeout=300)[0]
        assert process.returncode == 1
    assert {path.name for path in pretrained.iterdir()} == {
        *("params", "config.json", "tokenizer.json")
    }


@pytest.mark.slow
def test_another_fine_tuning_does_not_go_on_with_it(pretrained, tmp_path):
    folder = tmp_path / "tuned"
    kill_after("epoch 1/4", start("xvnli", pretrained, folder))
    other = start("xvnli", pretrained, folder, **{"optimizer.lr": 1e-2, "generated.train": 40})
    output = other.communicate(timeout=300)[0]
    assert other.returncode == 1
    assert "interrupted fine-tuning with another data, generated, optimizer" in output
    assert "Traceback" not in output


@pytest.mark.slow
def test_the_best_epoch_is_kept(whole):
    result = read(whole)
    best = max(epoch["dev"]["en"]["accuracy"] for epoch in result["dev"])
    first = next(e for e in result["dev"] if e["dev"]["en"]["accuracy"] == best)
    assert {epoch["lr"] for epoch in result["dev"]} == {1e-3, 3e-3}
    assert result["best"] == {"epoch": first["epoch"], "lr": first["lr"]}


@pytest.mark.slow
@pytest.mark.parametrize("task", ["marvl", "xflickrco"])
def test_processes_share_the_work(pretrained, tmp_path, task):
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
