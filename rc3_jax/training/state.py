"""Everything a run carries from step to step, as one pytree."""

from __future__ import annotations

from typing import Any

import flax
import jax
import jax.numpy as jnp
import ml_collections
import optax
from jax.sharding import Mesh

from rc3_jax.data.example import example_batch
from rc3_jax.models.rc3 import RC3
from rc3_jax.parallel.rules import shardings

EMA_PARTS = ("text", "text_projection")
"""The parts whose moving average tells the relevance of weak texts."""


@flax.struct.dataclass
class TrainState:
    """Attributes: step: int32 scalar, updates done; ema: averaged `EMA_PARTS` or None."""

    step: jax.Array
    params: Any
    opt_state: Any
    ema: Any


def initial_params(model: RC3, config: ml_collections.ConfigDict) -> Any:
    """Random parameters, a pure function of `config.seed`."""
    rows, ids = example_batch(config)
    return model.init(jax.random.key(config.seed), rows, ids)["params"]


def initial_state(
    model: RC3, optimizer: optax.GradientTransformation, config: ml_collections.ConfigDict
) -> TrainState:
    """The state before the first step; a pure function of `config.seed`."""
    params = initial_params(model, config)
    ema = None
    if config.objective.relevance == "ema":
        ema = jax.tree.map(jnp.copy, {part: params[part] for part in EMA_PARTS})
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), ema)


def abstract_state(
    model: RC3,
    optimizer: optax.GradientTransformation,
    config: ml_collections.ConfigDict,
    mesh: Mesh,
) -> TrainState:
    """Shapes, dtypes and shardings of the state; nothing is computed."""
    shapes = jax.eval_shape(lambda: initial_state(model, optimizer, config))
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        shardings(shapes, mesh),
    )


def create_state(
    model: RC3,
    optimizer: optax.GradientTransformation,
    config: ml_collections.ConfigDict,
    mesh: Mesh,
) -> TrainState:
    """The initial state, made in place on the devices that keep it."""
    target = shardings(jax.eval_shape(lambda: initial_state(model, optimizer, config)), mesh)
    return jax.jit(lambda: initial_state(model, optimizer, config), out_shardings=target)()


def count_parameters(params: Any) -> int:
    """Number of scalars in a pytree of arrays."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
