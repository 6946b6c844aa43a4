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

from rc3_jax.models.heads import TEMPERATURE_RANGE, Projection
from rc3_jax.models.rc3 import RC3
from rc3_jax.objectives.rc3 import Objective, rc3_losses
from rc3_jax.objectives.relevance import RegularizerScales, check_forms, ramp
from rc3_jax.parallel.mesh import BATCH
from rc3_jax.parallel.rules import shardings
from rc3_jax.training.state import EMA_PARTS, TrainState

RELEVANCE_SOURCES = ("own", "ema")

Metrics = dict[str, Array]


def objective_of(config: ml_collections.ConfigDict) -> Objective:
    """The static objective that `config.objective` describes; raises ValueError on nonsense."""
    forms = tuple(config.regularizer)
    check_forms(forms)
    if config.relevance not in RELEVANCE_SOURCES:
        raise ValueError(
            f"objective.relevance={config.relevance!r}: use one of {', '.join(RELEVANCE_SOURCES)}"
        )
    return Objective(
        **config.weights,
        regularizer=forms,
        scales=RegularizerScales(**config.scales),
        same_image_negatives=config.same_image_negatives,
    )


def loss_function(
    model: RC3, config: ml_collections.ConfigDict
) -> Callable[..., tuple[Array, Metrics]]:
    """`(params, ema, step, batch) -> (loss, terms)`; its randomness comes from (seed, step)."""
    objective = objective_of(config.objective)
    ramp_steps = round(config.objective.ramp * config.steps)

    def loss(params, ema, step, batch):
        key = jax.random.fold_in(jax.random.key(config.seed), step)
        negatives, dropout = jax.random.split(key)
        losses = functools.partial(
            rc3_losses,
            objective=objective,
            weak_weight=ramp(step, ramp_steps),
            relevance_vectors=_ema_vectors(model, ema, batch, objective),
            deterministic=not config.model.dropout,
        )
        rngs = {"dropout": dropout}
        return nn.apply(losses, model)({"params": params}, batch, negatives, rngs=rngs)

    return loss


def _ema_vectors(model, ema, batch, objective):
    """Text vectors of the weak rows by the averaged text tower, where it tells relevance."""
    if ema is None or "weak" not in objective.contrasted(batch):
        return None

    def vectors(ids):
        states = model.text.apply({"params": ema["text"]}, ids)
        projection = Projection(model.projection_size)
        vectors = projection.apply({"params": ema["text_projection"]}, states[:, 0])
        return jax.lax.stop_gradient(vectors)

    return tuple(vectors(batch["weak"][name]) for name in ("ids_a", "ids_b"))


def make_step(
    model: RC3,
    optimizer: optax.GradientTransformation,
    config: ml_collections.ConfigDict,
    mesh: Mesh,
    state: TrainState,
) -> Callable[[TrainState, Mapping], tuple[TrainState, Metrics]]:
    """The jitted step; `state` may be abstract, and is donated.

    Parameters keep the shardings of `parallel.rules`, rows of the batch are spread over the
    mesh, metrics are replicated. All objectives see the rows of all devices.
    """
    loss = loss_function(model, config)

    def step(state: TrainState, batch: Mapping) -> tuple[TrainState, Metrics]:
        gradient_of = jax.value_and_grad(loss, has_aux=True)
        (_, terms), gradients = gradient_of(state.params, state.ema, state.step, batch)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = clamp_temperatures(optax.apply_updates(state.params, updates))
        ema = state.ema
        if ema is not None:
            # Short at first, so that the random start is soon forgotten.
            decay = jnp.minimum(config.objective.ema_decay, (1 + state.step) / (10 + state.step))
            current = {part: params[part] for part in EMA_PARTS}
            ema = jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, ema, current)
        metrics = terms | {
            "gradient_norm": optax.global_norm(gradients),
            "parameter_norm": optax.global_norm(params),
        }
        for name, value in params.items():
            if name.startswith("temperature_"):
                metrics[name] = value["value"]
        return TrainState(state.step + 1, params, opt_state, ema), metrics

    states = shardings(state, mesh)
    return jax.jit(
        step,
        in_shardings=(states, NamedSharding(mesh, BATCH)),
        out_shardings=(states, NamedSharding(mesh, PartitionSpec())),
        donate_argnums=0,
    )


def clamp_temperatures(params):
    """Keeps the learned temperatures inside `TEMPERATURE_RANGE` (METHOD.md section 1.7)."""
    return {
        name: jax.tree.map(lambda t: jnp.clip(t, *TEMPERATURE_RANGE), value)
        if name.startswith("temperature_")
        else value
        for name, value in params.items()
    }
