"""What a training step, compiled ahead of time, needs of each chip: a report in Markdown."""

from __future__ import annotations

import collections
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import ml_collections
from jax.sharding import Mesh

from rc3_jax.observe import chips, pairs
from rc3_jax.observe.collectives import Collective, collectives, combined
from rc3_jax.observe.costs import matrix_flops, traffic
from rc3_jax.observe.flops import Part, step_flops
from rc3_jax.observe.flops_cclm import cclm_flops
from rc3_jax.observe.hlo import parse
from rc3_jax.observe.runs import Buffer, buffers
from rc3_jax.parallel.mesh import batch_devices
from rc3_jax.parallel.rules import path_name

SHOWN = 12
"""Arrays that the table of the largest shows."""

UNKNOWN_TIMES = (
    '"x unknown": inside a loop whose number of iterations depends on the data (the rows that hard '
    "negatives are fetched from); bytes are those of one iteration."
)


class Report(NamedTuple):
    """Attributes: text: Markdown; pairs: arrays that should not be, each with what it holds."""

    text: str
    pairs: list[tuple[Buffer, str]]


FLOPS = {"rc3": step_flops, "cclm": cclm_flops}


def compile_report(
    config: ml_collections.ConfigDict,
    mesh: Mesh,
    state: Any,
    rows: Mapping[str, int],
    vocab_size: int,
    compiled: Any,
    chip: chips.Chip | None,
) -> Report:
    """Everything that is known of a step before it runs.

    Args:
      state: the abstract training state, with shardings.
      rows: rows of each kind in a global batch.
      compiled: the step, as `jax.stages.Compiled`.
      chip: None for devices without a table of figures; leaves times out.
    """
    program = parse(compiled.as_text())
    stored = buffers(program)
    parts = FLOPS[config.system](config, rows, vocab_size)
    model = sum(part.step for part in parts.values())
    sent = collectives(program, mesh.shape)
    work = matrix_flops(program), traffic(program), sum(one.sent for one in sent)
    looked_for, notes = pairs.forbidden(config, rows, vocab_size, mesh)
    offenders = pairs.pair_buffers(stored, looked_for, _allowed(config, state, rows))
    sections = [
        _settings(config, mesh, state, rows, vocab_size),
        _memory(compiled.memory_analysis(), chip),
        _flops(parts, mesh.size, work[0], compiled.cost_analysis()),
        _collectives(combined(sent)),
        _times(chip, sum(rows.values()), model / mesh.size, *work) if chip else [],
        _largest(stored),
        _pairs(looked_for, notes, offenders),
    ]
    return Report("\n\n".join("\n".join(lines) for lines in sections if lines) + "\n", offenders)


def rules_table(state: Any) -> str:
    """Path, shape, partition and bytes on each device of every parameter of an abstract state."""
    lines = []
    total = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(state.params):
        held = math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        total += held
        spec = "(" + ", ".join(map(str, leaf.sharding.spec)) + ")"
        lines.append((path_name(path), str(list(leaf.shape)), spec, f"{held:,}"))
    lines.append(("all", f"{_count(state.params):,} numbers", "", f"{total:,}"))
    return "\n".join(_table(("parameter", "shape", "partition", "bytes a device"), lines))


def _count(params: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]


def _size(count: float) -> str:
    for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if abs(count) >= unit:
            return f"{count / unit:,.2f} {name}"
    return f"{count:.0f} B"


def _operations(count: float) -> str:
    for unit, name in ((1e15, "PFLOP"), (1e12, "TFLOP"), (1e9, "GFLOP")):
        if count >= unit:
            return f"{count / unit:,.2f} {name}"
    return f"{count / 1e6:,.2f} MFLOP"


def _settings(
    config: ml_collections.ConfigDict,
    mesh: Mesh,
    state: Any,
    rows: Mapping[str, int],
    vocab_size: int,
) -> list[str]:
    per_chip = {kind: count // batch_devices(mesh) for kind, count in rows.items()}
    device = mesh.devices.flat[0]
    settings = {
        "configuration": config.name,
        "devices": f"{mesh.size} x {device.device_kind}",
        "mesh": ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items()),
        "global batch": f"{sum(rows.values()):,} rows: "
        + ", ".join(f"{count:,} {kind}" for kind, count in rows.items()),
        "rows a device": ", ".join(f"{count} {kind}" for kind, count in per_chip.items()),
        "microbatches": str(config.microbatches),
        "model.remat": config.model.remat,
        "model.dtype": config.model.dtype,
        "objective.pairs": f"{config.objective.pairs.transport}, tile {config.objective.pairs.tile}",
        "vocabulary": f"{vocab_size:,}",
        "parameters": f"{_count(state.params):,}",
    }
    return ["## Step", "", *_table(("what", "value"), settings.items())]


def _memory(memory: Any, chip: chips.Chip | None) -> list[str]:
    needed = {
        "arguments": memory.argument_size_in_bytes,
        "outputs": memory.output_size_in_bytes,
        "of these in place of arguments (donated)": -memory.alias_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "program": memory.generated_code_size_in_bytes,
    }
    total = sum(needed.values())
    rows = [(name, ("-" if size < 0 else "") + _size(abs(size))) for name, size in needed.items()]
    rows.append(("**peak**", f"**{_size(total)}**"))
    if chip:
        fits = "fits" if total <= chip.hbm else "does not fit"
        rows.append(("memory of the chip", f"{_size(chip.hbm)}: {fits}"))
    return ["## Memory of one device", "", *_table(("what", "bytes"), rows)]


def _flops(
    parts: Mapping[str, Part], devices: int, program: float, cost: Mapping[str, float]
) -> list[str]:
    total = sum(part.step for part in parts.values())
    rows = [
        (
            name,
            _operations(part.forward),
            _operations(part.step),
            f"{part.step / total:.1%}",
        )
        for name, part in parts.items()
    ]
    forward = sum(part.forward for part in parts.values())
    rows.append(("**all**", _operations(forward), f"**{_operations(total)}**", ""))
    own = total / devices
    comparison = (
        f"On one device: {_operations(own)} by the formula; {_operations(program)} in the "
        f"matrix products of the compiled program ({program / own:.2f} times as many), loops counted "
        f"as often as they run; {_operations(cost.get('flops', 0.0))} by XLA's cost analysis, "
        "which counts the body of a loop once and elementwise operations too."
    )
    return [
        "## Model FLOPs of a step",
        "",
        "Matrix products of all devices together, by the formula of `rc3_jax/observe/flops.py`: the",
        "backward pass takes twice the forward's, and what is recomputed does not count.",
        "",
        *_table(("part", "forward", "step", "share"), rows),
        "",
        comparison,
    ]


def _collectives(found: Sequence[Collective]) -> list[str]:
    if not found:
        return ["## Collectives", "", "None."]
    rows = [
        (
            one.kind,
            " x ".join(one.axes) or "not told",
            str(one.group),
            f"{one.times}" if one.known else f"{one.times} x unknown",
            _size(one.bytes),
            _size(one.sent),
        )
        for one in found
    ]
    lines = [
        "## Collectives",
        "",
        *_table(("kind", "mesh axes", "group", "times", "bytes", "sent by a device"), rows),
    ]
    if not all(one.known for one in found):
        lines += ["", UNKNOWN_TIMES]
    return lines


def _times(
    chip: chips.Chip, batch: int, model: float, flops: float, touched: float, sent: float
) -> list[str]:
    line = chips.roofline(chip, model, flops, touched, sent)
    rows = [
        (
            "matrix products",
            _operations(flops),
            f"{_operations(chip.flops)}/s",
            line.compute,
        ),
        ("main memory", _size(touched), f"{chip.bandwidth / 1e9:,.0f} GB/s", line.memory),
        ("interconnect", _size(sent), f"{chip.interconnect / 1e9:,.0f} GB/s", line.interconnect),
    ]
    summary = (
        f"A step takes at least {1e3 * line.step:,.1f} ms ({line.binding} binds), "
        f"{1e3 * line.serial:,.1f} ms if nothing overlaps. MFU is at most {line.mfu:.1%}, "
        f"{line.mfu * line.step / line.serial:.1%} if nothing overlaps. That is at most "
        f"{batch / line.step:,.0f} rows a second."
    )
    return [
        "## Least time of a step",
        "",
        "Computed from the compiled program and the maker's figures; nothing was run.",
        "",
        *_table(
            ("what", "on one chip", "at most", "ms"),
            [(*row[:3], f"{1e3 * row[3]:,.1f}") for row in rows],
        ),
        "",
        summary,
    ]


def _largest(stored: Sequence[Buffer]) -> list[str]:
    groups = collections.defaultdict(list)
    for buffer in stored:
        groups[str(buffer.shape)].append(buffer)
    largest = sorted(groups.items(), key=lambda group: -group[1][0].shape.stored)[:SHOWN]
    rows = [
        (f"`{shape}`", _size(alike[0].shape.stored), str(len(alike)), _origin(alike))
        for shape, alike in largest
    ]
    return [
        "## Largest arrays of the program",
        "",
        "With the padding of their layouts. Not all live at the same time.",
        "",
        *_table(("shape", "bytes", "arrays", "first made by"), rows),
    ]


def _origin(alike: Sequence[Buffer]) -> str:
    """Where the first of some arrays comes from that tells it, by the last parts of its path."""
    buffer = next((buffer for buffer in alike if buffer.source), alike[0])
    path = re.sub(r"\W*'\W*", "/", buffer.source).strip("/").split("/")[-3:]
    return f"{buffer.opcode} `{'/'.join(path)}`".replace("|", "/")


def _allowed(
    config: ml_collections.ConfigDict, state: Any, rows: Mapping[str, int]
) -> list[tuple[int, ...]]:
    """Shapes that are there by right: of parameters, whole and in parts, of projected vectors, and
    of what each row brings along.
    """
    shapes = []
    for leaf in jax.tree.leaves(state):
        shapes += [leaf.shape, leaf.sharding.shard_shape(leaf.shape), leaf.shape[1:]]
    counts = [rows.get(kind, 0) for kind in ("strict", "weak", "parallel")]
    for count in (*counts, counts[0] + counts[1], counts[0] + counts[2]):
        shapes.append((count, config.model.projection_size))
    return shapes


def _pairs(
    looked_for: Sequence[pairs.Pairs], notes: Sequence[str], offenders: Sequence[tuple[Buffer, str]]
) -> list[str]:
    lines = ["## Pairs", ""]
    names = ", ".join(one.name for one in looked_for) or "nothing"
    if offenders:
        lines += [
            "These arrays have the sizes of something for all pairs, and should not be stored:",
            "",
        ]
        rows = [
            (f"`{buffer.shape}`", _size(buffer.shape.stored), what, _origin([buffer]))
            for buffer, what in offenders
        ]
        lines += _table(("shape", "bytes", "pairs", "made by"), rows)
    else:
        lines.append(
            f"No array holds all pairs, on one device or a part of them. Looked for: {names}."
        )
    if notes:
        lines += ["", f"Not looked for: {'; '.join(notes)}."]
    return lines
