"""Folders of tiny pre-trained models, and settings to fine-tune them with."""

from __future__ import annotations

import ml_collections

from rc3_jax.tasks.config import finetune_config
from tests.tiny import tiny_cclm, tiny_config

CONFIGS = {"rc3": tiny_config, "cclm": tiny_cclm}


def tuning(task: str, epochs: int = 12, **changes) -> ml_collections.ConfigDict:
    config = finetune_config(task)
    config.update(annotations="miniature", epochs=epochs, batch_size=8, dropout=0.0, threads=2)
    config.optimizer.lr = 3e-3
    config.update(changes)
    return config
