"""What a model that fine-tuning starts from brings besides its parameters."""

from __future__ import annotations

import json

import numpy as np
import pytest

from rc3_jax.data.tokenizer import train_tokenizer
from rc3_jax.downstream.pretrained import load_pretrained
from rc3_jax.training.checkpoint import save_params
from tests.tiny import tiny_config

TEXTS = ["a red star", "two blue stars", "a dog runs"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"data": {"clean_captions": True, "max_words": 2}}, 2),  # of a run
        ({"data": {"clean_captions": False, "max_words": 2}}, None),
        ({"max_words": 2}, 2),  # converted, or fine-tuned before
        ({"max_words": None}, None),
        ({}, None),
    ],
)
def test_texts_are_cleaned_as_they_were_in_training(tmp_path, settings, words):
    model = json.loads(tiny_config().model.to_json())
    settings |= {"system": "rc3", "model": model}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    tokenizer = train_tokenizer(TEXTS, 30, 16)
    (tmp_path / "tokenizer.json").write_text(tokenizer.to_json())
    save_params(tmp_path, {"bias": np.zeros(2, np.float32)})
    found = load_pretrained(tmp_path, 16)
    assert found.max_words == words
    expected = "a red star" if words is None else "a red"
    raw = "a red star" if words is None else "A red, star!"
    np.testing.assert_array_equal(found.tokenizer.encode([raw]), tokenizer.encode([expected]))
