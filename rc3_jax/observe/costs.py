"""Work of a compiled program, loops counted as often as they run: matrix products, memory traffic.

XLA's own cost analysis counts the body of a loop once, which leaves out most of a network whose
layers are a scan.
"""

from __future__ import annotations

import math
import re

from rc3_jax.observe.collectives import KINDS
from rc3_jax.observe.hlo import Instruction, Program, Shape
from rc3_jax.observe.runs import UNSTORED, executions, running

FREE = ("AllocateBuffer", "ConcatBitcast", "AsyncCollectiveDone")
"""Custom calls of TPU programs that move nothing."""
SLICES = ("dynamic-slice", "slice", "gather")
HANDED_ON = ("parameter", "tuple", *KINDS)
"""In a fusion: what passes through, collectives that run along it among it."""


def matrix_flops(program: Program) -> float:
    """Multiplications and additions of all matrix products of a step on one device.

    What the backward pass computes again counts, as the hardware computes it. Loops of unknown
    length count one iteration.
    """
    return float(
        sum(
            runs.times * _product_flops(program, name, instruction)
            for name, runs in executions(program).items()
            for instruction in program.computations[name].values()
            if instruction.opcode in ("dot", "convolution")
        )
    )


def _product_flops(program: Program, name: str, product: Instruction) -> float:
    left, right = (program.computations[name][operand].shapes[0] for operand in product.operands)
    result = product.shapes[0]
    if product.opcode == "dot":
        contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", product.attributes)
        axes = [int(axis) for axis in contracted[1].split(",") if axis] if contracted else []
        return 2.0 * math.prod(result.dims) * math.prod(left.dims[axis] for axis in axes)
    return 2.0 * _convolution_products(left, right, result, product.attributes)


def _convolution_products(left: Shape, kernel: Shape, result: Shape, attributes: str) -> float:
    """Multiplications of a convolution that meet neither padding nor the holes of a dilation.

    TPUs compute every matrix product as one; batch axes become spatial axes with dilations.
    """
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", attributes)
    left_labels, kernel_labels, result_labels = labels.groups()
    window = re.search(r"window=\{([^}]*)\}", attributes)
    fields = dict(field.split("=") for field in window[1].split()) if window else {}
    spatial = sorted(label for label in result_labels if label.isdigit())

    def field(name, axis, default):
        return fields[name].split("x")[axis] if name in fields else default

    total = float(result.dims[result_labels.index("b")] * result.dims[result_labels.index("f")])
    total *= kernel.dims[kernel_labels.index("i")]
    for axis, label in enumerate(spatial):
        low = int(str(field("pad", axis, "0_0")).split("_")[0])
        stride = int(field("stride", axis, 1))
        dilation = int(field("lhs_dilate", axis, 1))
        kernel_dilation = int(field("rhs_dilate", axis, 1))
        held = left.dims[left_labels.index(label)]
        total *= sum(
            1
            for out in range(result.dims[result_labels.index(label)])
            for k in range(kernel.dims[kernel_labels.index(label)])
            if (place := out * stride + k * kernel_dilation - low) >= 0
            and place % dilation == 0
            and place // dilation < held
        )
    return total


def traffic(program: Program) -> float:
    """Bytes that a step reads from and writes to the main memory of one device, an estimate.

    Every instruction reads its operands and writes its results, with the padding of their layouts;
    a fusion is one instruction, and of an array that it only slices or updates in part it touches
    that part. What stays on the chip is left out.
    """
    return float(
        sum(
            runs.times * _touched(program, name, instruction)
            for name, runs, instruction in running(program)
            if instruction.opcode not in UNSTORED | {"async-start"}
            and not instruction.opcode.endswith("-done")
        )
    )


def _touched(program: Program, name: str, instruction: Instruction) -> int:
    known = program.computations[name]
    operands = [known[operand].shapes for operand in instruction.operands if operand in known]
    if instruction.opcode == "slice-start":  # (array, part, context): the part leaves its memory
        return instruction.shapes[1].stored + _stored(instruction.shapes[1:2])
    if instruction.opcode.endswith("-start"):  # results repeat the operands
        return _stored(instruction.shapes)
    if instruction.opcode in SLICES:
        return 2 * _stored(instruction.shapes)
    if instruction.opcode == "dynamic-update-slice":
        return 2 * _stored(operands[1])
    if instruction.opcode == "scatter":
        return 2 * _stored(operands[2]) + _stored(operands[1])
    if any(f'"{target}"' in instruction.attributes for target in FREE):
        return 0
    if instruction.opcode != "fusion":
        return _stored(instruction.shapes) + sum(map(_stored, operands))
    inner = instruction.called("calls")[0]
    if any('"AsyncCollectiveDone"' in i.attributes for i in program.computations[inner].values()):
        return 0
    read = sum(
        min(_stored(shapes), _read(program, inner, _parameter(program, inner, number)))
        for number, shapes in enumerate(operands)
    )
    root = next(i for i in program.computations[inner].values() if i.root)
    results = root.operands if root.opcode == "tuple" else [root.name]
    if len(results) != len(instruction.shapes):
        return read + _stored(instruction.shapes)
    return read + sum(
        min(_stored((shape,)), _written(program, inner, result))
        for result, shape in zip(results, instruction.shapes, strict=True)
    )


def _parameter(program: Program, computation: str, number: int) -> str:
    return next(
        i.name
        for i in program.computations[computation].values()
        if i.opcode == "parameter" and i.operands == (str(number),)
    )


def _read(program: Program, computation: str, name: str) -> int:
    """Bytes of an array that the instructions of a fused computation read."""
    known, total = program.computations[computation], 0
    for user in known.values():
        if name not in user.operands:
            continue
        if user.opcode in SLICES:
            total += _all_stored(user.shapes)
        elif user.opcode == "bitcast":
            total += _read(program, computation, user.name)
        elif user.opcode == "fusion":
            inner = user.called("calls")[0]
            total += sum(
                _read(program, inner, _parameter(program, inner, number))
                for number, operand in enumerate(user.operands)
                if operand == name
            )
        elif user.opcode == "dynamic-update-slice" and user.operands[0] == name:
            continue  # written in part, in its place
        elif user.opcode not in HANDED_ON:
            return _all_stored(known[name].shapes)
    return min(total, _all_stored(known[name].shapes))


def _written(program: Program, computation: str, name: str) -> int:
    """Bytes that a result of a fused computation writes."""
    result = program.computations[computation][name]
    if result.opcode == "dynamic-update-slice":
        return _all_stored(program.computations[computation][result.operands[1]].shapes)
    if result.opcode in HANDED_ON:
        return 0
    if result.opcode == "bitcast":
        return _written(program, computation, result.operands[0])
    if result.opcode == "fusion":
        inner = result.called("calls")[0]
        root = next(i for i in program.computations[inner].values() if i.root)
        return _written(program, inner, root.name)
    return _all_stored(result.shapes)


def _all_stored(shapes: tuple[Shape, ...]) -> int:
    return sum(shape.stored for shape in shapes)


def _stored(shapes: tuple[Shape, ...]) -> int:
    return sum(shape.stored for shape in shapes if not shape.on_chip)
