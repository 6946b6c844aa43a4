"""A tiny pre-trained model, and programs of launch/ in processes of their own."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

from tests.processes import FAST_COMPILATION, ROOT, free_port
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


def launched(program: str, *arguments: str, devices: int = 1) -> subprocess.Popen:
    """A process of a program in launch/, its output in a pipe."""
    environment = os.environ | {
        "XLA_FLAGS": f"{FAST_COMPILATION} --xla_force_host_platform_device_count={devices}",
        "JAX_PLATFORMS": "cpu",
        "NPROC": "32",
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
    }
    command = [sys.executable, str(ROOT / "launch" / program), *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, stdout=pipe, stderr=subprocess.STDOUT, env=environment, text=True
    )


def in_cluster(count: int) -> list[tuple[str, ...]]:
    """The flags of each of so many processes that work together."""
    common = f"--coordinator=localhost:{free_port()}", f"--processes={count}"
    return [(*common, f"--process={number}") for number in range(count)]


def ended(*processes: subprocess.Popen) -> list[str]:
    """What processes printed that must end well."""
    outputs = [process.communicate(timeout=600)[0] for process in processes]
    assert all(process.returncode == 0 for process in processes), outputs
    return outputs
