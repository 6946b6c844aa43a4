"""The settings of memory and speed that fit a chip, ranked by an estimate of the time of a step."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import jax

from rc3_jax.models.layers import REMAT_POLICIES
from rc3_jax.observe.chips import Chip
from rc3_jax.observe.counting import memory_traffic, peak_bytes, products
from rc3_jax.parallel.mesh import rows_of_a_device
from rc3_jax.parallel.rules import bytes_on_device
from rc3_jax.training.aot import Changes, changed_run, loss_jaxprs, state_bytes
from rc3_jax.training.memory import in_gib
from rc3_jax.training.run import RunModel


class Estimate(NamedTuple):
    """What a step with some settings takes, by estimate from its traced loss.

    Attributes:
      changes: the settings.
      memory: bytes of a device: state, gradients, and intermediate arrays.
      compute, traffic, links: seconds that matrix products, main memory and interconnect need.
    """

    changes: Changes
    memory: float
    compute: float
    traffic: float
    links: float

    @property
    def time(self) -> float:
        """Seconds of a step if nothing overlaps; what is ranked."""
        return self.compute + self.traffic + self.links


def estimates(
    run: RunModel, rows: Mapping[str, int], chip: Chip, say: Callable[[str], None]
) -> Iterator[Estimate]:
    """Every choice of `model.remat`, `microbatches` and `mesh.fsdp`, powers of two each.

    Args:
      rows: rows of each kind in a global batch.
      say: takes a line for each traced step.
    """
    local, tensor = rows_of_a_device(rows, run.mesh), run.mesh.shape["tensor"]
    spread = run.mesh.shape["data"] * run.mesh.shape["fsdp"]
    others = {} if run.config.mesh.data == -1 else {"mesh.data": -1}
    sharded = {
        n: changed_run(run, rows, {"mesh.fsdp": n, "microbatches": 1, **others})
        for n in _powers_of_two(spread)
    }
    choices = list(itertools.product(_powers_of_two(math.gcd(*local.values())), REMAT_POLICIES))
    for number, (parts, remat) in enumerate(choices, 1):
        changes = {"model.remat": remat, "microbatches": parts}
        traced = loss_jaxprs(run, local, changes)
        flops = sum(one.flops for jaxpr in traced for one in products(jaxpr)) / tensor
        moved = sum(memory_traffic(jaxpr, chip.on_chip) for jaxpr in traced) / tensor
        arrays = max(map(peak_bytes, traced)) / tensor
        say(
            f"{number}/{len(choices)}: microbatches={parts} model.remat={remat}: "
            f"{flops / 1e12:.2f} TFLOP, intermediate arrays {in_gib(arrays)}, traffic {in_gib(moved)}"
        )
        for fsdp, other in sharded.items():
            state = state_bytes(other)
            params = jax.tree.leaves(other.abstract_state.params)
            yield Estimate(
                changes | {"mesh.fsdp": fsdp, **others},
                state + sum(map(bytes_on_device, params)) + arrays,
                flops / chip.flops,
                (moved + 2 * state) / chip.bandwidth,
                sent_bytes(other, params, parts) / chip.interconnect,
            )


def search(
    run: RunModel, rows: Mapping[str, int], chip: Chip, say: Callable[[str], None]
) -> list[Estimate]:
    """The `estimates` that fit the chip, the fastest first."""
    fitting = (one for one in estimates(run, rows, chip, say) if one.memory <= chip.hbm)
    return sorted(fitting, key=lambda one: one.time)


def search_report(found: Sequence[Estimate], count: int) -> str:
    """The first of the settings that `search` found, in Markdown."""
    if not found:
        return "By estimate nothing fits. Take more devices, or a smaller batch_size."
    lines = [
        f"The best of {len(found)} settings that fit, by an estimate from the traced loss; nothing was",
        "compiled or run. Milliseconds of a step if all overlaps, and if nothing does. Traffic and what",
        "devices send are lower bounds.",
        "",
        "| settings | memory | products | main memory | interconnect | all overlaps | nothing does |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for one in found[:count]:
        times = (one.compute, one.traffic, one.links)
        shown = " | ".join(f"{1e3 * t:,.1f}" for t in (*times, max(times), one.time))
        lines.append(f"| `{flags_of(one)}` | {in_gib(one.memory)} | {shown} |")
    return "\n".join(lines)


def flags_of(one: Estimate) -> str:
    """The settings as flags of the command line."""
    return " ".join(f"--config.{name}={value}" for name, value in one.changes.items())


def sent_bytes(run: RunModel, params: Sequence[jax.ShapeDtypeStruct], parts: int) -> float:
    """Bytes that a device sends for gradients and for parameters that are sharded along `fsdp`.

    Gradients are summed over all rows. Sharded parameters are collected for the forward and the
    backward pass, and with micro-batches once more for each part.
    """
    mesh = run.mesh.shape
    copies, passes = mesh["replica"] * mesh["data"], 2 if parts == 1 else 3 * parts
    sent = 0.0
    for leaf in params:
        held = bytes_on_device(leaf)
        shards = mesh["fsdp"] if "fsdp" in leaf.sharding.spec else 1
        others = mesh["fsdp"] // shards * copies
        sent += 2 * held * (others - 1) / others + held * (shards - 1) * (1 + passes)
    return sent


def _powers_of_two(number: int) -> list[int]:
    """Those that divide a number."""
    return [2**n for n in range(number.bit_length()) if number % 2**n == 0]
