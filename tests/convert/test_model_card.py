"""The card of an exported model: what it tells of the run, its data and its scores."""

from __future__ import annotations

import json

import pytest

from rc3_jax.config import ConfigError
from rc3_jax.convert.model_card import model_card
from rc3_jax.convert.torch_export import to_torch
from rc3_jax.training.checkpoint import stored_step
from tests.convert.exported import tiny_folder


def test_the_card_tells_what_the_run_was(tmp_path):
    run = tmp_path / "run"
    tiny_folder(run)
    recalls = {"IR@1": 0.25, "TR@1": 0.5}
    scores = {"step": 4, "retrieval": {"both": {"de": recalls, "zh": recalls}}}
    (run / "scores.json").write_text(json.dumps(scores))
    to_torch(run, tmp_path / "out", licence="cc-by-4.0")
    card = (tmp_path / "out" / "README.md").read_text()
    for text in (
        'license: "cc-by-4.0"\n',
        '- "cs"\n- "de"\n- "en"\n- "fr"\n- "ja"\n- "zh"\n',
        "| de | 25.0 | 50.0 |",
        "4 steps of 16 rows, seed 0",
        "- **scenes** (scenes): parallel 64, seed 0, strict 64, strict_languages en de fr",
    ):
        assert text in card
    assert str(tmp_path) not in card
    (run / "scores.json").write_text("[")
    with pytest.raises(ConfigError, match="cannot be read as scores"):
        to_torch(run, tmp_path / "other")


def test_the_card_tells_of_the_checkpoint_that_was_exported(tmp_path):
    run = tmp_path / "run"
    tiny_folder(run)
    (run / "checkpoints" / "2").mkdir(parents=True)
    (run / "params").rename(run / "checkpoints" / "2" / "state_of_step")
    assert stored_step(run) == 2
    with pytest.raises(ConfigError, match="no checkpoint of step 3, but of 2"):
        stored_step(run, 3)
    stored = json.loads((run / "config.json").read_text())
    (run / "scores.json").write_text(json.dumps({"step": 4, "dependence": {"loss": 1.0}}))
    card = model_card(run, stored, count=1, dtype="float32", step=stored_step(run), licence=None)
    assert "2 steps of 16 rows" in card and "None were measured." in card
