"""The device mesh, and global arrays made from what each process read."""

from __future__ import annotations

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from rc3_jax.config import ConfigError

AXES = ("data", "fsdp")
BATCH = PartitionSpec(AXES)
"""Rows of a batch are spread over both axes; parameters over `fsdp` alone."""


def make_mesh(data: int = -1, fsdp: int = 1, devices: list[jax.Device] | None = None) -> Mesh:
    """A mesh of all devices with axes `data` and `fsdp`.

    Args:
      data: devices along `data`; -1 takes what `fsdp` leaves.
      fsdp: devices that share one copy of the parameters.
      devices: the devices to use; all of them by default.

    Raises:
      ConfigError: if the axes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    count = len(devices)
    if data == -1 and fsdp > 0 and count % fsdp == 0:
        data = count // fsdp
    if data * fsdp != count or data < 1:
        raise ConfigError(
            f"mesh.data={data} x mesh.fsdp={fsdp} does not give the {count} devices present; "
            "set mesh.data=-1 and mesh.fsdp to a divisor of the number of devices"
        )
    return jax.make_mesh((data, fsdp), AXES, axis_types=(AxisType.Auto,) * 2, devices=devices)


def check_batch(rows: dict[str, int], mesh: Mesh) -> None:
    """Raises ConfigError unless every kind's rows divide evenly among the devices."""
    uneven = {kind: count for kind, count in rows.items() if count % mesh.size}
    if uneven:
        raise ConfigError(
            f"the batch holds {rows} rows, which {mesh.size} devices cannot share evenly: "
            f"{', '.join(uneven)} must be a multiple of {mesh.size}; change batch_size or shares"
        )


def to_global(batch, mesh: Mesh):
    """Global arrays, rows sharded over the mesh, from each process's rows (a pytree)."""
    sharding = NamedSharding(mesh, BATCH)
    return jax.tree.map(
        lambda rows: jax.make_array_from_process_local_data(sharding, np.asarray(rows)), batch
    )
