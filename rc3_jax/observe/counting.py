"""Work and memory of a traced function, counted from its jaxpr (`jax.make_jaxpr`)."""

from __future__ import annotations

import collections
import itertools
import math
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal

PRODUCTS = ("dot_general", "conv_general_dilated")


class Product(NamedTuple):
    """A matrix product or a convolution, with all its executions.

    Attributes:
      path: the modules that it is computed in, and the transformations of the function.
      flops: multiplications and additions.
    """

    path: str
    flops: float

    def part(self, names: Collection[str]) -> str:
        """The outermost module among some names; empty where it is in none of them."""
        return next((word for word in re.split(r"\W+", self.path) if word in names), "")


def products(jaxpr: Jaxpr, times: int = 1, path: str = "") -> Iterator[Product]:
    """The matrix products of a function, on all devices together.

    The body of a scan counts as often as it runs, that of a while loop once, and of the branches of
    a condition the most expensive.
    """
    for equation in jaxpr.eqns:
        here = f"{path}/{equation.source_info.name_stack}"
        if equation.primitive.name in PRODUCTS:
            yield Product(here, times * _flops(equation))
        inner = [list(products(sub, times * _runs(equation), here)) for sub in _inner(equation)]
        if equation.primitive.name == "cond":
            inner = [max(inner, key=lambda found: sum(one.flops for one in found))]
        for found in inner:
            yield from found


def model_flops(
    forward: Iterable[Jaxpr], gradient: Iterable[Jaxpr], names: Collection[str]
) -> dict[str, tuple[float, float]]:
    """FLOPs of each part of a model: of the forward pass, and of a whole training step.

    This is what MFU divides by. Matrix products count over all positions, padding included. The
    backward pass takes twice the forward pass where a gradient flows; what the losses compute again
    does not count (Chowdhery et al., PaLM, arXiv 2204.02311, appendix B).

    Args:
      forward, gradient: the losses of a step's updates, and the same with their gradients, traced
        without rematerialization.
      names: of the parts; the losses themselves are the part `losses`.
    """
    counted: list[dict[str, float]] = [collections.defaultdict(float) for _ in range(2)]
    for total, jaxprs in zip(counted, (forward, gradient), strict=True):
        for one in itertools.chain.from_iterable(map(products, jaxprs)):
            total[one.part(names) or "losses"] += one.flops
    forward_flops, both = counted
    return {
        part: (flops, flops + min(both[part] - flops, 2 * flops))
        for part, flops in forward_flops.items()
    }


def memory_traffic(
    jaxpr: Jaxpr, on_chip: float = 0.0, times: int = 1, in_loop: bool = False
) -> float:
    """Bytes that a function reads from the main memory and writes to it, by estimate.

    These are the operands and results of its matrix products, and for each loop what its iterations
    read and leave in stacked arrays: the parameters of layers, and what the backward pass needs of
    the forward pass. What an iteration makes for itself stays on the chip, unless it is larger than
    `on_chip`, and so does what one hands to the next. The logits of attention, for example, need no
    main memory where a layer has them within `on_chip`.

    Args:
      on_chip: bytes of the memory on the chip.
    """
    total = 0.0
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name in PRODUCTS:
            sizes = map(_bytes, (*equation.invars, *equation.outvars))
            total += times * sum(size for size in sizes if not in_loop or size > on_chip)
        if name == "scan":
            (body,) = _inner(equation)
            read = _stacked(equation.invars, body.invars)
            left = _stacked(equation.outvars, body.outvars)
            total += times * (read + left)
            handed_on = sum(map(_bytes, equation.outvars)) - left
            if handed_on > on_chip:
                total += 2 * times * equation.params["length"] * handed_on
        loops = in_loop or name in ("scan", "while")
        runs = times * _runs(equation)
        inner = [memory_traffic(sub, on_chip, runs, loops) for sub in _inner(equation)]
        total += max(inner, default=0.0) if name == "cond" else sum(inner)
    return total


def peak_bytes(jaxpr: Jaxpr) -> int:
    """The most that the intermediate arrays of a function take at a time, in bytes.

    Arrays live from their equation to their last use; arguments and results do not count. The
    compiler orders and fuses the equations otherwise: this is an estimate. What recomputation and
    micro-batches save shows in it, since they are part of the jaxpr.
    """
    kept = {*jaxpr.invars, *jaxpr.constvars, *_variables(jaxpr.outvars)}
    last = {var: i for i, eqn in enumerate(jaxpr.eqns) for var in _variables(eqn.invars)}
    live = most = 0
    for number, equation in enumerate(jaxpr.eqns):
        live += sum(_bytes(var) for var in equation.outvars if var in last and var not in kept)
        most = max(most, live + max(map(peak_bytes, _inner(equation)), default=0))
        used = {var for var in _variables(equation.invars) if var not in kept}
        live -= sum(_bytes(var) for var in used if last[var] == number)
    return most


def quadratic_arrays(small: Jaxpr, large: Jaxpr, path: str = "") -> Iterator[str]:
    """The arrays that grow with the square of what `large` has twice as much of; shape and source.

    Args:
      small, large: a function traced for arguments of two sizes, equal in structure. If rows and
        words are doubled, the arrays are those of rows x rows and of rows x words.
    """
    for one, two in zip(small.eqns, large.eqns, strict=True):
        here = f"{path}/{two.source_info.name_stack}"
        for before, after in zip(one.outvars, two.outvars, strict=True):
            if _bytes(after) > 3 * _bytes(before):
                yield f"{after.aval.str_short()} by {here.strip('/')}/{two.primitive.name}"
        for pair in zip(_inner(one), _inner(two), strict=True):
            yield from quadratic_arrays(*pair, path=here)


def _variables(atoms: Any) -> list[Any]:
    return [atom for atom in atoms if not isinstance(atom, Literal)]


def _inner(equation: JaxprEqn) -> list[Jaxpr]:
    """The functions that an equation calls."""
    kinds = (Jaxpr, ClosedJaxpr)
    values = jax.tree.leaves(equation.params, is_leaf=lambda value: isinstance(value, kinds))
    called = [value for value in values if isinstance(value, kinds)]
    return [value.jaxpr if isinstance(value, ClosedJaxpr) else value for value in called]


def _runs(equation: JaxprEqn) -> int:
    """How often an equation runs the functions that it calls, on all devices together."""
    if equation.primitive.name == "scan":
        return equation.params["length"]
    if equation.primitive.name == "shard_map":
        return equation.params["mesh"].size
    return 1


def _stacked(outer: Sequence[Any], inner: Sequence[Any]) -> int:
    """Bytes of the arrays of a loop of which each iteration has a part."""
    pairs = zip(outer, inner, strict=True)
    return sum(_bytes(one) for one, part in pairs if one.aval.shape != part.aval.shape)


def _flops(product: JaxprEqn) -> float:
    atoms: list[Any] = [*product.invars, product.outvars[0]]
    left, right, result = atoms
    if product.primitive.name == "dot_general":
        (contracted, _), _ = product.params["dimension_numbers"]
        terms = math.prod(left.aval.shape[axis] for axis in contracted)
    else:
        outputs = product.params["dimension_numbers"].rhs_spec[0]
        terms = right.aval.size // right.aval.shape[outputs]
    return 2.0 * result.aval.size * terms


def _bytes(var: Any) -> int:
    aval = var.aval
    return aval.size * aval.dtype.itemsize if hasattr(aval, "dtype") else 0
