"""A report in Markdown on a training step that was compiled ahead of time."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax

from rc3_jax.observe.chips import Chip
from rc3_jax.observe.collectives import Collective, collectives
from rc3_jax.parallel.mesh import rows_of_a_device
from rc3_jax.parallel.rules import bytes_on_device, path_name
from rc3_jax.settings import ConfigError
from rc3_jax.training.state import count_parameters

if TYPE_CHECKING:
    from rc3_jax.training.run import RunModel

UNKNOWN_TIMES = (
    '"x unknown": inside a loop whose number of iterations depends on the data (the rows that hard '
    "negatives are fetched from); bytes are those of one iteration."
)


class Work(NamedTuple):
    """Work of a step, counted from its jaxprs.

    Attributes:
      model: part of the model → FLOPs forward and in the whole step, see `model_flops`.
      flops: of the matrix products on one device, recomputation included.
      traffic: bytes of one device's main memory, without the state; see `memory_traffic`.
      quadratic: arrays of all pairs of rows, or of rows and words, see `quadratic_arrays`.
    """

    model: Mapping[str, tuple[float, float]]
    flops: float
    traffic: float
    quadratic: Sequence[str]


def aot_report(
    run: RunModel,
    rows: Mapping[str, int],
    compiled: jax.stages.Compiled,
    work: Work,
    chip: Chip | None,
) -> str:
    """Everything that is known of a step before it runs, in Markdown.

    Args:
      run: see `training.aot.abstract_run`.
      rows: rows of each kind in a global batch.
      chip: None for devices without a table of figures; leaves times out.

    Raises:
      ConfigError: where the compiler tells neither its program nor its memory.
    """
    memory, text = compiled.memory_analysis(), compiled.as_text()
    if memory is None or text is None:
        raise ConfigError("this kind of device does not say what a compiled step is made of")
    sent = collectives(text, run.mesh.size)
    sections = [
        _settings(run, rows),
        _memory(memory, chip),
        _flops(work, run.mesh.size),
        _collectives(sent),
        _pairs(work.quadratic),
    ]
    if chip:
        traffic = work.traffic + memory.argument_size_in_bytes + memory.output_size_in_bytes
        used = work.flops, traffic, sum(one.sent for one in sent)
        model = _total(work) / run.mesh.size
        sections.append(_times(chip, sum(rows.values()), model, used))
    return "\n\n".join("\n".join(lines) for lines in sections) + "\n"


def rules_table(run: RunModel) -> str:
    """Path, shape, partition and bytes on each device of every parameter of a run."""
    params = run.abstract_state.params
    lines = []
    total = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        held = bytes_on_device(leaf)
        total += held
        spec = "(" + ", ".join(map(str, leaf.sharding.spec)) + ")"
        lines.append((path_name(path), str(list(leaf.shape)), spec, f"{held:,}"))
    lines.append(("all", f"{count_parameters(params):,} numbers", "", f"{total:,}"))
    return "\n".join(_table(("parameter", "shape", "partition", "bytes a device"), lines))


def _settings(run: RunModel, rows: Mapping[str, int]) -> list[str]:
    config, mesh, pairs = run.config, run.mesh, run.config.objective.pairs
    settings = {
        "configuration": config.name,
        "devices": f"{mesh.size} x {mesh.devices.flat[0].device_kind}",
        "mesh": ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items()),
        "global batch": f"{sum(rows.values()):,} rows: {_rows(rows)}",
        "rows a device": _rows(rows_of_a_device(rows, mesh)),
        "microbatches": str(config.microbatches),
        "model.remat": config.model.remat,
        "model.dtype": config.model.dtype,
        "objective.pairs": f"{pairs.transport}, tile {pairs.tile}",
        "vocabulary": f"{run.model.text.vocab_size:,}",
        "parameters": f"{count_parameters(run.abstract_state.params):,}",
    }
    return ["## Step", "", *_table(("what", "value"), settings.items())]


def _memory(memory: Any, chip: Chip | None) -> list[str]:
    """What the step takes of one device, by the compiler's `memory_analysis`."""
    sizes = {
        "arguments": memory.argument_size_in_bytes,
        "outputs": memory.output_size_in_bytes,
        "outputs in place of arguments (donated)": -memory.alias_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "program": memory.generated_code_size_in_bytes,
    }
    total = sum(sizes.values())
    rows = [(name, _size(size)) for name, size in sizes.items()] + [("**peak**", _size(total))]
    if chip:
        fits = "fits" if total <= chip.hbm else "does not fit"
        rows.append(("memory of the chip", f"{_size(chip.hbm)}: {fits}"))
    return ["## Memory of one device", "", *_table(("what", "bytes"), rows)]


def _total(work: Work) -> float:
    """Model FLOPs of a step."""
    return sum(step for _, step in work.model.values())


def _flops(work: Work, devices: int) -> list[str]:
    total = _total(work)
    parts = {**work.model, "**all**": (sum(forward for forward, _ in work.model.values()), total)}
    rows = [
        (part, _operations(forward), _operations(step), f"{step / total:.1%}")
        for part, (forward, step) in sorted(parts.items(), key=lambda item: item[1][1])
        if step / total >= 0.0005
    ]
    return [
        "## Model FLOPs of a step",
        "",
        "Matrix products on all devices together, counted from the traced loss and its gradient;",
        "recomputation does not count.",
        "",
        *_table(("part", "forward", "step", "share"), rows),
        "",
        f"On one device these are {_operations(total / devices)}; with recomputation the step takes",
        f"{_operations(work.flops)}.",
    ]


def _collectives(found: Sequence[Collective]) -> list[str]:
    if not found:
        return ["## Collectives", "", "None."]
    rows = [
        (
            one.kind,
            str(one.group),
            f"{one.times}" if one.known else f"{one.times} x unknown",
            _size(one.bytes),
            _size(one.sent),
        )
        for one in found
    ]
    table = _table(("kind", "devices of a group", "times", "bytes", "sent by a device"), rows)
    notes = [] if all(one.known for one in found) else ["", UNKNOWN_TIMES]
    return ["## Collectives", "", *table, *notes]


def _pairs(quadratic: Sequence[str]) -> list[str]:
    if not quadratic:
        return ["## Pairs", "", "No array holds all pairs of rows, or all words for each row."]
    head = (
        "These arrays grow with rows x rows or rows x words, here for more rows than a batch has:"
    )
    return ["## Pairs", "", head, "", *(f"- `{array}`" for array in quadratic)]


def _times(chip: Chip, rows: int, model: float, used: tuple[float, float, float]) -> list[str]:
    """The least time of a step.

    Args:
      rows: of a global batch.
      model: model FLOPs a chip.
      used: FLOPs, and bytes of main memory and interconnect, of a chip.
    """
    speeds = chip.flops, chip.bandwidth, chip.interconnect
    compute, memory, links = (1e3 * n / speed for n, speed in zip(used, speeds, strict=True))
    table = [
        ("matrix products", _operations(used[0]), f"{chip.flops / 1e12:,.0f} TFLOP/s", compute),
        ("main memory", _size(used[1]), f"{chip.bandwidth / 1e9:,.0f} GB/s", memory),
        ("interconnect", _size(used[2]), f"{chip.interconnect / 1e9:,.0f} GB/s", links),
    ]
    binding, *_, least = max(table, key=lambda row: row[-1])
    serial, best = compute + memory + links, 1e3 * model / chip.flops
    return [
        "## Least time of a step",
        "",
        "Computed from the program and the maker's figures; nothing was run. Traffic with the main",
        "memory is the state, what layers read of it and keep for the backward pass, and arrays that",
        "exceed the memory on the chip.",
        "",
        *_table(
            ("what", "on one chip", "at most", "ms"), [(*r[:3], f"{r[3]:,.1f}") for r in table]
        ),
        "",
        f"A step takes at least {least:,.1f} ms ({binding} binds), {serial:,.1f} ms if nothing",
        f"overlaps. MFU is at most {best / least:.1%}, {best / serial:.1%} if nothing overlaps.",
        f"That is at most {1e3 * rows / least:,.0f} rows a second.",
    ]


def _rows(rows: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {kind}" for kind, count in rows.items())


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]


def _size(count: float) -> str:
    return _scaled(count, 1024, ("B", "KiB", "MiB", "GiB"))


def _operations(count: float) -> str:
    return _scaled(count, 1000, ("FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP"))


def _scaled(count: float, base: int, units: Sequence[str]) -> str:
    power = min(int(math.log(max(abs(count), 1), base)), len(units) - 1)
    return f"{count / base**power:,.2f} {units[power]}"
