"""`--resume` from the command line: longer, after a divergence, from a damaged checkpoint."""

from __future__ import annotations

import json
import math
import re
import shlex

import pytest

from rc3_jax.training.optimizer import OptimizerSettings, schedule
from rc3_jax.training.pretrain import train
from rc3_jax.training.run import prepare_run
from rc3_jax.training.state import count_parameters
from tests.processes import launch
from tests.tiny import itc_alone, quiet, tiny_config


def unscored():
    config = itc_alone(tiny_config())
    config.evaluation.update(images=0, dependence_rows=0)
    return config


def rows_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_an_ended_run_is_extended_and_a_damaged_checkpoint_left_behind(tmp_path):
    config = unscored()
    train(config, tmp_path, console=quiet())
    before = rows_of(tmp_path)
    done = launch("train.py", "--resume", f"--workdir={tmp_path}")
    assert done.returncode == 0, done.stderr[-3000:]
    assert [row["step"] for row in rows_of(tmp_path)] == [1, 2, 3, 4]

    (tmp_path / "checkpoints" / "4" / "state" / "_METADATA").unlink()
    changed = "--config.steps=6", "--config.optimizer.lr=1e-4", "--config.data.threads=1"
    done = launch("train.py", "--resume", f"--workdir={tmp_path}", *changed)
    assert done.returncode == 0, done.stderr[-3000:]
    [damaged] = [line for line in done.stdout.splitlines() if "cannot be read" in line]
    assert "checkpoints/4/state/_METADATA" in damaged and "step 2" in damaged
    told = {"steps": (4, 6), "optimizer.lr": (config.optimizer.lr, 1e-4), "data.threads": (2, 1)}
    for name, (old, new) in told.items():
        assert re.search(rf"--resume: {name} was {old} and is {new}\b", done.stdout)
    rows = rows_of(tmp_path)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert rows[:2] == before[:2]
    rate = schedule(OptimizerSettings.parse(config.optimizer).model_copy(update={"lr": 1e-4}), 6)
    for row in rows[2:]:
        assert row["learning_rate"] == pytest.approx(float(rate(int(row["step"]) - 1)))
        assert row["samples_seen"] == 16 * row["step"]
    stored = json.loads((tmp_path / "config.json").read_text())
    assert (stored["steps"], stored["optimizer"]["lr"]) == (6, 1e-4)

    done = launch("train.py", "--resume", f"--workdir={tmp_path}", "--config.steps=5")
    assert done.returncode != 0 and "steps=5" in done.stderr
    assert json.loads((tmp_path / "config.json").read_text())["steps"] == 6


@pytest.mark.slow
def test_the_advice_after_a_divergence_works(tmp_path):
    """Adam's first update is the rate, for each parameter: that of the norm overflows, half does not."""
    config = unscored()
    config.steps = 1
    config.optimizer.update(warmup=0.0, weight_decay=0.0)
    config.optimizer.lr_multipliers = {}
    count = count_parameters(prepare_run(config).abstract_state.params)
    config.optimizer.lr = 1.6 * math.sqrt(3.4e38 / count)
    with pytest.raises(FloatingPointError, match="parameter_norm is inf") as caught:
        train(config, tmp_path, console=quiet())
    message = str(caught.value)
    assert "loss" not in message  # it is finite
    program, *arguments = shlex.split(message.partition("python launch/")[2])
    done = launch(program, *arguments)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "step 1/1" in done.stdout
