"""PyTorch tensors to our parameters and back, along a table of `names.py`; numpy only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from rc3_jax.convert.names import LEAVES, Layers, Leaf, Row, Table


class _Entry(NamedTuple):
    """One parameter of ours and the PyTorch tensor, or tensors by layer, that it comes from.

    `first` is the number of our first layer, None where the parameter is of no layer.
    """

    path: str
    first: int | None
    saved: str
    module: str
    leaf: Leaf
    part: int | None

    def layers(self, shape: tuple[int, ...]) -> range:
        """The numbers of the layers that the parameter holds, in PyTorch names."""
        return range(1) if self.first is None else range(self.first, self.first + shape[0])

    def torch_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Of this parameter's share in the PyTorch tensor."""
        one = np.broadcast_to(np.int8(0), shape if self.first is None else shape[1:])
        return self.leaf.to_torch(one).shape

    def layer_of(self, array: np.ndarray, layer: int) -> np.ndarray:
        """What is ours of a layer, as PyTorch has it."""
        return self.leaf.to_torch(array if self.first is None else array[layer - self.first])


def to_flax(tensors: Mapping[str, np.ndarray], table: Table, template: Mapping) -> dict:
    """Our parameters from PyTorch tensors.

    Args:
      tensors: by name, in any of the spellings that `table` knows, with its prefix or without.
      template: the tower's parameters, or `jax.eval_shape` of them: shapes, types and depth.

    Returns:
      Nested dict of C-ordered copies with the shapes and types of `template`.

    Raises:
      ValueError: lists every missing, extra, repeated and mis-shaped tensor, and every parameter
        that `table` does not name.
    """
    wanted = flatten_dict(template, sep="/")
    slots = _slots(table, {path: tuple(leaf.shape) for path, leaf in wanted.items()})
    saved_names = {entry.module.format(layer): name for name, (layer, (entry, *_)) in slots.items()}
    found, problems = {}, []
    for name, tensor in tensors.items():
        short = name.removeprefix(table.prefix)
        saved = saved_names.get(short, short)
        if saved in found:
            problems.append(f"repeated: {name}")
        elif saved in slots:
            found[saved] = np.asarray(tensor)
        elif not saved.startswith(table.ignored):
            problems.append(f"extra: {name} {np.shape(tensor)}")
    for name, (_, entries) in slots.items():
        parts = [entry.torch_shape(wanted[entry.path].shape) for entry in entries]
        shape = parts[0] if len(parts) == 1 else (sum(p[0] for p in parts), *parts[0][1:])
        if name not in found:
            problems.append(f"missing: {name} {shape}")
        elif found[name].shape != shape:
            problems.append(f"mis-shaped: {name} is {found[name].shape}, must be {shape}")
    named = {entry.path for _, entries in slots.values() for entry in entries}
    problems += [f"not in the table: {path}" for path in wanted if path not in named]
    _raise_if(problems, "the checkpoint does not fit the model; compare depth and widths")

    pieces: dict[str, list[np.ndarray]] = {}
    for name, (_, entries) in slots.items():
        parts = [found[name]] if len(entries) == 1 else np.split(found[name], len(entries))
        for entry, part in zip(entries, parts, strict=True):
            pieces.setdefault(entry.path, []).append(entry.leaf.to_flax(part))
    params = {}
    for path, leaf in wanted.items():
        stacked = len(leaf.shape) > pieces[path][0].ndim
        value = pieces[path] if stacked else pieces[path][0]
        params[path] = np.array(value, dtype=leaf.dtype, order="C")
    return unflatten_dict(params, sep="/")


def to_torch(
    params: Mapping, table: Table, *, prefix: str = "", module_names: bool = False
) -> dict[str, np.ndarray]:
    """PyTorch tensors from our parameters: the inverse of `to_flax`.

    Args:
      params: nested dict of one tower's parameters.
      prefix: put before every name, `table.prefix` for a model with a head.
      module_names: the names within a transformers 5 model, for `load_state_dict`, in place of
        those of saved files, which `from_pretrained` of transformers 4 and 5 reads.

    Returns:
      C-ordered copies by name, without the tensors that `table` ignores.

    Raises:
      ValueError: lists every parameter that is missing, or that `table` does not name, and all
        depths of stacked parameters if they differ.
    """
    arrays = {path: np.asarray(x) for path, x in flatten_dict(params, sep="/").items()}
    entries = {entry.path: entry for entry in _entries(table)}
    problems = [f"missing: {path}" for path in entries if path not in arrays]
    problems += [f"not in the table: {path}" for path in arrays if path not in entries]
    for layers in table.layers:
        depths = {path: len(x) for path, x in arrays.items() if path.startswith(layers.ours)}
        if len(set(depths.values())) > 1:
            problems += [f"mis-shaped: {path} holds {n} layers" for path, n in depths.items()]
    _raise_if(problems, "the parameters are not those of this table's tower")

    tensors = {}
    slots = _slots(table, {path: x.shape for path, x in arrays.items()})
    for saved, (layer, entries) in slots.items():
        name = entries[0].module.format(layer) if module_names else saved
        parts = [entry.layer_of(arrays[entry.path], layer) for entry in entries]
        joined = parts[0] if len(parts) == 1 else np.concatenate(parts)
        tensors[prefix + name] = np.array(joined, order="C")
    return tensors


def _entries(table: Table) -> Iterator[_Entry]:
    """Every parameter that the table names; PyTorch names keep `{}` for the layer."""
    for row in table.outer:
        yield from _row_entries(row, Layers("", "", ()), None)
    for layers in table.layers:
        for row in layers.rows:
            yield from _row_entries(row, layers, layers.first)


def _row_entries(row: Row, layers: Layers, first: int | None) -> Iterator[_Entry]:
    module = layers.saved if layers.module is None else layers.module
    for leaf in LEAVES[row.kind]:
        yield _Entry(
            path=f"{layers.ours}{row.ours}{leaf.ours}",
            first=first,
            saved=f"{layers.saved}{row.saved}{leaf.torch}",
            module=f"{module}{row.module or row.saved}{leaf.torch}",
            leaf=leaf,
            part=row.part,
        )


def _slots(
    table: Table, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, tuple[int, list[_Entry]]]:
    """Saved name → layer, and the parameters of these shapes that the tensor holds, in order."""
    slots: dict[str, tuple[int, list[_Entry]]] = {}
    for entry in sorted(_entries(table), key=lambda entry: entry.part or 0):
        layers = entry.layers(shapes[entry.path]) if entry.path in shapes else ()
        for layer in layers:
            slots.setdefault(entry.saved.format(layer), (layer, []))[1].append(entry)
    return slots


def _raise_if(problems: list[str], summary: str) -> None:
    if problems:
        raise ValueError("\n  ".join([f"{summary} ({len(problems)} problems):", *problems]))
