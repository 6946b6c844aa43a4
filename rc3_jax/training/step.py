"""One training step: a pure function of (state, batch), compiled once for the whole mesh."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from rc3_jax.models.base import TEMPERATURE_RANGE, is_temperature
from rc3_jax.observe.log import Say
from rc3_jax.parallel.mesh import BATCH
from rc3_jax.training.memory import describe_memory
from rc3_jax.training.state import TrainState

Batch = Mapping[str, Any]
Metrics = dict[str, Array]
LossFn = Callable[[Any, Any, Array, Batch], tuple[Float[Array, ""], Mapping[str, Array]]]
"""`(params, ema, step, batch) -> (loss, terms)`; its randomness comes from a seed and the step."""


class TrainStep:
    """The jitted step. `compile` compiles it ahead of the first call, so that it cannot compile again.

    Parameters keep their shardings, rows of the batch are spread over the mesh, metrics are
    replicated. The state is donated.

    Args:
      state: shapes and shardings of the state, as `parallel.rules.with_shardings` returns them.
      learning_rate: the rate of a state's next update, for the metrics.
      groups: kinds of rows that make an update of their own, in order; None takes all kinds.
      average: `(ema, params, step) -> ema`, the new average of the parameters; None keeps `ema`.
    """

    def __init__(
        self,
        loss: LossFn,
        optimizer: optax.GradientTransformation,
        state: TrainState,
        mesh: Mesh,
        learning_rate: Callable[[TrainState], Any],
        groups: Sequence[Sequence[str] | None] = (None,),
        average: Callable[[Any, Any, Array], Any] | None = None,
    ):
        gradient_of = jax.value_and_grad(loss, has_aux=True)

        def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
            params, opt_state = state.params, state.opt_state
            metrics: Metrics = {}
            norms, losses = [], []
            for part in split_by_kind(batch, groups):
                params = clamp_temperatures(params)
                (value, terms), gradients = gradient_of(params, state.ema, state.step, part)
                updates, opt_state = optimizer.update(gradients, opt_state, params)
                params = optax.apply_updates(params, updates)
                metrics |= terms
                norms.append(optax.tree.norm(gradients))
                losses.append(value)
            params = clamp_temperatures(params)
            metrics |= {k: v for k, v in params.items() if k.startswith("temperature")}
            metrics |= {
                "loss": sum(losses),
                "gradient_norm": jnp.linalg.norm(jnp.stack(norms)),
                "parameter_norm": optax.tree.norm(params),
                "learning_rate": jnp.asarray(learning_rate(state)),
            }
            ema = state.ema if average is None else average(state.ema, params, state.step)
            return TrainState(state.step + 1, params, opt_state, ema), metrics

        places = jax.tree.map(lambda leaf: leaf.sharding, state)
        self._abstract = state
        self._jitted = jax.jit(
            step,
            in_shardings=(places, NamedSharding(mesh, BATCH)),
            out_shardings=(places, NamedSharding(mesh, PartitionSpec())),
            donate_argnums=0,
        )
        self._compiled: jax.stages.Compiled | None = None

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        """The next state and the metrics of the batch: the loss, its terms, norms, temperatures, rate."""
        return (self._compiled or self._jitted)(state, batch)

    def lower(self, batch: Batch) -> jax.stages.Lowered:
        """The step lowered for such batches, which may be abstract."""
        return self._jitted.lower(self._abstract, batch)

    def compile(self, batch: Batch, say: Say = lambda line: None) -> jax.stages.Compiled:
        """Compiles the step for such batches, unless that was done before."""
        if self._compiled is None:
            say('compiling the step, which can take minutes; "Very slow compile?" is no error')
            begun = time.perf_counter()
            compiled = self.lower(batch).compile()
            say(f"compiled the step in {time.perf_counter() - begun:.1f} s")
            say(describe_memory(compiled))
            self._compiled = compiled
        return self._compiled


def split_by_kind(batch: Batch, groups: Sequence[Sequence[str] | None]) -> list[Batch]:
    """The parts of a batch that each make an update; groups without rows are left out."""
    parts = [
        batch if group is None else {k: rows for k, rows in batch.items() if k in group}
        for group in groups
    ]
    return [part for part in parts if part]


def clamp_temperatures(params):
    """Keeps the learned temperatures inside `TEMPERATURE_RANGE` (METHOD.md section 1.7)."""
    return {
        name: jnp.clip(value, *TEMPERATURE_RANGE) if is_temperature(name) else value
        for name, value in params.items()
    }
