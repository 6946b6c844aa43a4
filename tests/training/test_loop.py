"""Whole runs: what they leave behind, how often they compile, how they resume and stop."""

import io
import json
import pathlib
import time
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from rich.console import Console

from rc3_jax.evaluation.evaluate import Evaluator
from rc3_jax.scenes.languages import LANGUAGES
from rc3_jax.settings import ConfigError
from rc3_jax.training.load import load_model
from rc3_jax.training.optimizer import schedule
from rc3_jax.training.pretrain import train
from rc3_jax.training.run import prepare_run
from tests.tiny import quiet, tiny_config


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


class Whole(NamedTuple):
    """A run from its first step to its scores.

    Attributes:
      shown: the lines on the console.
      compiled: number of programs that were compiled until each line was shown.
    """

    folder: pathlib.Path
    scores: dict[str, Any]
    shown: str
    compiled: dict[str, int]


class Counting(io.StringIO):
    """A console's file that notes how many programs were compiled when a line was written."""

    def __init__(self):
        super().__init__()
        self.heard, self.compiled = 0, {}

    def hear(self, name, seconds, **more):
        self.heard += "backend_compile" in name

    def write(self, text):
        self.compiled[text.split("  ")[0]] = self.heard
        return super().write(text)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    file = Counting()
    folder = tmp_path_factory.mktemp("runs") / "whole"
    jax.monitoring.register_event_duration_secs_listener(file.hear)
    config = tiny_config()
    config.evaluation.rerank = 2
    scores = train(config, folder, console=Console(file=file, width=200))
    jax.monitoring.clear_event_listeners()
    return Whole(folder, scores, file.getvalue(), file.compiled)


def test_a_run_leaves_its_scores_metrics_settings_and_checkpoint(whole):
    folder, scores = whole.folder, whole.scores
    assert json.loads((folder / "scores.json").read_text())["retrieval"] == scores["retrieval"]
    assert set(scores["retrieval"]) == {"both", "patches", "regions"}
    assert set(scores["retrieval"]["both"]) == set(LANGUAGES)
    assert {"text_dependence", "image_dependence", "proximity_relevance"} <= set(
        scores["dependence"]
    )
    assert [row["step"] for row in lines(folder) if "loss" in row] == [1, 2, 3, 4]
    assert set(scores["matching"]["both"]) == set(LANGUAGES)
    for group in ("retrieval", "matching"):
        in_log = lines(folder)[-1][f"{group}/both/en/IR@1"]
        assert in_log == scores[group]["both"]["en"]["IR@1"]
    assert json.loads((folder / "config.json").read_text())["steps"] == 4
    assert json.loads((folder / "records.json").read_text())["strict"].keys() == {
        *("de+en", "de+fr", "en+fr")
    }
    rate = schedule(prepare_run(tiny_config(), folder).config.optimizer, 4)
    for number, row in enumerate(lines(folder)):
        assert row["samples_seen"] == 16 * row["step"]
        assert row["learning_rate"] == pytest.approx(float(rate(number)))
        assert 0 <= time.time() - row["time"] < 86_400
    assert (folder / "tokenizer.json").exists()
    assert (folder / "checkpoints" / "4").is_dir()
    for part in ("step 4/4", "samples/s", "IR@10"):
        assert part in whole.shown


def test_the_step_compiles_once(whole):
    counts = [whole.compiled[f"step {number}/4"] for number in range(1, 5)]
    assert counts[0] > 0  # the listener hears of compilations
    assert len(set(counts)) == 1  # none between the first step and the last


def test_a_model_is_loaded_from_its_run_and_scores_as_when_it_ended(whole, tmp_path):
    model = load_model(whole.folder)
    assert model.system == "rc3"
    run = prepare_run(model.config, whole.folder)
    assert run.tokenizer.to_json() == model.tokenizer.to_json()
    beats = []
    scores = {name: of for name, of in whole.scores.items() if name != "texts"}
    assert Evaluator(run, lambda: beats.append(True)).scores(model.params) == scores
    assert len(beats) > 3
    with pytest.raises(ConfigError, match="step 7"):
        load_model(whole.folder, step=7)
    with pytest.raises(ConfigError, match=str(tmp_path)):
        load_model(tmp_path)


def test_a_folder_with_a_run_is_not_written_over(whole):
    with pytest.raises(ConfigError, match="--resume"):
        train(tiny_config(), whole.folder, console=quiet())


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
    assert all(np.isfinite(row["loss"]) for row in lines(tmp_path) if "loss" in row)
