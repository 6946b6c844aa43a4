"""Folders of tiny pre-trained models, and settings to fine-tune them with."""

from __future__ import annotations

import io
import pathlib

import jax
import ml_collections
import numpy as np
from rich.console import Console

from rc3_jax.config import save_config
from rc3_jax.downstream.config import finetune_config
from rc3_jax.training.checkpoint import load_some, save_params, stored_shapes
from rc3_jax.training.run import prepare_run
from rc3_jax.training.state import initial_params
from tests.tiny import tiny_cclm, tiny_config

CONFIGS = {"rc3": tiny_config, "cclm": tiny_cclm}


def write_pretrained(config: ml_collections.ConfigDict, folder: pathlib.Path) -> pathlib.Path:
    """The folder, with a model as a run of that configuration begins."""
    folder.mkdir(parents=True, exist_ok=True)
    run = prepare_run(config)
    save_params(folder, jax.jit(lambda: initial_params(run.model, run.config))())
    save_config(run.config, folder / "config.json")
    (folder / "tokenizer.json").write_text(run.tokenizer.to_json())
    return folder


def params_of(folder: pathlib.Path) -> dict[str, np.ndarray]:
    """All that a folder holds, by their paths."""
    return load_some(folder, list(stored_shapes(folder)))


def tuning(task: str, epochs: int = 12, **changes) -> ml_collections.ConfigDict:
    config = finetune_config(task)
    config.update(annotations="miniature", epochs=epochs, batch_size=8, dropout=0.0, threads=2)
    config.optimizer.lr = 3e-3
    config.update(changes)
    return config


def quiet() -> Console:
    return Console(file=io.StringIO(), width=100)
