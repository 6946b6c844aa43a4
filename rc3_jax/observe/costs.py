"""Work of a compiled program, loops counted as often as they run: matrix products, memory traffic.

XLA's own cost analysis counts the body of a loop once, which leaves out most of a network whose
layers are a scan.
"""

from __future__ import annotations

import math
import re

from rc3_jax.observe.hlo import (
    UNSTORED,
    Instruction,
    Program,
    Shape,
    executions,
    running,
)

SLICES = ("dynamic-slice", "slice", "gather")


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
    if instruction.opcode in SLICES:
        return 2 * _stored(instruction.shapes)
    if instruction.opcode == "dynamic-update-slice":
        return 2 * _stored(operands[1])
    if instruction.opcode == "scatter":
        return 2 * _stored(operands[2]) + _stored(operands[1])
    if instruction.opcode.endswith("-start"):  # results repeat the operands
        return _stored(instruction.shapes)
    if instruction.opcode != "fusion":
        return _stored(instruction.shapes) + sum(map(_stored, operands))
    inner = program.computations[instruction.called("calls")[0]]
    read = sum(_read_by_fusion(inner, number, shapes) for number, shapes in enumerate(operands))
    return read + _written_by_fusion(inner, instruction.shapes)


def _read_by_fusion(inner: dict[str, Instruction], number: int, shapes: tuple[Shape, ...]) -> int:
    """Bytes of an operand that a fusion reads; `inner` are its instructions."""
    names = [
        i.name for i in inner.values() if i.opcode == "parameter" and i.operands == (str(number),)
    ]
    users = [i for i in inner.values() if set(names) & set(i.operands)]
    if users and all(user.opcode in SLICES for user in users):
        return sum(_stored(user.shapes) for user in users)
    if users and all(_updates(user, names) for user in users):
        return 0
    return _stored(shapes)


def _updates(user: Instruction, names: list[str]) -> bool:
    """Whether an instruction writes a part of the array into its place."""
    return user.opcode == "dynamic-update-slice" and user.operands[0] in names


def _written_by_fusion(inner: dict[str, Instruction], shapes: tuple[Shape, ...]) -> int:
    root = next(i for i in inner.values() if i.root)
    results = [inner[name] for name in root.operands] if root.opcode == "tuple" else [root]
    if len(results) != len(shapes):
        return _stored(shapes)
    return sum(
        _stored(inner[result.operands[1]].shapes)
        if result.opcode == "dynamic-update-slice"
        else _stored((shape,))
        for result, shape in zip(results, shapes, strict=True)
    )


def _stored(shapes: tuple[Shape, ...]) -> int:
    return sum(shape.stored for shape in shapes if not shape.on_chip)
