"""The card of an exported model: the run, its data and its scores."""

from __future__ import annotations

import json
import shutil

import pytest
from huggingface_hub import ModelCard

from rc3_jax.convert.model_card import model_card
from rc3_jax.settings import ConfigError

RECALLS = {"IR@1": 0.25, "TR@1": 0.5}


def card_of(run, step: int | None) -> str:
    stored = json.loads((run / "config.json").read_text())
    return model_card(run, stored, count=1234, dtype="float32", step=step, licence="cc-by-4.0")


def test_the_card_describes_the_run_and_the_exported_checkpoint(exported, tmp_path):
    run = shutil.copytree(exported.run, tmp_path / "run")
    scores = {"step": 4, "retrieval": {"both": {"de": RECALLS, "no": RECALLS}}}
    scores["matching"] = {"both": {"de": {"pairwise_accuracy": 0.75, **RECALLS}}}
    (run / "scores.json").write_text(json.dumps(scores | {"dependence": {"loss": 1.0}}))
    card = ModelCard(card_of(run, 4))
    assert card.data.license == "cc-by-4.0" and card.data.library_name == "transformers"
    assert card.data.language == ["cs", "de", "en", "fr", "ja", "no", "zh"]
    for text in (
        "| parameters | 1,234 |",
        "| de | 25.0 | 50.0 |",
        "| language | pairwise_accuracy | IR@1 | TR@1 |",
        "| de | 75.0 | 25.0 | 50.0 |",
        "- loss: 1.000",
        "4 steps of 16 rows, seed 0",
        "- **scenes** (scenes): ",
        "strict_languages en de fr",
    ):
        assert text in card.text
    assert str(tmp_path) not in card.content
    other = card_of(run, 2)
    assert "2 steps of 16 rows" in other and "25.0" not in other
    (run / "scores.json").write_text("[")
    with pytest.raises(ConfigError, match="scores.json"):
        card_of(run, 4)
