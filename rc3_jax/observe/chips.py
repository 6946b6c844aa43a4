"""Figures of TPU chips."""

from __future__ import annotations

import re
from typing import NamedTuple

from rc3_jax.settings import ConfigError

GIB = 2**30


class Chip(NamedTuple):
    """One chip; JAX sees it as one device.

    Attributes:
      sides: dimensions of the torus that the chips form.
      hbm: bytes of main memory that programs can use, a little less than the maker states.
      flops: bfloat16 operations a second.
      bandwidth: bytes a second from and to main memory.
      interconnect: bytes a second that it can send to its neighbours over all links together, half
        of the bidirectional figure that the maker states.
    """

    sides: int
    hbm: float
    flops: float
    bandwidth: float
    interconnect: float


# Google Cloud's documentation, "System architecture" of cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}.
# It states the interconnect of v5e, v5p and v6e in both directions: 400, 1200 and 800 GB/s. That of
# v4 is from Jouppi et al., "TPU v4" (arXiv 2304.01433): six links of 50 GB/s. What programs can use
# of the memory (32, 16, 95 and 32 GB) is what libtpu 0.0.42 reports when it refuses larger ones.
CHIPS = {
    "v4": Chip(3, 30.75 * GIB, 275e12, 1200e9, 300e9),
    "v5e": Chip(2, 15.75 * GIB, 197e12, 819e9, 200e9),
    "v5p": Chip(3, 95.74 * GIB, 459e12, 2765e9, 600e9),
    "v6e": Chip(2, 31.25 * GIB, 918e12, 1638e9, 400e9),
}


def find_chip(topology: str) -> Chip:
    """The chip of a topology such as `v5e:16x16`.

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
    if not re.fullmatch("x".join([r"[1-9]\d*"] * chip.sides), form):
        example = {2: "16x16", 3: "8x8x8"}[chip.sides]
        raise ConfigError(
            f"--topology={topology}: {name} chips form a torus of {chip.sides} dimensions; name "
            f"the chips along each, such as {name}:{example}"
        )
    return chip
