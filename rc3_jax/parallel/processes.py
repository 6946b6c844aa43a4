"""Joining the processes of a run: TPU pods, SLURM, Open MPI, Kubernetes, or named by hand."""

from __future__ import annotations

import importlib.util
import os
import pathlib
from collections.abc import Mapping

import jax

from rc3_jax.settings import ConfigError


def join_processes(
    coordinator: str | None = None, count: int | None = None, number: int | None = None
) -> None:
    """Makes the devices of all processes one; call it before anything else touches JAX.

    What launched the processes is found out by `jax.distributed.initialize` from the environment.
    A process on its own does nothing.

    Args:
      coordinator: host:port of the first process, where the environment does not name it; then
        `count` processes are expected, of which this is `number`, from 0.

    Raises:
      ConfigError: if only some of the arguments are given.
    """
    given = (coordinator, count, number)
    if any(argument is not None for argument in given):
        if None in given:
            raise ConfigError("name --coordinator, --processes and --process together, or none")
        jax.distributed.initialize(coordinator, count, number)
    elif launched_together(os.environ) or _on_tpu():
        jax.distributed.initialize()


def launched_together(environment: Mapping[str, str]) -> bool:
    """Whether environment variables show that this is one of several processes."""
    step = "SLURM_STEP_NODELIST" in environment and int(environment.get("SLURM_NTASKS", 1)) > 1
    return (
        step
        or int(environment.get("OMPI_COMM_WORLD_SIZE", 1)) > 1
        or "JAX_COORDINATOR_ADDRESS" in environment
        or {"KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"} <= environment.keys()
        or "MEGASCALE_COORDINATOR_ADDRESS" in environment
        or "," in environment.get("TPU_WORKER_HOSTNAMES", "")
    )


def _on_tpu() -> bool:
    """Whether this machine is a TPU host; those of a pod learn of one another from its metadata."""
    chips = [*pathlib.Path("/dev").glob("accel*"), *pathlib.Path("/dev").glob("vfio/[0-9]*")]
    return bool(chips) and importlib.util.find_spec("libtpu") is not None
