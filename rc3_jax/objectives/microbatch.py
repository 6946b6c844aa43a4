"""Exact accumulation: parts of a batch go through a network in turn, losses see the whole batch.

Gao et al., "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup" (arXiv
2101.06983): only the outputs of each part are kept; the backward pass recomputes its activations,
one part at a time. Plain accumulation of gradients would shrink the negatives.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import Mesh

from rc3_jax.parallel.mesh import BATCH_AXES, constrain


def microbatched(
    model: nn.Module, parts: int, mesh: Mesh | None, function: Callable, *rows: Any
) -> Any:
    """Computes `function(model, *rows)` with the rows in `parts` parts, one after the other.

    Every device takes the same share of its rows in each part, so no rows move between devices.

    Args:
      model: bound to its parameters; dropout draws anew for each part.
      function: computes row by row; pytrees of arrays `[batch, ...]` in and out.
      rows: the length of each array is a multiple of devices times parts.
    """
    if parts == 1:
        return function(model, *rows)

    def split(leaf):
        leaf = leaf.reshape(-1, parts, *leaf.shape[1:]).swapaxes(0, 1)
        return constrain(leaf, mesh, None, BATCH_AXES)

    def merge(leaf):
        leaf = leaf.swapaxes(0, 1).reshape(-1, *leaf.shape[2:])
        return constrain(leaf, mesh, BATCH_AXES)

    def one_part(model, carry, part):
        return carry, function(model, *part)

    loop = nn.scan(
        nn.remat(one_part, prevent_cse=False),
        variable_broadcast="params",
        split_rngs={"params": False, "dropout": True},
    )
    _, results = loop(model, (), jax.tree.map(split, rows))
    return jax.tree.map(merge, results)
