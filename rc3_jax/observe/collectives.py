"""What the devices of a compiled program send to one another, read from its text.

The text is `compiled.as_text()`: the program (HLO) of one device after partitioning.
"""

from __future__ import annotations

import collections
import math
import re
from typing import NamedTuple

KINDS = (
    *("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all"),
    *("collective-permute", "collective-broadcast"),
)

_HEADER = re.compile(r"(ENTRY )?%?([\w.\-]+) .*\{$")
_LINE = re.compile(r"\s+(?:ROOT )?%?[\w.\-]+ = (.*?) ([\w\-]+)\(")
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,<=]*)\]")
_CALLED = re.compile(
    r"\b(?:body|calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)"
    r"|branch_computations=\{([^}]*)\}"
)
_CALLERS = ("while", "fusion", "call", "async-start", "conditional")
_TRIPS = re.compile(r'known_trip_count"?\s*[:=]\s*\{"?n"?\s*[:=]\s*"?(\d+)')


class Collective(NamedTuple):
    """All collectives of one kind over groups of one size.

    Attributes:
      group: devices that take part together.
      times: executions in a step.
      known: False for those in a loop whose length depends on data; its body counts once.
      bytes: of the whole arrays on each device, all executions: what is gathered, reduced, exchanged
        or passed on.
      sent: bytes that each device must send at least, all executions.
    """

    kind: str
    group: int
    times: int
    known: bool
    bytes: float
    sent: float


def collectives(text: str, devices: int) -> list[Collective]:
    """The collectives of a step, the largest sender first.

    Args:
      devices: of the whole program, which form one group where the text names none.
    """
    computations, entry = _computations(text)
    sums: dict[tuple[str, int, bool], list[float]] = collections.defaultdict(lambda: [0, 0.0])

    def visit(name: str, times: int, known: bool) -> None:
        lines = computations[name]
        # TPU programs let a collective run along several fusions; each repeats it.
        if name.startswith("async_collective_fusion") or any(
            "AsyncCollectiveDone" in x for x in lines
        ):
            return
        for line in lines:
            parsed = _LINE.match(line)
            if parsed is None:
                continue
            opcode = parsed[2]
            if opcode.removesuffix("-start") in KINDS:
                kind, group, whole = _collective(opcode, parsed[1], line, name, devices)
                sums[kind, group, known][0] += times
                sums[kind, group, known][1] += times * whole
            if opcode in _CALLERS:
                trips = _trip_count(line, computations) if opcode == "while" else 1
                for called in re.findall(r"[\w.\-]+", str(_CALLED.findall(line))):
                    visit(called, times * (trips or 1), known and trips is not None)

    visit(entry, 1, True)
    found = [
        Collective(kind, group, int(times), known, whole, whole * _sent_share(kind, group))
        for (kind, group, known), (times, whole) in sums.items()
        if group > 1
    ]
    return sorted(found, key=lambda one: -one.sent)


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """The lines of each function of the program, and the name of the main one."""
    found: dict[str, list[str]] = {}
    entry = current = ""
    for line in text.splitlines():
        header = _HEADER.match(line)
        if header:
            current = header[2]
            found[current] = []
            entry = current if header[1] else entry
        elif current and line.startswith(" "):
            found[current].append(line)
    return found, entry


def _collective(
    opcode: str, result: str, line: str, computation: str, devices: int
) -> tuple[str, int, float]:
    """Kind, size of a group and bytes of the whole array of one instruction."""
    group, whole = _group_size(line, devices), float(sum(map(_bytes, _ARRAY.findall(result))))
    if opcode == "reduce-scatter":
        whole *= group
    if opcode == "all-gather-start":  # its result repeats the operand
        whole *= group / (group + 1)
    if opcode == "collective-permute-start":
        whole /= 2
    if computation.startswith("all-reduce-scatter"):  # TPUs fuse the sum with taking a share of it
        opcode = "reduce-scatter"
    return opcode.removesuffix("-start"), group, whole


def _bytes(array: tuple[str, str]) -> int:
    """The size of an array by its type and dimensions, without padding."""
    dtype, dims = array
    bits = 8 if dtype == "pred" else int("0" + "".join(re.findall(r"\d+", dtype)[:1]))
    return math.prod(int(size.lstrip("<=")) for size in dims.split(",") if size) * bits // 8


def _trip_count(loop: str, computations: dict[str, list[str]]) -> int | None:
    """Iterations of a while instruction; None where they depend on data.

    CPU programs state them. In those of TPUs they are the constant that the condition compares the
    counter with, which starts at 0.
    """
    stated = _TRIPS.search(loop)
    if stated:
        return int(stated[1])
    condition = computations[re.findall(r"condition=%?([\w.\-]+)", loop)[0]]
    ends = [int(n) for line in condition for n in re.findall(r" s32\[\].* constant\((\d+)\)", line)]
    return ends[0] if len(ends) == 1 and "direction=LT" in condition[-1] else None


def _sent_share(kind: str, group: int) -> float:
    """The part of the array that the best algorithm sends from each of the group's devices."""
    if kind in ("collective-permute", "collective-broadcast"):
        return 1.0
    return (group - 1) / group * (2 if kind == "all-reduce" else 1)


def _group_size(line: str, devices: int) -> int:
    if "source_target_pairs" in line:
        return 2
    iota = re.search(r"replica_groups=\[\d+,(\d+)\]", line)
    if iota:
        return int(iota[1])
    listed = re.search(r"replica_groups=\{\{([\d,]+)\}", line)
    if listed:
        return len(listed[1].split(","))
    named = re.search(r"replica_groups=mesh\[([^\]]*)\].*? \{([^}]*)\}", line)
    if named:
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", named[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", named[2]))
    return devices
