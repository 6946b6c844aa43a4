"""A tiny model of random parameters in the folder of a run, for the tests of conversion."""

from __future__ import annotations

import json
import pathlib

import jax
import numpy as np

from rc3_jax.data.tokenizer import train_tokenizer
from rc3_jax.systems import abstract_params
from rc3_jax.training.checkpoint import save_params
from tests.tiny import tiny_config

TEXTS = ("A dog runs over grass.", "Ein Hund rennt über die Wiese.", "狗在草地上跑。", "犬が走る。")


def tiny_folder(folder: pathlib.Path, seed: int = 0, **model):
    """Writes parameters, settings and vocabulary; returns the parameters."""
    config = tiny_config()
    config.model.update(model)
    tokenizer = train_tokenizer(TEXTS, 60, config.data.max_length)
    rng = np.random.default_rng(seed)
    params = jax.tree.map(
        lambda leaf: rng.normal(0.0, 0.2, leaf.shape).astype(np.float32),
        abstract_params("rc3", config.model, tokenizer.vocab_size),
    )
    for name in ("image_text", "text_text", "fused"):
        params[f"temperature_{name}"] = np.array(0.1, np.float32)
    folder.mkdir(parents=True)
    save_params(folder, params)
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    (folder / "tokenizer.json").write_text(tokenizer.to_json())
    return params
