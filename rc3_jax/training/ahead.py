"""The training step, compiled for devices that need not be there; no data is read."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import ml_collections
from jax.experimental import topologies

from rc3_jax.config import ConfigError
from rc3_jax.data.example import abstract_batch
from rc3_jax.data.record import Skips
from rc3_jax.data.stream import KINDS, batch_rows
from rc3_jax.observe.chips import find_chip
from rc3_jax.parallel.mesh import check_batch, make_mesh
from rc3_jax.training.memory import explain_out_of_memory
from rc3_jax.training.run import Run, model_and_optimizer
from rc3_jax.training.state import TrainState
from rc3_jax.training.step import make_step


def topology_devices(name: str) -> list[jax.Device]:
    """The TPUs of a topology such as `v5e:16x16`, to compile for; none need be present.

    Raises:
      ConfigError: for an unknown chip or topology, or where the package libtpu is missing.
    """
    find_chip(name)
    if importlib.util.find_spec("libtpu") is None:
        raise ConfigError(
            f"--topology={name} needs the package libtpu, which is not installed; make an "
            "environment with: pip install -r requirements.txt -e '.[tpu]'"
        )
    # The two cores of a v4 chip can be two devices or one; later chips leave no choice.
    cores = {"chip_config_name": "megacore"} if name.startswith("v4:") else {}
    try:
        return list(topologies.get_topology_desc(name, platform="tpu", **cores).devices)
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(f"--topology={name}: libtpu refuses it: {reason}") from error


def abstract_run(
    config: ml_collections.ConfigDict,
    devices: Sequence[jax.Device],
    rows: Mapping[str, int],
    vocab_size: int,
) -> Run:
    """A run with model, optimizer and mesh, but without data and tokenizer.

    Raises:
      ConfigError: for settings that cannot be, such as a batch that the devices cannot share.
    """
    config = ml_collections.FrozenConfigDict(config)
    mesh = make_mesh(config.mesh, list(devices))
    check_batch(rows, mesh, config.microbatches)
    model, optimizer = model_and_optimizer(config, vocab_size, mesh, rows)
    skips = Skips(config.data.skip_limit)
    return Run(config, mesh, None, None, model, optimizer, skips)


def rows_of_kinds(config: ml_collections.ConfigDict, kinds: Sequence[str]) -> dict[str, int]:
    """Rows of each kind in a global batch whose data offer these kinds.

    Raises:
      ConfigError: for an unknown kind; DataError: as `batch_rows`.
    """
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown:
        raise ConfigError(f"kinds of rows: {', '.join(unknown)} unknown; use {', '.join(KINDS)}")
    return batch_rows(config.batch_size, config.shares, kinds)


def compile_ahead(run: Run, state: TrainState, rows: Mapping[str, int]) -> Any:
    """The compiled step (`jax.stages.Compiled`).

    Args:
      state: abstract, see `Run.abstract_state`.

    Raises:
      OutOfMemory: if the compiler knows the devices' memory, and the step needs more.
    """
    step = make_step(run, state)
    with explain_out_of_memory(run):
        return step.lower(state, abstract_batch(run.config, rows)).compile()
