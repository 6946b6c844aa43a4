"""Everything a run carries from step to step, as one pytree."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax
import jax
import jax.numpy as jnp

from rc3_jax.data.shapes import example_batch
from rc3_jax.models.base import PairModel

EMA_PARTS = ("text", "text_projection")
"""The parts whose moving average measures the relevance of weak texts."""


@flax.struct.dataclass
class TrainState:
    """The state that a step maps to the next one.

    Attributes:
      step: int32 scalar, the number of steps done.
      ema: what measures the relevance of weak texts: averaged `EMA_PARTS`, or the parameters of a
        fixed `SentenceEncoder`; None where the model's own text tower does, and in fine-tuning.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    ema: Any


def initial_params(model: PairModel, config: Any) -> Any:
    """Random parameters, a pure function of `config.seed`.

    The shapes of the parameters, those of the state and the state itself are asked for one after the
    other; the model is traced for the first of them alone.
    """
    return _draw(model, jax.random.key(config.seed), *example_batch(config))


@functools.partial(jax.jit, static_argnums=0)
def _draw(model: PairModel, key: jax.Array, rows: Mapping[str, jax.Array], ids: jax.Array) -> Any:
    return model.init(key, rows, ids)["params"]


def ema_update(decay: float) -> Callable[[Any, Any, jax.Array], Any]:
    """The function `(ema, params, step) -> ema` that averages `EMA_PARTS` over the steps.

    The decay is short at first, so that the random start is soon forgotten.
    """

    def update(ema: Any, params: Any, step: jax.Array) -> Any:
        rate = jnp.minimum(decay, (1 + step) / (10 + step))
        current = {part: params[part] for part in EMA_PARTS}
        return jax.tree.map(lambda old, new: rate * old + (1 - rate) * new, ema, current)

    return update


def count_parameters(params: Any) -> int:
    """Number of scalars in a pytree of arrays."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
