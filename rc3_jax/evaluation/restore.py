"""A run's parts and its trained parameters, from its folder."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import ml_collections

from rc3_jax.config import ConfigError
from rc3_jax.training.checkpoint import Checkpoints
from rc3_jax.training.loop import Run, prepare_run
from rc3_jax.training.state import abstract_state


def load_run(
    folder: pathlib.Path, config: ml_collections.ConfigDict | None = None
) -> tuple[Run, Any]:
    """Reads the newest checkpoint that `training.loop.train` left in a folder.

    Args:
      config: settings in place of the stored ones, for data that lie elsewhere now or for other
        devices; the model and the optimizer must be those of the run.

    Returns:
      The run with its data opened and its tokenizer read, and the parameters (a pytree),
      sharded over the run's mesh.

    Raises:
      ConfigError: if the folder holds no checkpoint.
      DataError, ValueError: as `prepare_run`; also if the checkpoint does not fit `config`.
    """
    if not (folder / "checkpoints").is_dir():
        raise ConfigError(f"{folder} holds no run; name the --workdir of one that has saved")
    if config is None:
        stored = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        config = ml_collections.FrozenConfigDict(stored)
    with Checkpoints(folder, config.checkpoint.every, config.checkpoint.keep) as checkpoints:
        if checkpoints.latest is None:
            raise ConfigError(
                f"{folder} holds no checkpoint yet; it saves its first after "
                f"checkpoint.every={config.checkpoint.every} steps"
            )
        run = prepare_run(config, folder)
        state = checkpoints.restore(abstract_state(run.model, run.optimizer, run.config, run.mesh))
    return run, state.params
