from __future__ import annotations

import json

import jax
import numpy as np
import pytest
from ml_collections import FrozenConfigDict
from rich.console import Console

from rc3_jax.config import ConfigError
from rc3_jax.evaluation.evaluate import Evaluator
from rc3_jax.training.loop import train
from rc3_jax.training.run import load_run, prepare_run, with_defaults
from rc3_jax.training.start import check_init
from tests.tiny import tiny_cclm, tiny_config


@pytest.mark.slow
def test_a_run_from_its_folder_scores_as_when_it_ended(tmp_path):
    config = tiny_config()
    config.objective.weights = {name: float(name == "itc") for name in config.objective.weights}
    scores = train(config, tmp_path, console=Console(quiet=True))

    run, params = load_run(tmp_path)
    assert run.config.to_dict() == FrozenConfigDict(config).to_dict()
    beats = []
    assert Evaluator(run, lambda: beats.append(True)).scores(params) == scores
    # At the start, after each language's texts and each mode's images, before the dependence.
    assert len(beats) == 1 + 6 + 3 + 1

    config.evaluation.images = 3
    other, same_params = load_run(tmp_path, config)
    assert len(other.corpus.heldout) == 3
    jax.tree.map(np.testing.assert_array_equal, params, same_params)


def test_a_folder_without_checkpoints_is_named(tmp_path):
    with pytest.raises(ConfigError, match="holds no run"):
        load_run(tmp_path)
    assert not list(tmp_path.iterdir())
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(ConfigError, match="holds no checkpoint yet"):
        load_run(tmp_path, tiny_config())


def test_a_stored_run_gets_the_settings_that_came_later():
    stored = json.loads(json.dumps(tiny_config().to_dict()))
    for removed in ("system", "init"):
        del stored[removed]
    del stored["model"]["patch"]["type"], stored["data"]["clean_captions"]
    stored["shares"] = {"strict": 1.0, "weak": 0.0, "parallel": 2.0}
    filled = with_defaults(stored)
    assert (filled["system"], filled["init"]) == ("rc3", None)
    assert filled["model"]["patch"]["type"] == "vit"
    assert filled["data"]["clean_captions"] is False
    assert filled["shares"] == {**stored["shares"], "captioned": 0.0, "region": 0.0}
    assert filled["data"]["sources"] == stored["data"]["sources"]
    assert filled["model"]["text"] == stored["model"]["text"]


@pytest.mark.parametrize(
    ("setting", "value"), [("text.heads", 4), ("text.position_offset", 0), ("patch.window", 4)]
)
def test_weights_of_a_model_that_computes_otherwise_are_refused(tmp_path, setting, value):
    config = tiny_cclm()
    config.init = str(tmp_path)
    check_init(config)  # a folder without settings tells nothing
    model = json.loads(json.dumps(config.model.to_dict()))
    (tmp_path / "config.json").write_text(json.dumps({"model": model}))
    check_init(config)
    config.model.update(dropout=0.3, dtype="bfloat16")  # free to change
    check_init(config)
    part, name = setting.split(".")
    model[part][name] = value
    (tmp_path / "config.json").write_text(json.dumps({"model": model}))
    with pytest.raises(ConfigError, match=rf"holds another model: model.{setting} is"):
        check_init(config)


@pytest.mark.parametrize(
    ("config", "setting", "own"),
    [
        (tiny_config, "text.epsilon", 1e-5),
        (tiny_config, "patch.epsilon", 1e-12),
        (tiny_config, "patch.activation", "gelu"),
        (tiny_cclm, "text.epsilon", 1e-5),
        (tiny_cclm, "patch.epsilon", 1e-5),  # Swin
    ],
)
def test_what_a_tower_computes_with_unset_is_its_own(tmp_path, config, setting, own):
    config = config()
    config.init = str(tmp_path)
    part, name = setting.split(".")

    def check(ours, theirs):
        config.model[part][name] = ours
        model = json.loads(json.dumps(config.model.to_dict()))
        model[part][name] = theirs
        (tmp_path / "config.json").write_text(json.dumps({"model": model}))
        check_init(config)

    check(None, own)
    check(own, None)
    other = "gelu_tanh" if isinstance(own, str) else 1e-3
    with pytest.raises(ConfigError, match=f"model.{setting} is {own}, there {other}"):
        check(None, other)


@pytest.mark.parametrize(
    ("config", "settings", "message"),
    [
        (tiny_config, {"shares.captioned": 1.0}, "rc3 has no use for captioned rows"),
        (tiny_config, {"data.parallel_max_length": 8}, "the texts of RC³ have one length"),
        (tiny_config, {"model.patch.type": "swin"}, "needs the settings depths, window"),
        (tiny_config, {"system": "cclm"}, "these are another system's"),
        (tiny_cclm, {"system": "rc3"}, "these are another system's"),
        (tiny_cclm, {"data.regions.grid": 3}, "the visual tower has 4 x 4"),
        (tiny_cclm, {"evaluation.dependence_rows": 8}, "CCLM has no fused vector"),
        (tiny_cclm, {"objective.negatives": "near"}, "use one of global, local"),
    ],
)
def test_settings_that_contradict_one_another_are_an_error(config, settings, message):
    config = config()
    with config.unlocked():
        config.update_from_flattened_dict(settings)
    with pytest.raises(ConfigError, match=message):
        prepare_run(config)
