"""Whole runs: what they leave behind, how often they compile, how they resume and stop."""

import io
import json
import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from rich.console import Console

from rc3_jax.config import ConfigError
from rc3_jax.data.record import DataError
from rc3_jax.training import loop
from rc3_jax.training.loop import train
from tests.tiny import tiny_config


def quiet():
    return Console(file=io.StringIO(), width=200)


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


class Whole(NamedTuple):
    """A run from its first step to its scores.

    Attributes:
      shown: on the console.
      compilations: heard of when the metrics of each step were read.
    """

    folder: pathlib.Path
    scores: dict[str, Any]
    shown: str
    compilations: list[int]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    heard, counts = [], []

    def hear(name, seconds, **more):
        if "backend_compile" in name:
            heard.append(name)

    def counting(*arguments):
        counts.append(len(heard))
        return report(*arguments)

    report, console = loop._report, quiet()
    folder = tmp_path_factory.mktemp("runs") / "whole"
    jax.monitoring.register_event_duration_secs_listener(hear)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(loop, "_report", counting)
        scores = train(tiny_config(), folder, console=console)
    jax.monitoring.clear_event_listeners()
    return Whole(folder, scores, console.file.getvalue(), counts)


def test_a_run_leaves_its_scores_metrics_settings_and_checkpoint(whole):
    folder, scores = whole.folder, whole.scores
    assert json.loads((folder / "scores.json").read_text())["retrieval"] == scores["retrieval"]
    assert set(scores["retrieval"]) == {"both", "patches", "regions"}
    assert set(scores["retrieval"]["both"]) == {"cs", "de", "en", "fr", "ja", "zh"}
    assert {"text_dependence", "image_dependence", "proximity_relevance"} <= set(
        scores["dependence"]
    )
    assert [row["step"] for row in lines(folder) if "loss" in row] == [1, 2, 3, 4]
    assert json.loads((folder / "config.json").read_text())["steps"] == 4
    assert (folder / "tokenizer.json").exists()
    assert (folder / "checkpoints" / "4").is_dir()
    for part in ("step 4/4", "samples/s", "IR@10"):
        assert part in whole.shown


def test_the_step_compiles_once(whole):
    counts = whole.compilations
    assert counts[0] > 0  # the listener hears of compilations
    assert len(counts) == 4
    assert len(set(counts[:3])) == 1  # none between the first step and the last report


@pytest.mark.slow
def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(whole, tmp_path):
    config, folder = tiny_config(), tmp_path / "stopped"
    config.evaluation.every = 2

    class Stop(Exception):
        pass

    original = loop._report

    def stop_at_three(step, *rest):
        if step == 3:
            raise Stop
        return original(step, *rest)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(loop, "_report", stop_at_three)
        with pytest.raises(Stop):
            train(config, folder, console=quiet())
    assert any("retrieval/both/en/IR@1" in row for row in lines(folder))
    with pytest.raises(ConfigError, match="--resume"):
        train(config, folder, console=quiet())
    console = quiet()
    resumed = train(config, folder, resume=True, console=console)
    assert "resuming after step 2" in console.file.getvalue()
    assert resumed == whole.scores
    last = [next(r for r in reversed(lines(f)) if "loss" in r) for f in (whole.folder, folder)]
    assert last[0]["loss"] == last[1]["loss"]


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    config = tiny_config()
    config.optimizer.update(lr=1e30, warmup=0.0)
    with pytest.raises(FloatingPointError, match="lower optimizer.lr"):
        train(config, tmp_path, console=quiet())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(batch_size=2), "batch_size=2 shared as .* leaves no row to parallel"),
        (dict(shares=dict(strict=0.0, weak=0.0)), "needs strict or weak rows"),
        (dict(mesh=dict(fsdp=5)), "mesh.fsdp=5 x mesh.tensor=1 does not give"),
        (dict(objective=dict(regularizer=("hing",))), "name one or more of weighted"),
        (dict(objective=dict(relevance="mine")), "use one of own, ema"),
        (dict(model=dict(patch=dict(width=32))), "must be equal"),
        (dict(model=dict(patch=dict(image_size=30))), "not a multiple"),
        (dict(optimizer=dict(no_decay=("nothing",))), "matches no parameter"),
    ],
)
def test_settings_that_cannot_be_are_refused_with_the_remedy(tmp_path, change, message):
    config = tiny_config()
    config.update(change)
    with pytest.raises((DataError, ConfigError, ValueError), match=message):
        train(config, tmp_path, console=quiet())


@pytest.mark.slow
def test_weak_rows_alone_and_strict_rows_alone_train(tmp_path):
    for kinds in (dict(weak=0, parallel=0), dict(strict=0, parallel=0)):
        config = tiny_config()
        config.steps = 2
        config.data.sources.scenes.update(kinds)
        config.evaluation.images = 0
        scores = train(config, tmp_path / "-".join(kinds), console=quiet())
        assert np.isfinite(scores["dependence"]["text_dependence"])


@pytest.mark.slow
def test_bfloat16_with_dropout_and_rematerialisation_trains(tmp_path):
    config = tiny_config()
    config.steps = 3
    config.model.update(dtype="bfloat16", dropout=0.1, remat="full")
    config.objective.update(relevance="ema", regularizer=("soft", "hinge"))
    config.optimizer.mu_dtype = "bfloat16"
    train(config, tmp_path, console=quiet())
    assert all(np.isfinite(row["loss"]) for row in lines(tmp_path))
