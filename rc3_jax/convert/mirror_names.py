"""Our parameters by the names of the PyTorch mirror, which has our module names.

One rule serves both directions: `/` becomes `.`, the layers of a stack get numbers, and what holds
numbers is a `weight` or a `bias` as in `torch.nn`. Kernels are transposed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

STACK = "layers"
WEIGHTS = ("kernel", "scale", "embedding")


def mirror_shapes(path: str, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """The tensors that a parameter becomes.

    Args:
      path: of the parameter, its parts joined by `/`.
    """
    name, numbers = _name(path, shape)
    one = shape if numbers is None else shape[1:]
    one = one[::-1] if path.endswith("/kernel") else one
    return {name.format(i): one for i in ([0] if numbers is None else numbers)}


def to_mirror(path: str, array: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """The tensors of a parameter, C-ordered, as `mirror_shapes` names them."""
    layers = [array] if _name(path, array.shape)[1] is None else array
    for name, layer in zip(mirror_shapes(path, array.shape), layers, strict=True):
        yield name, np.asarray(layer.T if path.endswith("/kernel") else layer, order="C")


def from_mirror(
    path: str, shape: tuple[int, ...], tensor: Callable[[str], np.ndarray]
) -> np.ndarray:
    """A parameter of the given shape from its tensors: the inverse of `to_mirror`."""
    found = [tensor(name) for name in mirror_shapes(path, shape)]
    layers = [x.T if path.endswith("/kernel") else x for x in found]
    whole = layers[0] if _name(path, shape)[1] is None else np.stack(layers)
    return np.asarray(whole, order="C")


def _name(path: str, shape: tuple[int, ...]) -> tuple[str, range | None]:
    """A tensor's name, with `{}` for the number of the layer where there are layers; these."""
    *parts, leaf = path.split("/")
    stacked = STACK in parts
    if stacked:
        parts.insert(parts.index(STACK) + 1, "{}")
    name = ".".join([*parts, "weight" if leaf in WEIGHTS else leaf])
    return name, range(shape[0]) if stacked else None
