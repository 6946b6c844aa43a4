"""State to disk and back, through Orbax.

A run's folder holds `checkpoints/<step>/state` and, beside it, `config.json` and
`tokenizer.json`. The stream of batches needs no file: its state is the step number. A folder of
converted weights holds `params` in place of checkpoints.
"""

from __future__ import annotations

import pathlib
import sys
from typing import Any, Self

from orbax.checkpoint import v1 as ocp

from rc3_jax.config import ConfigError
from rc3_jax.training.state import TrainState

PARAMS = "params"
"""Folder of parameters alone, within one that conversion made."""


class Checkpoints:
    """The checkpoints of one run.

    Args:
      folder: the run's folder.
      every: steps between two of them; 0 saves only at the end.
      keep: how many of the latest remain.
    """

    def __init__(self, folder: pathlib.Path, every: int, keep: int):
        training = ocp.training
        self._checkpointer = training.Checkpointer(
            (folder / "checkpoints").absolute(),
            save_decision_policy=training.save_decision_policies.FixedIntervalPolicy(
                every or sys.maxsize
            ),
            preservation_policy=training.preservation_policies.LatestN(keep),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_) -> None:
        self._checkpointer.close()

    @property
    def latest(self) -> int | None:
        """Step of the newest checkpoint."""
        found = self._checkpointer.latest
        return None if found is None else found.step

    def save(self, step: int, state: TrainState, force: bool = False) -> None:
        """Saves if the interval says so, or in any case with `force`."""
        if step != self.latest:
            self._checkpointer.save_checkpointables(step, {"state": state}, force=force)

    def restore(self, abstract: TrainState, step: int | None = None) -> TrainState:
        """The state of a step (the newest by default), laid out as `abstract` says."""
        return self._checkpointer.load_checkpointables(step, {"state": abstract})["state"]


def save_params(folder: pathlib.Path, params: Any) -> None:
    """Writes parameters alone, for `config.init` and conversion."""
    ocp.save((folder / PARAMS).absolute(), params)


def load_params(folder: pathlib.Path, abstract: Any) -> Any:
    """Parameters from a folder of converted weights, laid out as `abstract` says.

    Raises:
      ConfigError: if the folder holds none, or those of another model.
    """
    path = (folder / PARAMS).absolute()
    if not path.is_dir():
        raise ConfigError(
            f"{folder} holds no parameters; name a folder that launch/convert.py made"
        )
    try:
        return ocp.load(path, abstract)
    except ValueError as error:
        raise ConfigError(f"{path} does not fit the model: {error}") from error
