"""A tiny pre-trained model, and its fine-tuning in processes of their own."""

from __future__ import annotations

import pathlib

from tests.processes import ROOT, launched
from tests.tiny import tiny_config, write_pretrained

SETTINGS = {
    "generated.train": 32,
    "generated.dev": 8,
    "generated.test": 8,
    "batch_size": 8,
    "epochs": 4,
    "threads": 2,
    "max_length": 24,
    "save_minutes": 0.0,
    "optimizer.lr": 3e-3,
}


def pretrain(folder: pathlib.Path, config=None) -> pathlib.Path:
    """The folder, with a tiny model; see `write_pretrained`."""
    return write_pretrained(tiny_config() if config is None else config, folder)


def start(task: str, source, folder, *arguments: str, devices: int = 1, **changes):
    """A process that fine-tunes, its output in a pipe."""
    return launched(
        "finetune.py",
        f"--config={ROOT / 'configs' / 'downstream' / f'{task}.py'}",
        f"--from={source}",
        f"--workdir={folder}",
        *(f"--config.{name}={value}" for name, value in (SETTINGS | changes).items()),
        *arguments,
        devices=devices,
    )
