"""The device mesh, and global arrays made from what each process read."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping

import jax
import ml_collections
import numpy as np
import pydantic
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Int

from rc3_jax.settings import ConfigError, Settings

AXES = ("replica", "data", "fsdp", "tensor")
BATCH_AXES = ("replica", "data", "fsdp")
BATCH = PartitionSpec(BATCH_AXES)
"""Rows of a batch are spread over all axes but `tensor`, which shares the work on each row."""


class MeshSettings(Settings):
    """The devices along each axis of the mesh, and how parameters are sharded over the axes."""

    replica: pydantic.PositiveInt = 1
    """Devices along the axis that crosses slices or hosts."""
    data: int = pydantic.Field(-1, ge=-1)
    """Devices along the data axis; -1: all that the others leave."""
    fsdp: pydantic.PositiveInt = 1
    """Devices that share one copy of the parameters."""
    tensor: pydantic.PositiveInt = 1
    """Devices that share the work on each row."""
    fsdp_threshold: pydantic.NonNegativeInt = 2**20
    """Elements; smaller arrays stay whole along `fsdp`."""
    rules: tuple[tuple[str, tuple[str | None, ...]], ...] = (
        (r"(self|cross)_attention/(query|key|value)/(kernel|bias)", ("tensor",)),
        (r"(self|cross)_attention/out/kernel", ("tensor", None)),
        (r"mlp_in/(kernel|bias)", ("tensor",)),
        (r"mlp_out/kernel", ("tensor", None)),
        (r"word_embedding/embedding|decoder", ("tensor", None)),
    )
    """Pairs of a path pattern and the mesh axes of the last dimensions; the first match counts."""


def make_mesh(config: ml_collections.ConfigDict, devices: list[jax.Device] | None = None) -> Mesh:
    """The mesh that `config.mesh` describes.

    Args:
      config: devices along each axis: `replica`, across slices or hosts that slow links join;
        `data`, -1 for what the others leave; `fsdp`, which share one copy of the parameters;
        `tensor`, which share the work on each row.
      devices: the devices to use; all of them by default.

    Raises:
      ConfigError: if the axes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = {axis: getattr(config, axis) for axis in AXES}
    others = math.prod(size for axis, size in sizes.items() if axis != "data")
    if sizes["data"] == -1 and others > 0:
        sizes["data"] = len(devices) // others
    if math.prod(sizes.values()) != len(devices) or min(sizes.values()) < 1:
        given = " x ".join(f"mesh.{axis}={getattr(config, axis)}" for axis in AXES)
        raise ConfigError(
            f"{given} does not give the {len(devices)} devices present; set mesh.data=-1 and the "
            "others so that their product divides this number"
        )
    local = len(devices) // len({device.process_index for device in devices})
    if local % sizes["tensor"]:
        raise ConfigError(
            f"mesh.tensor={sizes['tensor']} must divide the {local} devices of a process, which "
            "reads rows of its own"
        )
    shape = tuple(sizes.values())
    slices = {getattr(d, "slice_index", 0) for d in devices if d.platform == "tpu"}
    if len(slices) > 1:
        if shape[0] % len(slices):
            raise ConfigError(
                f"mesh.replica={shape[0]} must be a multiple of the {len(slices)} slices present"
            )
        within, across = (shape[0] // len(slices), *shape[1:]), (len(slices), 1, 1, 1)
        grid = mesh_utils.create_hybrid_device_mesh(
            within, across, devices, allow_split_physical_axes=True
        )
    else:
        grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


@functools.cache
def one_device_mesh() -> Mesh:
    """The mesh of the first device alone."""
    types = (AxisType.Auto,) * len(AXES)
    return jax.make_mesh((1,) * len(AXES), AXES, axis_types=types, devices=jax.devices()[:1])


def batch_devices(mesh: Mesh) -> int:
    """Devices that the rows of a batch are spread over."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def rows_of_a_device(rows: Mapping[str, int], mesh: Mesh) -> dict[str, int]:
    """The rows of each kind that a device holds, of the rows of a global batch."""
    return {kind: count // batch_devices(mesh) for kind, count in rows.items()}


def check_batch(rows: Mapping[str, int], mesh: Mesh, microbatches: int = 1) -> None:
    """Raises ConfigError unless every kind's rows divide evenly among devices, and on each among
    its micro-batches.
    """
    parts = batch_devices(mesh) * microbatches
    uneven = {kind: count for kind, count in rows.items() if count % parts}
    if uneven:
        raise ConfigError(
            f"the batch holds {rows} rows, which {batch_devices(mesh)} devices with "
            f"microbatches={microbatches} cannot share evenly: {', '.join(uneven)} must be a "
            f"multiple of {parts}; change batch_size, batch_mix or microbatches"
        )


def to_global(batch, mesh: Mesh):
    """Global arrays, rows sharded over the mesh, from each process's rows (a pytree)."""
    sharding = NamedSharding(mesh, BATCH)

    def spread(rows):
        shape = (len(rows) * jax.process_count(), *rows.shape[1:])
        return jax.make_array_from_process_local_data(sharding, rows, shape)

    return jax.tree.map(lambda rows: spread(np.asarray(rows)), batch)


def from_host(arrays, mesh: Mesh):
    """Global arrays, rows sharded over the mesh, where every process holds all rows (a pytree)."""
    sharding = NamedSharding(mesh, BATCH)
    return jax.tree.map(
        lambda x: jax.make_array_from_callback(x.shape, sharding, lambda part: x[part]), arrays
    )


def from_rows(
    produce: Callable[[Int[np.ndarray, " chosen"]], Mapping[str, np.ndarray]],
    rows: Int[np.ndarray, " batch"],
    mesh: Mesh,
) -> dict[str, jax.Array]:
    """Global arrays, rows sharded over the mesh, of which each process makes its own.

    Args:
      produce: numbers of rows to their fields; called once, for those of all local devices.
      rows: the number of each row of the batch, the same in every process.
    """
    sharding = NamedSharding(mesh, BATCH)
    places = {
        device: np.arange(len(rows))[part]
        for device, part in sharding.addressable_devices_indices_map(rows.shape).items()
    }
    own = np.unique(np.concatenate(list(places.values())))

    def spread(values: np.ndarray) -> jax.Array:
        shards = [
            jax.device_put(values[np.searchsorted(own, at)], device)
            for device, at in places.items()
        ]
        shape = (len(rows), *values.shape[1:])
        return jax.make_array_from_single_device_arrays(shape, sharding, shards)

    return {name: spread(values) for name, values in produce(rows[own]).items()}


def constrain(x: jax.Array, mesh: Mesh | None, *spec) -> jax.Array:
    """`x` laid out as `PartitionSpec(*spec)` says; as it is where there is no mesh."""
    if mesh is None or mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(*spec)))
