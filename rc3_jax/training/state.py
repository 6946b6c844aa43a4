"""Everything a run carries from step to step, as one pytree."""

from __future__ import annotations

from typing import Any

import flax
import jax
import ml_collections

from rc3_jax.data.example import example_batch
from rc3_jax.models.pair import PairModel

EMA_PARTS = ("text", "text_projection")
"""The parts whose moving average tells the relevance of weak texts."""


@flax.struct.dataclass
class TrainState:
    """What a step takes and gives.

    Attributes:
      step: int32 scalar, updates done.
      ema: what tells the relevance of weak texts: averaged `EMA_PARTS`, or the parameters of a
        fixed `SentenceEncoder`; None where the model's own text tower does.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    ema: Any


def initial_params(model: PairModel, config: ml_collections.ConfigDict) -> Any:
    """Random parameters, a pure function of `config.seed`."""
    rows, ids = example_batch(config)
    return model.init(jax.random.key(config.seed), rows, ids)["params"]


def count_parameters(params: Any) -> int:
    """Number of scalars in a pytree of arrays."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
