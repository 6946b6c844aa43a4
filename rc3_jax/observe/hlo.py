"""Reads the text of a compiled program (HLO): instructions, how often each runs, what is stored.

The text is `compiled.as_text()`: the program of one device, after partitioning and optimization.
Only what the other modules of `observe` ask for is read.
"""

from __future__ import annotations

import collections
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

UNSTORED = {
    "parameter",
    "get-tuple-element",
    "tuple",
    "bitcast",
    "constant",
    "while",
    "call",
    "conditional",
    "opt-barrier",
    "after-all",
    "partition-id",
    "replica-id",
    "async-done",
    "async-update",
}
"""Instructions whose result is no array of its own."""

_ARRAY = re.compile(r"([a-z]\w*)\[([\d,<=]*)\](?:\{([^{}]*)\})?")
_NAME = re.compile(r"%?([\w.\-]+) = ")
_OPCODE = re.compile(r"\s*([\w\-]+)\(")
_TRIPS = re.compile(r'known_trip_count"?\s*[:=]\s*\{"?n"?\s*[:=]\s*"?(\d+)')
_OP_NAME = re.compile(r'op_name="([^"]*)"')


class Shape(NamedTuple):
    """An array. Attributes: stored: its bytes with the padding of its layout's tiles; on_chip:
    it lies in a memory other than the device's main one.
    """

    dtype: str
    dims: tuple[int, ...]
    stored: int
    on_chip: bool

    @property
    def bytes(self) -> int:
        """Without padding."""
        return math.prod(self.dims) * _bits(self.dtype) // 8

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.dims))}]"


class Instruction(NamedTuple):
    """Attributes: shapes: the arrays of its result; operands: names, or a parameter's number;
    attributes: the text after them.
    """

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...]
    attributes: str
    root: bool

    @property
    def source(self) -> str:
        """Where the program made it, as JAX noted it; empty where it did not."""
        found = _OP_NAME.search(self.attributes)
        return found[1] if found else ""

    def called(self, *names: str) -> list[str]:
        """The computations that attributes such as `body` or `calls` name."""
        found = []
        for name in names:
            given = re.search(rf"\b{name}=(?:\{{([^}}]*)\}}|(%?[\w.\-]+))", self.attributes)
            if given:
                found += re.findall(r"[\w.\-]+", given[1] or given[2])
        return found


class Program(NamedTuple):
    """Attributes: computations: name → its instructions by name, in order; entry: the main one."""

    computations: dict[str, dict[str, Instruction]]
    entry: str

    def operand_shapes(self, computation: str, instruction: Instruction) -> list[Shape]:
        """The arrays that an instruction of a computation reads."""
        known = self.computations[computation]
        return [s for name in instruction.operands if name in known for s in known[name].shapes]


class Runs(NamedTuple):
    """How often a computation runs in a step: `times`, where loops whose number of iterations the
    text does not tell count once; `known` is False if there are such.
    """

    times: int
    known: bool


class Buffer(NamedTuple):
    """An array that is stored; where it is made, and by what."""

    shape: Shape
    opcode: str
    source: str


def parse(text: str) -> Program:
    """The program of one device from its text.

    Raises:
      ValueError: if the text has no entry computation.
    """
    computations: dict[str, dict[str, Instruction]] = {}
    entry, current = None, None
    for line in text.splitlines():
        if line.endswith("{") and not line.startswith((" ", "HloModule")):
            is_entry, _, rest = line.rpartition("ENTRY ")
            name = re.match(r"%?([\w.\-]+)", rest)[1]
            current = computations.setdefault(name, {})
            if "ENTRY" in line[: len(is_entry) + 6]:
                entry = name
        elif line.startswith("}"):
            current = None
        elif current is not None:
            instruction = _instruction(line.strip())
            if instruction:
                current[instruction.name] = instruction
    if entry is None:
        raise ValueError("the text holds no ENTRY computation; give that of compiled.as_text()")
    return Program(computations, entry)


def _instruction(line: str) -> Instruction | None:
    root = line.startswith("ROOT ")
    line = line.removeprefix("ROOT ")
    name = _NAME.match(line)
    if not name:
        return None
    rest = line[name.end() :]
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    opcode = _OPCODE.match(rest, end)
    if not opcode:
        return None
    last = _closing(rest, opcode.end() - 1)
    given = rest[opcode.end() : last]
    operands = (given,) if opcode[1] == "parameter" else tuple(re.findall(r"%([\w.\-]+)", given))
    attributes = rest[last + 1 :].lstrip(", ")
    return Instruction(name[1], opcode[1], shapes(rest[:end]), operands, attributes, root)


def _closing(text: str, opening: int) -> int:
    """The place of the parenthesis that closes the one at `opening`."""
    depth = 0
    for place in range(opening, len(text)):
        depth += (text[place] == "(") - (text[place] == ")")
        if depth == 0:
            return place
    return len(text) - 1


def shapes(text: str) -> tuple[Shape, ...]:
    """The arrays in the text of a type; a tuple's parts one after the other."""
    return tuple(_shape(*found) for found in _ARRAY.findall(text))


def _shape(dtype: str, sizes: str, layout: str) -> Shape:
    dims = tuple(int(size.lstrip("<=")) for size in sizes.split(",") if size)
    order, _, rest = layout.partition(":")
    stored = list(dims)
    tile = re.search(r"T\(([\d,]+)\)", rest)
    if tile and dims:
        minor_to_major = [int(i) for i in order.split(",")]
        for axis, size in zip(minor_to_major, reversed(tile[1].split(",")), strict=False):
            stored[axis] = -(-dims[axis] // int(size)) * int(size)
    space = re.search(r"S\((\d+)\)", rest)
    nbytes = math.prod(stored) * _bits(dtype) // 8
    return Shape(dtype, dims, nbytes, bool(space and int(space[1])))


def _bits(dtype: str) -> int:
    if dtype == "pred":
        return 8
    number = re.search(r"\d+", dtype)
    return int(number[0]) if number else 0  # a token or an opaque handle


def executions(program: Program) -> dict[str, Runs]:
    """How often each computation that a step runs is run; see `Runs`.

    Functions that a reduction or a sort applies to single numbers are left out. Either branch of a
    conditional counts.
    """
    counts: dict[str, Runs] = collections.defaultdict(lambda: Runs(0, True))

    def visit(name: str, times: int, known: bool) -> None:
        before = counts[name]
        counts[name] = Runs(before.times + times, before.known and known)
        for instruction in program.computations[name].values():
            trips = trip_count(instruction) if instruction.opcode == "while" else 1
            for inner in callees(instruction):
                visit(inner, times * (trips or 1), known and trips is not None)

    visit(program.entry, 1, True)
    return dict(counts)


def callees(instruction: Instruction) -> list[str]:
    """The computations that an instruction runs."""
    names = {
        "while": ("condition", "body"),
        "fusion": ("calls",),
        "call": ("to_apply",),
        "async-start": ("calls",),
        "conditional": ("branch_computations", "true_computation", "false_computation"),
    }
    return instruction.called(*names.get(instruction.opcode, ()))


def trip_count(loop: Instruction) -> int | None:
    """The iterations of a while instruction, where its text tells them."""
    found = _TRIPS.search(loop.attributes)
    return int(found[1]) if found else None


def fused(program: Program, libraries: bool = True) -> set[str]:
    """The computations inside fusions, whose arrays are not stored.

    Args:
      libraries: counts those that a library of the CPU backend runs, too; what it stores on the
        way cannot be seen.
    """
    return {
        name
        for instructions in program.computations.values()
        for instruction in instructions.values()
        if instruction.opcode == "fusion"
        and (libraries or "__ynn_fusion" not in instruction.attributes)
        for name in instruction.called("calls")
    }


def running(program: Program, libraries: bool = True) -> Iterator[tuple[str, Runs, Instruction]]:
    """(computation, how often it runs, instruction) of all that is not inside a fusion."""
    hidden = fused(program, libraries)
    for name, runs in executions(program).items():
        if name not in hidden:
            for instruction in program.computations[name].values():
                yield name, runs, instruction


def buffers(program: Program) -> list[Buffer]:
    """The arrays that the program stores, the arguments first; on CPUs also those that it may.

    Their sizes do not add up to the program's memory: not all of them live at the same time, and
    some take over the place of others.
    """
    entry = program.computations[program.entry].values()
    found = [
        Buffer(shape, "argument", instruction.source)
        for instruction in entry
        if instruction.opcode == "parameter"
        for shape in instruction.shapes
    ]
    return found + [
        Buffer(shape, instruction.opcode, instruction.source)
        for _, _, instruction in running(program, libraries=False)
        if instruction.opcode not in UNSTORED and not instruction.opcode.endswith("-done")
        for shape in instruction.shapes
    ]
