"""What the devices of a compiled program send to one another, from its text."""

from __future__ import annotations

import collections
import math
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from rc3_jax.observe.hlo import Instruction, Program
from rc3_jax.observe.runs import executions

KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
    "ragged-all-to-all",
)

_IOTA = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_MESH = re.compile(
    r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? \{([^}]*)\}"
)
_LISTED = re.compile(r"(?:replica_groups|source_target_pairs)=\{(\{[\d,{}]*\})\}")


class Collective(NamedTuple):
    """One collective instruction, or several alike (`combined`).

    Attributes:
      group: devices that take part together.
      axes: the mesh axes that they differ along; empty if the text does not tell.
      times: executions in a step, and `known` as in `runs.Runs`.
      bytes: of the whole array on each device, all executions: the gathered one, or the one that
        is reduced, exchanged or passed on.
      sent: bytes that each device must send at least, all executions.
    """

    kind: str
    group: int
    axes: tuple[str, ...]
    times: int
    known: bool
    bytes: int
    sent: float


def collectives(program: Program, mesh: Mapping[str, int]) -> list[Collective]:
    """The collectives of a step, in the order of the text.

    Args:
      mesh: axis → size; devices are numbered along the last axis first.
    """
    found = []
    for name, runs in executions(program).items():
        if _continues(program, name):
            continue
        for instruction in program.computations[name].values():
            kind = instruction.opcode.removesuffix("-start")
            if kind not in KINDS:
                continue
            if name.startswith("all-reduce-scatter"):  # TPUs fuse the sum with taking a share
                kind = "reduce-scatter"
            given = sum(shape.bytes for shape in program.operand_shapes(name, instruction))
            group, axes = _group(instruction, mesh)
            if group == 1:
                continue  # nothing moves
            whole = given * group if kind == "all-gather" else given
            found.append(
                Collective(
                    kind,
                    group,
                    axes,
                    runs.times,
                    runs.known,
                    whole * runs.times,
                    _sent(kind, whole, group) * runs.times,
                )
            )
    return found


def _continues(program: Program, computation: str) -> bool:
    """Whether a computation only goes on with a collective that another one began.

    TPU programs let a collective run along several fusions; each repeats it.
    """
    return computation.startswith("async_collective_fusion") or any(
        "AsyncCollectiveDone" in instruction.attributes
        for instruction in program.computations[computation].values()
    )


def combined(found: Iterable[Collective]) -> list[Collective]:
    """One entry for each kind, axes, group size and `known`; the largest sender first."""
    sums: dict[tuple, list] = collections.defaultdict(lambda: [0, 0, 0.0])
    for one in found:
        entry = sums[one.kind, one.group, one.axes, one.known]
        for i, value in enumerate((one.times, one.bytes, one.sent)):
            entry[i] += value
    entries = [
        Collective(kind, group, axes, times, known, nbytes, sent)
        for (kind, group, axes, known), (times, nbytes, sent) in sums.items()
    ]
    return sorted(entries, key=lambda entry: -entry.sent)


def _sent(kind: str, whole: int, group: int) -> float:
    """Bytes that the best algorithm sends from each of the group's devices."""
    others = (group - 1) / group if group > 1 else 0.0
    return {
        "all-reduce": 2 * others * whole,
        "collective-permute": float(whole),
        "collective-broadcast": float(whole),
    }.get(kind, others * whole)


def _group(instruction: Instruction, mesh: Mapping[str, int]) -> tuple[int, tuple[str, ...]]:
    """Size of the group, and the axes along which its devices differ."""
    groups = device_groups(instruction.attributes, math.prod(mesh.values()))
    if groups is None:
        return math.prod(mesh.values()), ()
    if groups.max() >= math.prod(mesh.values()):
        return groups.shape[1], ()
    places = np.unravel_index(groups, tuple(mesh.values()))
    axes = tuple(
        axis for axis, place in zip(mesh, places, strict=True) if (place != place[:, :1]).any()
    )
    size = math.prod(mesh[axis] for axis in axes)
    if instruction.opcode.startswith("collective-permute"):
        return size, axes
    # A group that is only a part of the axes it runs along has no name.
    return groups.shape[1], axes if size == groups.shape[1] else ()


def device_groups(attributes: str, devices: int) -> np.ndarray | None:
    """Numbers of the devices `[groups, devices in each]`; of a permutation, (source, target) pairs.

    None where the text tells them in a form that is not understood, or groups differ in size.
    """
    iota = _IOTA.search(attributes)
    if iota:
        shape, dims, order = map(_numbers, iota.groups())
        return _transposed(dims, order).reshape(shape)
    named = _MESH.search(attributes)
    if named and "(" not in named[4]:
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", named[1])}
        along = [list(sizes).index(name) for name in re.findall(r"'(\w+)'", named[4])]
        dims = _numbers(named[2]) or [math.prod(sizes.values())]
        numbers = _transposed(dims, _numbers(named[3])).reshape(*sizes.values())
        numbers = np.moveaxis(numbers, along, range(-len(along), 0))
        return numbers.reshape(-1, math.prod(numbers.shape[numbers.ndim - len(along) :]))
    listed = _LISTED.search(attributes)
    if listed:
        groups = [
            [int(i) for i in group.split(",")] for group in re.findall(r"\{([\d,]+)\}", listed[1])
        ]
        return np.array(groups) if len(set(map(len, groups))) == 1 else None
    if "replica_groups={}" in attributes:
        return np.arange(devices)[None]
    return None


def _numbers(text: str | None) -> list[int]:
    return [int(number) for number in (text or "").split(",") if number]


def _transposed(dims: list[int], order: list[int]) -> np.ndarray:
    return np.arange(math.prod(dims)).reshape(dims).transpose(order or range(len(dims)))
