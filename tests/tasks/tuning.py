"""Folders of tiny pre-trained models, and settings to fine-tune them with."""

from __future__ import annotations

import io
import pathlib

import ml_collections
import numpy as np
from rich.console import Console

from rc3_jax.tasks.config import finetune_config
from rc3_jax.training.checkpoint import read_params
from tests.tiny import tiny_cclm, tiny_config

CONFIGS = {"rc3": tiny_config, "cclm": tiny_cclm}


def params_of(folder: pathlib.Path) -> dict[str, np.ndarray]:
    """All that a folder holds, by their paths."""
    return read_params(folder)


def tuning(task: str, epochs: int = 12, **changes) -> ml_collections.ConfigDict:
    config = finetune_config(task)
    config.update(annotations="miniature", epochs=epochs, batch_size=8, dropout=0.0, threads=2)
    config.optimizer.lr = 3e-3
    config.update(changes)
    return config


def quiet() -> Console:
    return Console(file=io.StringIO(), width=100)
