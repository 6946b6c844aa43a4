"""PyTorch tensors to our parameters and back, along a table of `names.py`; numpy only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from rc3_jax.convert.names import LEAVES, STACK, Leaf, Table


class _Entry(NamedTuple):
    """One parameter of ours and the PyTorch tensor, or tensors by layer, that it comes from."""

    path: str
    stacked: bool
    saved: str
    module: str
    leaf: Leaf


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
    saved_names = {e.module.format(layer): name for name, (e, layer) in slots.items()}
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
    for name, (entry, _) in slots.items():
        shape = _torch_shape(entry, wanted[entry.path].shape)
        if name not in found:
            problems.append(f"missing: {name} {shape}")
        elif found[name].shape != shape:
            problems.append(f"mis-shaped: {name} is {found[name].shape}, must be {shape}")
    entries = {entry.path: entry for entry in _entries(table) if entry.path in wanted}
    problems += [f"not in the table: {path}" for path in wanted if path not in entries]
    _raise_if(problems, "the checkpoint does not fit the model; compare depth and widths")

    params = {}
    for path, entry in entries.items():
        leaf = wanted[path]
        layers = range(leaf.shape[0] if entry.stacked else 1)
        arrays = [entry.leaf.to_flax(found[entry.saved.format(i)]) for i in layers]
        value = arrays if entry.stacked else arrays[0]
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
    depths = {path: len(arrays[path]) for path in arrays if path.startswith(STACK)}
    if len(set(depths.values())) > 1:
        problems += [f"mis-shaped: {path} holds {depth} layers" for path, depth in depths.items()]
    _raise_if(problems, "the parameters are not those of this table's tower")

    tensors = {}
    for saved, (entry, layer) in _slots(table, {k: x.shape for k, x in arrays.items()}).items():
        array = arrays[entry.path][layer] if entry.stacked else arrays[entry.path]
        name = entry.module.format(layer) if module_names else saved
        tensors[prefix + name] = np.array(entry.leaf.to_torch(array), order="C")
    return tensors


def _entries(table: Table) -> Iterator[_Entry]:
    """Every parameter that the table names; PyTorch names keep `{}` for the layer."""
    for row in table.outer:
        yield from _row_entries(row, "", "", "")
    for row in table.layer:
        yield from _row_entries(row, STACK, table.saved_layer, table.module_layer)


def _row_entries(row, stack: str, saved_layer: str, module_layer: str) -> Iterator[_Entry]:
    for leaf in LEAVES[row.kind]:
        yield _Entry(
            path=f"{stack}{row.ours}{leaf.ours}",
            stacked=bool(stack),
            saved=f"{saved_layer}{row.saved}{leaf.torch}",
            module=f"{module_layer}{row.module or row.saved}{leaf.torch}",
            leaf=leaf,
        )


def _slots(table: Table, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[_Entry, int]]:
    """The saved names of the PyTorch tensors that parameters of these shapes come from."""
    return {
        entry.saved.format(layer): (entry, layer)
        for entry in _entries(table)
        if entry.path in shapes
        for layer in range(shapes[entry.path][0] if entry.stacked else 1)
    }


def _torch_shape(entry: _Entry, shape: tuple[int, ...]) -> tuple[int, ...]:
    one = np.broadcast_to(np.int8(0), shape[1:] if entry.stacked else shape)
    return entry.leaf.to_torch(one).shape


def _raise_if(problems: list[str], summary: str) -> None:
    if problems:
        raise ValueError("\n  ".join([f"{summary} ({len(problems)} problems):", *problems]))
