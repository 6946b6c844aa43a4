"""One training step: a pure function of (state, batch), compiled once for the whole mesh."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array

from rc3_jax.models.pair import TEMPERATURE_RANGE
from rc3_jax.parallel.mesh import BATCH
from rc3_jax.parallel.rules import shardings
from rc3_jax.systems import parts_of, system_of
from rc3_jax.training.run import Run
from rc3_jax.training.state import EMA_PARTS, TrainState

Metrics = dict[str, Array]


def make_step(
    run: Run, state: TrainState
) -> Callable[[TrainState, Mapping], tuple[TrainState, Metrics]]:
    """The jitted step; `state` may be abstract, and is donated.

    Parameters keep the shardings of `parallel.rules`, rows of the batch are spread over the
    mesh, metrics are replicated. All objectives see the rows of all devices.
    """
    config = run.config
    system = system_of(config)
    gradient_of = jax.value_and_grad(system.loss(run.model, config, run.mesh), has_aux=True)

    def step(state: TrainState, batch: Mapping) -> tuple[TrainState, Metrics]:
        params, opt_state, metrics, norms, losses = state.params, state.opt_state, {}, [], []
        for part in parts_of(batch, system.updates(config)):
            params = clamp_temperatures(params)
            (loss, terms), gradients = gradient_of(params, state.ema, state.step, part)
            updates, opt_state = run.optimizer.update(gradients, opt_state, params)
            params = optax.apply_updates(params, updates)
            metrics |= terms
            norms.append(optax.tree.norm(gradients))
            losses.append(loss)
        params = clamp_temperatures(params)
        metrics |= {k: v for k, v in params.items() if k.startswith("temperature")}
        ema = state.ema
        if config.objective.get("relevance") == "ema":
            # Short at first, so that the random start is soon forgotten.
            decay = jnp.minimum(config.objective.ema_decay, (1 + state.step) / (10 + state.step))
            current = {part: params[part] for part in EMA_PARTS}
            ema = jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, ema, current)
        metrics |= {
            "loss": sum(losses),
            "gradient_norm": jnp.linalg.norm(jnp.stack(norms)),
            "parameter_norm": optax.tree.norm(params),
        }
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
        name: jnp.clip(value, *TEMPERATURE_RANGE) if name.startswith("temperature") else value
        for name, value in params.items()
    }
