"""Figures of accelerators."""

from __future__ import annotations

import re
from typing import NamedTuple

from rc3_jax.settings import ConfigError

MIB, GIB = 2**20, 2**30


class Chip(NamedTuple):
    """One chip; JAX sees it as one device.

    Attributes:
      kind: its `device_kind`.
      sides: dimensions of the torus that the chips form; 0 for the GPUs of a host.
      hbm: bytes of main memory that programs can use: on TPUs a little less than the maker states, on
        GPUs the 75 % that JAX takes unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise.
      flops: bfloat16 operations a second, without sparsity.
      bandwidth: bytes a second from and to main memory.
      interconnect: bytes a second that it can send to its neighbours over all links together, half
        of the bidirectional figure that the maker states.
      on_chip: bytes of the memory that programs keep arrays in between operations: VMEM of TPUs,
        second-level cache of GPUs.
    """

    kind: str
    sides: int
    hbm: float
    flops: float
    bandwidth: float
    interconnect: float
    on_chip: float


# Google Cloud's documentation, "System architecture" of cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}.
# It states the interconnect of v5e, v5p and v6e in both directions: 400, 1200 and 800 GB/s. That of
# v4 is from Jouppi et al., "TPU v4" (arXiv 2304.01433): six links of 50 GB/s. What programs can use
# of the memory (32, 16, 95 and 32 GB) is what libtpu 0.0.42 reports when it refuses larger ones. VMEM:
# jax.experimental.pallas.tpu.get_tpu_info. GPUs: NVIDIA's data sheets of the SXM modules, NVLink's
# 600 and 900 GB/s in both directions.
CHIPS = {
    "v4": Chip("TPU v4", 3, 30.75 * GIB, 275e12, 1200e9, 300e9, 32 * MIB),
    "v5e": Chip("TPU v5 lite", 2, 15.75 * GIB, 197e12, 819e9, 200e9, 128 * MIB),
    "v5p": Chip("TPU v5", 3, 95.74 * GIB, 459e12, 2765e9, 600e9, 128 * MIB),
    "v6e": Chip("TPU v6 lite", 2, 31.25 * GIB, 918e12, 1638e9, 400e9, 128 * MIB),
    "a100": Chip("NVIDIA A100-SXM4-80GB", 0, 59 * GIB, 312e12, 2039e9, 300e9, 40 * MIB),
    "h100": Chip("NVIDIA H100 80GB HBM3", 0, 59 * GIB, 989e12, 3350e9, 450e9, 50 * MIB),
    "h200": Chip("NVIDIA H200", 0, 104 * GIB, 989e12, 4800e9, 450e9, 50 * MIB),
}


def chip_of(device_kind: str) -> Chip | None:
    """The chip of a device, by `jax.Device.device_kind`; None for one that the table lacks."""
    return next((chip for chip in CHIPS.values() if chip.kind == device_kind), None)


def gpus(topology: str | None) -> int:
    """The number of GPUs that a topology such as `h100:8` names; 0 for TPUs.

    Raises:
      ConfigError: see `find_chip`.
    """
    if topology is None or find_chip(topology).sides:
        return 0
    return int(topology.partition(":")[2])


def find_chip(topology: str) -> Chip:
    """The chip of a topology such as `v5e:16x16` or `h100:8`.

    Raises:
      ConfigError: for a chip that the table lacks, or a form that it is not built in.
    """
    name, _, form = topology.partition(":")
    if name not in CHIPS:
        raise ConfigError(
            f"--topology={topology}: chip {name!r} is unknown; use one of {', '.join(CHIPS)}, "
            "such as v5e:16x16"
        )
    chip = CHIPS[name]
    if not chip.sides and form not in ("1", "2", "4", "8"):
        raise ConfigError(f"--topology={topology}: name the GPUs of one host, such as {name}:8")
    if chip.sides and not re.fullmatch("x".join([r"[1-9]\d*"] * chip.sides), form):
        example = {2: "16x16", 3: "8x8x8"}[chip.sides]
        raise ConfigError(
            f"--topology={topology}: {name} chips form a torus of {chip.sides} dimensions; name "
            f"the chips along each, such as {name}:{example}"
        )
    return chip
