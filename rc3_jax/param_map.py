"""Tables of parameter names: ours against those of Hugging Face, of published code, of PyTorch.

A table is read in both directions. It stands outside of `models` and `convert` because both use it:
a tower's file holds the names of its weights elsewhere, and `convert` reads and writes files.

    LAYER = ParamMap(
        {
            "self_attention/query": Name("attn.qkv", part=0),
            "self_attention/key": Name("attn.qkv", part=1),
            "self_attention/value": Name("attn.qkv", part=2),
            "mlp_norm": "norm2",
        }
    )
    NAMES = LAYER.within("encoder/layers", "blocks.{}") | ParamMap(
        {"class_token": "cls_token", "patch_embedding": Name("patch_embed.proj", CONVOLUTION)}
    )
    params = NAMES.to_ours(tensors, template)
    tensors = NAMES.to_theirs(params)

A row names a module or a parameter. What is below it in our tree follows by rule: `/` becomes `.`,
and `kernel` (transposed), `scale` and `embedding` become `weight`; so `{"": ""}` names a PyTorch
model that has our modules. A `{}` in our path stands for any number, which the other side's first
`{}` repeats (`stage_{}/merge`: `layers.{}.downsample`). One `{}` more on the other side is the number
of a layer, where we hold the parameters of all layers in one array, along its first axis. In the
example, layer 3 of `encoder/layers/mlp_norm/scale` is `blocks.3.norm2.weight`, and layer 3 of
`encoder/layers/self_attention/key/kernel`, transposed, the second third of `blocks.3.attn.qkv.weight`.
"""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

WEIGHTS = ("kernel", "scale", "embedding")


class Axes(NamedTuple):
    """How the axes of an array change from our side to the other, and back."""

    to_theirs: Callable[[np.ndarray], np.ndarray]
    to_ours: Callable[[np.ndarray], np.ndarray]


def _to_convolution(x: np.ndarray) -> np.ndarray:
    patch = math.isqrt(x.shape[0] // 3)
    return x.reshape(patch, patch, 3, -1).transpose(3, 2, 0, 1)


SAME = Axes(np.asarray, np.asarray)
TRANSPOSED = Axes(np.transpose, np.transpose)
CONVOLUTION = Axes(_to_convolution, lambda x: x.transpose(2, 3, 1, 0).reshape(-1, x.shape[0]))
"""Our `[patch * patch * 3, out]`, in the order of `to_patches`, is their `[out, 3, patch, patch]`."""
WITHOUT_BATCH = Axes(lambda x: x[0], lambda x: x[None])
"""Our `[1, ...]` is their `[...]`."""
TOKEN = Axes(lambda x: x[0, 0], lambda x: x[None, None])
"""Our `[1, 1, width]` is their `[width]`."""


class Name(NamedTuple):
    """What a module or parameter is called on the other side.

    Attributes:
      axes: of the module's kernel, or of the parameter; by default kernels are transposed.
      part: position within a tensor that joins several of ours along its first axis.
      first: number of the first layer.
    """

    theirs: str
    axes: Axes | None = None
    part: int = 0
    first: int = 0


class _Piece(NamedTuple):
    """A parameter of ours, or one layer of it, that is a tensor of the other side or part of it."""

    part: int
    path: str
    layer: int | None
    axes: Axes

    def of(self, array: np.ndarray) -> np.ndarray:
        return self.axes.to_theirs(array if self.layer is None else array[self.layer])


class ParamMap:
    """Our paths and the other side's names; see the top of this file."""

    def __init__(self, rows: Mapping[str, Name | str]):
        """Args: rows: a string is a `Name` with the defaults."""
        self.rows = {
            path: Name(name) if isinstance(name, str) else name for path, name in rows.items()
        }

    def __or__(self, other: ParamMap) -> ParamMap:
        return ParamMap({**self.rows, **other.rows})

    def within(self, ours: str, theirs: str, first: int = 0) -> ParamMap:
        """The same modules below a module of ours and of the other side; see `Name.first`."""
        rows = {}
        for path, name in self.rows.items():
            longer = ".".join(filter(None, [theirs, name.theirs]))
            path = "/".join(filter(None, [ours, path]))
            rows[path] = name._replace(theirs=longer, first=name.first + first)
        return ParamMap(rows)

    def to_ours(self, tensors: Mapping[str, np.ndarray], template: Mapping) -> dict[str, Any]:
        """Our parameters from the other side's tensors.

        Args:
          template: nested dict of the parameters, or `jax.eval_shape` of them.

        Returns:
          Nested dict of C-ordered copies with the template's shapes and types.

        Raises:
          ValueError: lists every missing, extra and mis-shaped tensor, and every parameter of the
            template that the table does not name.
        """
        wanted = flatten_dict(template, sep="/")
        shapes = {path: tuple(leaf.shape) for path, leaf in wanted.items()}
        names = self._pieces(shapes)
        _raise_if_prefixed(tensors, names)
        problems = [f"extra: {x} {np.shape(tensors[x])}" for x in tensors if x not in names]
        found: dict[str, list[np.ndarray]] = {path: [] for path in wanted}
        for name, pieces in names.items():
            parts = [piece.of(np.broadcast_to(np.int8(0), shapes[piece.path])) for piece in pieces]
            shape = parts[0].shape
            if len(parts) > 1:
                shape = (sum(len(part) for part in parts), *shape[1:])
            if name not in tensors:
                problems.append(f"missing: {name} {shape}")
            elif tensors[name].shape != shape:
                problems.append(f"mis-shaped: {name} is {tensors[name].shape}, must be {shape}")
            else:
                split = np.split(tensors[name], len(parts)) if len(parts) > 1 else [tensors[name]]
                for piece, tensor in zip(pieces, split, strict=True):
                    found[piece.path].append(piece.axes.to_ours(tensor))
        _raise_if(problems, "the checkpoint does not fit the model; compare depth and widths")
        params = {}
        for path, leaf in wanted.items():
            stacked = len(leaf.shape) > found[path][0].ndim
            value = found[path] if stacked else found[path][0]
            params[path] = np.array(value, dtype=leaf.dtype, order="C")
        return unflatten_dict(params, sep="/")

    def to_theirs(self, params: Mapping) -> dict[str, np.ndarray]:
        """The other side's tensors from nested dicts of our parameters, as C-ordered copies.

        Raises:
          ValueError: lists every parameter that the table does not name.
        """
        arrays = {path: np.asarray(x) for path, x in flatten_dict(params, sep="/").items()}
        tensors = {}
        for name, pieces in self._pieces({path: x.shape for path, x in arrays.items()}).items():
            parts = [piece.of(arrays[piece.path]) for piece in pieces]
            joined = np.concatenate(parts) if len(parts) > 1 else parts[0]
            tensors[name] = np.array(joined, order="C")
        return tensors

    def _pieces(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, list[_Piece]]:
        """Each name of the other side with the parameters of these shapes that it holds."""
        names: dict[str, list[_Piece]] = {}
        problems = []
        for path, shape in shapes.items():
            if (found := self._find(path)) is None:
                problems.append(f"not in the table: {path}")
                continue
            numbers, name, axes = found
            stacked = name.theirs.count("{}") > len(numbers)
            for layer in range(shape[0]) if stacked else [None]:
                number = [] if layer is None else [name.first + layer]
                piece = _Piece(name.part, path, layer, axes)
                names.setdefault(name.theirs.format(*numbers, *number), []).append(piece)
        _raise_if(problems, "the parameters are not those of this table")
        return {
            name: sorted(pieces, key=lambda piece: piece.part) for name, pieces in names.items()
        }

    def _find(self, path: str) -> tuple[list[str], Name, Axes] | None:
        """A parameter's numbers, name and axes, from the row that names most of its path."""
        parts = path.split("/")
        for length in range(len(parts), -1, -1):
            ours, below = "/".join(parts[:length]), parts[length:]
            for key in (ours, re.sub(r"\d+", "{}", ours)):
                if key not in self.rows:
                    continue
                name = self.rows[key]
                leaf = ["weight" if part in WEIGHTS else part for part in below[-1:]]
                theirs = ".".join(filter(None, [name.theirs, *below[:-1], *leaf]))
                kernel = parts[-1] == "kernel"
                axes = name.axes if kernel or not below else None
                axes = axes or (TRANSPOSED if kernel else SAME)
                numbers = re.findall(r"\d+", ours) if key != ours else []
                return numbers, name._replace(theirs=theirs), axes
        return None


def common_prefix(names: Collection[str], wanted: Collection[str]) -> str:
    """What names have before the wanted ones, such as `encoder.`; empty if most have nothing.

    It is what all names have in common, or else what most of the wanted ones have.
    """
    prefixes: Counter[str] = Counter()
    for name in names:
        ends = (0, *(dot.end() for dot in re.finditer(r"\.", name)))
        prefixes.update([name[:end] for end in ends if name[end:] in wanted][:1])
    most = prefixes.most_common(1)[0][0] if prefixes else ""
    whole = re.sub(r"[^.]*$", "", os.path.commonprefix(list(names)))
    return whole if whole and most.startswith(whole) else most


def _raise_if_prefixed(names: Collection[str], wanted: Collection[str]) -> None:
    if prefix := common_prefix(names, wanted):
        count = sum(name.startswith(prefix) for name in names)
        raise ValueError(
            f"the checkpoint does not fit the model: {count} of {len(names)} names begin with "
            f"{prefix!r}, which the model's names do not have; store the tensors without it"
        )


def _raise_if(problems: list[str], summary: str) -> None:
    if problems:
        raise ValueError("\n  ".join([f"{summary} ({len(problems)} problems):", *problems]))
