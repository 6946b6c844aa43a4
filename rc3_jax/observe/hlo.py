"""Reads the text of a compiled program (HLO).

The text is `compiled.as_text()`: the program of one device, after partitioning and optimization.
Only what the other modules of `observe` ask for is read.
"""

from __future__ import annotations

import math
import re
from typing import NamedTuple

_ARRAY = re.compile(r"([a-z]\w*)\[([\d,<=]*)\](?:\{([^{}]*)\})?")
_NAME = re.compile(r"%?([\w.\-]+) = ")
_OPCODE = re.compile(r"\s*([\w\-]+)\(")
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
    """Attributes: shapes: the arrays of its result; operands: names, or the number of a parameter
    or constant; attributes: the text after them.
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
    names = tuple(re.findall(r"%([\w.\-]+)", given))
    operands = (given,) if opcode[1] in ("parameter", "constant") else names
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
