"""One training step: a pure function of (state, batch), compiled once for the whole mesh."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from rc3_jax.models.heads import Projection
from rc3_jax.models.rc3 import RC3, TEMPERATURE_RANGE
from rc3_jax.objectives.rc3 import contrasted, rc3_losses
from rc3_jax.objectives.relevance import ramp
from rc3_jax.parallel.mesh import BATCH
from rc3_jax.parallel.rules import shardings
from rc3_jax.training.run import Run
from rc3_jax.training.state import EMA_PARTS, TrainState

Metrics = dict[str, Array]


def loss_function(
    model: RC3, config: ml_collections.ConfigDict, mesh: Mesh | None = None
) -> Callable[..., tuple[Array, Metrics]]:
    """`(params, ema, step, batch) -> (loss, terms)`; its randomness comes from (seed, step)."""
    ramp_steps = round(config.objective.ramp * config.steps)

    def loss(params, ema, step, batch):
        key = jax.random.fold_in(jax.random.key(config.seed), step)
        negatives, dropout = jax.random.split(key)
        losses = functools.partial(
            rc3_losses,
            objective=config.objective,
            weak_weight=ramp(step, ramp_steps),
            relevance_vectors=_ema_vectors(model, ema, batch, config.objective),
            deterministic=not config.model.dropout,
            mesh=mesh,
            microbatches=config.microbatches,
        )
        rngs = {"dropout": dropout}
        return nn.apply(losses, model)({"params": params}, batch, negatives, rngs=rngs)

    return loss


def _ema_vectors(model, ema, batch, objective):
    """Text vectors of the weak rows by the averaged text tower, where it tells relevance."""
    if ema is None or "weak" not in contrasted(objective, batch):
        return None

    def vectors(ids):
        states = model.text.apply({"params": ema["text"]}, ids)
        projection = Projection(model.projection_size)
        vectors = projection.apply({"params": ema["text_projection"]}, states[:, 0])
        return jax.lax.stop_gradient(vectors)

    return tuple(vectors(batch["weak"][name]) for name in ("ids_a", "ids_b"))


def make_step(
    run: Run, state: TrainState
) -> Callable[[TrainState, Mapping], tuple[TrainState, Metrics]]:
    """The jitted step; `state` may be abstract, and is donated.

    Parameters keep the shardings of `parallel.rules`, rows of the batch are spread over the
    mesh, metrics are replicated. All objectives see the rows of all devices.
    """
    loss = loss_function(run.model, run.config, run.mesh)

    def step(state: TrainState, batch: Mapping) -> tuple[TrainState, Metrics]:
        gradient_of = jax.value_and_grad(loss, has_aux=True)
        (_, terms), gradients = gradient_of(state.params, state.ema, state.step, batch)
        updates, opt_state = run.optimizer.update(gradients, state.opt_state, state.params)
        params = clamp_temperatures(optax.apply_updates(state.params, updates))
        ema = state.ema
        if ema is not None:
            # Short at first, so that the random start is soon forgotten.
            decay = jnp.minimum(
                run.config.objective.ema_decay, (1 + state.step) / (10 + state.step)
            )
            current = {part: params[part] for part in EMA_PARTS}
            ema = jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, ema, current)
        metrics = terms | {
            "gradient_norm": optax.tree.norm(gradients),
            "parameter_norm": optax.tree.norm(params),
        }
        for name, value in params.items():
            if name.startswith("temperature_"):
                metrics[name] = value
        return TrainState(state.step + 1, params, opt_state, ema), metrics

    states = shardings(state, run.mesh, run.config.mesh)
    return jax.jit(
        step,
        in_shardings=(states, NamedSharding(run.mesh, BATCH)),
        out_shardings=(states, NamedSharding(run.mesh, PartitionSpec())),
        donate_argnums=0,
    )


def clamp_temperatures(params):
    """Keeps the learned temperatures inside `TEMPERATURE_RANGE` (METHOD.md section 1.7)."""
    return {
        name: jnp.clip(value, *TEMPERATURE_RANGE) if name.startswith("temperature_") else value
        for name, value in params.items()
    }
