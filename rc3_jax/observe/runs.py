"""How often the parts of a compiled program run in a step, and which arrays they store."""

from __future__ import annotations

import collections
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

from rc3_jax.observe.hlo import Instruction, Program, Shape

Given = Callable[[int], int | None]
"""Integers known among a computation's arguments, by their number."""
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

_TRIPS = re.compile(r'known_trip_count"?\s*[:=]\s*\{"?n"?\s*[:=]\s*"?(\d+)')


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


def executions(program: Program) -> dict[str, Runs]:
    """How often each computation that a step runs is run; see `Runs`.

    Functions that a reduction or a sort applies to single numbers are left out. Either branch of a
    conditional counts.
    """
    counts: dict[str, Runs] = collections.defaultdict(lambda: Runs(0, True))

    def visit(name: str, times: int, known: bool, given: Given) -> None:
        before = counts[name]
        counts[name] = Runs(before.times + times, before.known and known)
        for instruction in program.computations[name].values():
            trips, inner = 1, _nothing
            if instruction.opcode == "while":
                trips = trip_count(program, name, instruction, given)
                inner = _given_to_body(program, name, instruction, given)
            for called in callees(instruction):
                visit(called, times * (trips or 1), known and trips is not None, inner)

    visit(program.entry, 1, True, _nothing)
    return dict(counts)


def _nothing(index: int) -> None:
    return None


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


def trip_count(
    program: Program, computation: str, loop: Instruction, given: Given = _nothing
) -> int | None:
    """The iterations of a while instruction, where the text tells them.

    CPU programs state them. In those of TPUs they follow from the condition `i < constant`, where i
    starts at a constant and each iteration adds one.

    Args:
      given: what is known of the arguments of the computation that the loop is in.
    """
    stated = _TRIPS.search(loop.attributes)
    if stated:
        return int(stated[1])
    condition = loop.called("condition")[0]
    test = next(i for i in program.computations[condition].values() if i.root)
    if test.opcode != "compare" or "direction=LT" not in test.attributes:
        return None
    left, right = (program.computations[condition][name] for name in test.operands)
    end, counter = _number(program, condition, right.name, _nothing), _index(left)
    if end is None or counter is None:
        return None
    body = loop.called("body")[0]
    start = _given_to_loop(program, computation, loop, counter, given)
    step = _step(program, body, counter)
    return None if start is None or not step else max(0, -(-(end - start) // step))


def _index(instruction: Instruction) -> int | None:
    found = re.search(r"index=(\d+)", instruction.attributes)
    return int(found[1]) if found and instruction.opcode == "get-tuple-element" else None


def _origin(program: Program, computation: str, name: str) -> Instruction:
    """What an instruction copies."""
    known = program.computations[computation]
    while known[name].opcode in ("copy", "bitcast") and known[name].operands[0] in known:
        name = known[name].operands[0]
    return known[name]


def _number(program: Program, computation: str, name: str, given: Given) -> int | None:
    """The integer that an instruction is known to give."""
    origin = _origin(program, computation, name)
    if origin.opcode == "constant" and re.fullmatch(r"-?\d+", origin.operands[0]):
        return int(origin.operands[0])
    index = _index(origin)
    return None if index is None else given(index)


def _passed(program: Program, body: str, index: int) -> Instruction | None:
    """What the next iteration gets as its argument number `index`."""
    root = next(i for i in program.computations[body].values() if i.root)
    return _origin(program, body, root.operands[index]) if root.opcode == "tuple" else None


def _step(program: Program, body: str, counter: int) -> int | None:
    """What an iteration adds to argument number `counter`."""
    total = _passed(program, body, counter)
    if total is None or total.opcode != "add":
        return None
    numbers = [_number(program, body, name, _nothing) for name in total.operands]
    counts = any(_index(_origin(program, body, name)) == counter for name in total.operands)
    return next((number for number in numbers if number is not None), None) if counts else None


def _given_to_loop(program, computation, loop, index: int, given: Given) -> int | None:
    """The first iteration's argument number `index`."""
    arguments = program.computations[computation][loop.operands[0]]
    if arguments.opcode != "tuple":
        return None
    return _number(program, computation, arguments.operands[index], given)


def _given_to_body(program, computation, loop, given: Given) -> Given:
    """What is known of the arguments of a loop's body: those that no iteration changes."""

    def known(index: int) -> int | None:
        passed = _passed(program, loop.called("body")[0], index)
        if passed is None or _index(passed) != index:
            return None
        return _given_to_loop(program, computation, loop, index, given)

    return known


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
