"""Whole runs: what they leave behind, how often they compile, how they resume and stop."""

import io
import json

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


def test_a_run_leaves_its_scores_metrics_settings_and_checkpoint(tmp_path):
    config, console = tiny_config(), quiet()
    config.evaluation.every = 2
    scores = train(config, tmp_path / "run", console=console)
    folder = tmp_path / "run"
    assert json.loads((folder / "scores.json").read_text())["retrieval"] == scores["retrieval"]
    assert set(scores["retrieval"]) == {"both", "patches", "regions"}
    assert set(scores["retrieval"]["both"]) == {"cs", "de", "en", "fr", "ja", "zh"}
    assert {"text_dependence", "image_dependence", "proximity_relevance"} <= set(
        scores["dependence"]
    )
    rows = lines(folder)
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 4]
    assert any("retrieval/both/en/IR@1" in row for row in rows)
    assert json.loads((folder / "config.json").read_text())["steps"] == 4
    assert (folder / "tokenizer.json").exists()
    assert (folder / "checkpoints" / "4").is_dir()
    shown = console.file.getvalue()
    assert "step 4/4" in shown
    assert "samples/s" in shown
    assert "IR@10" in shown


def test_the_step_compiles_once(tmp_path):
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, seconds, **kw: compiled.append((name, kw)) if "backend_compile" in name else 0
    )
    counts = []
    original = loop._report

    def counting(*args):
        counts.append(len(compiled))
        return original(*args)

    loop._report = counting
    try:
        train(tiny_config(), tmp_path, console=quiet())
    finally:
        loop._report = original
        jax.monitoring.clear_event_listeners()
    assert counts[0] > 0  # the listener hears of compilations
    assert len(counts) == 4
    assert len(set(counts[:3])) == 1  # none between the first step and the last report


def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(tmp_path):
    config = tiny_config()
    whole = train(config, tmp_path / "whole", console=quiet())
    folder = tmp_path / "stopped"

    class Stop(Exception):
        pass

    original = loop._report

    def stop_at_three(step, *rest):
        if step == 3:
            raise Stop
        return original(step, *rest)

    loop._report = stop_at_three
    try:
        with pytest.raises(Stop):
            train(config, folder, console=quiet())
    finally:
        loop._report = original
    with pytest.raises(ConfigError, match="--resume"):
        train(config, folder, console=quiet())
    console = quiet()
    resumed = train(config, folder, resume=True, console=console)
    assert "resuming after step 2" in console.file.getvalue()
    assert resumed == whole
    last = [
        next(r for r in reversed(lines(f)) if "loss" in r) for f in (tmp_path / "whole", folder)
    ]
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
        (dict(batch_size=18), "batch_size=18 cannot be shared"),
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
        config.evaluation.languages = ("en",)
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
