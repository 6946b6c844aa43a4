"""Fine-tuning from a folder to a folder: learning, selecting, scoring, going on from it."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from rich.console import Console

from rc3_jax.config import save_config
from rc3_jax.downstream.config import finetune_config
from rc3_jax.downstream.finetune import finetune
from rc3_jax.training.checkpoint import load_some, save_params, stored_shapes
from rc3_jax.training.run import prepare_run
from tests.downstream.colours import colour_task
from tests.tiny import tiny_config


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretrained")
    run = prepare_run(tiny_config())
    save_params(folder, run.initial_state().params)
    save_config(run.config, folder / "config.json")
    (folder / "tokenizer.json").write_text(run.tokenizer.to_json())
    return folder


def settings(task="xvnli", epochs=12, **changes):
    config = finetune_config(task)
    config.update(annotations="miniature", epochs=epochs, batch_size=8, dropout=0.0, threads=2)
    config.optimizer.lr = 3e-3
    config.update(changes)
    return config


def quiet():
    return Console(file=io.StringIO(), width=100)


@pytest.mark.slow
@pytest.mark.parametrize("pictures, task", [(1, "xvnli"), (2, "marvl")])
def test_a_simple_task_is_learned(pretrained, tmp_path, pictures, task):
    result = finetune(
        settings(task), colour_task(pictures), pretrained, tmp_path / "tuned", quiet()
    )
    assert result["dev"][-1]["loss"] < result["dev"][0]["loss"]
    assert result["scores"]["en"]["accuracy"] >= 0.8
    assert json.loads((tmp_path / "tuned" / "scores.json").read_text()) == result
    best = max(epoch["en"]["accuracy"] for epoch in result["dev"])
    again = settings(task, epochs=1)
    again.optimizer.lr = 0.0
    kept = finetune(again, colour_task(pictures), tmp_path / "tuned", tmp_path / "again", quiet())
    assert kept["dev"][0]["en"]["accuracy"] == best
    assert kept["scores"] == result["scores"]
    for path in stored_shapes(tmp_path / "tuned"):
        before, after = (load_some(tmp_path / x, [path])[path] for x in ("tuned", "again"))
        np.testing.assert_array_equal(before, after)
