"""The systems that can be trained: how each is built, and what its steps minimise."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import flax.linen as nn
import jax
import ml_collections
from jax.sharding import Mesh
from jaxtyping import Array, Float

from rc3_jax.config import check_choice
from rc3_jax.models.cclm import build_cclm
from rc3_jax.models.heads import Projection
from rc3_jax.models.pair import PairModel
from rc3_jax.models.rc3 import build_rc3
from rc3_jax.objectives.cclm import UPDATES, cclm_losses
from rc3_jax.objectives.rc3 import contrasted, rc3_losses
from rc3_jax.objectives.relevance import check_forms, ramp
from rc3_jax.objectives.tiles import TRANSPORTS

RELEVANCE_SOURCES = ("own", "ema")
STEPS = ("summed", "separate")
NEGATIVES = ("global", "local")

Loss = Callable[..., tuple[Float[Array, ""], Mapping[str, Float[Array, ""]]]]
"""`(params, ema, step, batch) -> (loss, terms)`; its randomness comes from (seed, step)."""


class System(NamedTuple):
    """A system by its functions of the configuration.

    Attributes:
      build: `(config.model, vocabulary size, mesh)` to a model.
      loss: `(model, config, mesh)` to the loss of a step.
      check: raises ConfigError for objectives that cannot be.
      updates: `config` to groups of kinds of rows, each with an update of its own, in order; the
        single group None takes all.
    """

    build: Callable[[ml_collections.ConfigDict, int, Mesh | None], PairModel]
    loss: Callable[[PairModel, ml_collections.ConfigDict, Mesh | None], Loss]
    check: Callable[[ml_collections.ConfigDict], None]
    updates: Callable[[ml_collections.ConfigDict], tuple[tuple[str, ...] | None, ...]]


def system_of(config: ml_collections.ConfigDict) -> System:
    """The system that a configuration is for.

    Raises:
      ConfigError: for an unknown one.
    """
    check_choice("system", config.system, SYSTEMS)
    return SYSTEMS[config.system]


def parts_of(batch: Mapping, groups: tuple[tuple[str, ...] | None, ...]) -> list[dict]:
    """The parts of a batch that each make an update; see `System.updates`."""
    parts = [
        {kind: rows for kind, rows in batch.items() if group is None or kind in group}
        for group in groups
    ]
    return [part for part in parts if part]


def _random_keys(config, step) -> tuple[Array, Array]:
    """Of the negatives and of dropout."""
    return tuple(jax.random.split(jax.random.fold_in(jax.random.key(config.seed), step)))


def _rc3_loss(model, config, mesh) -> Loss:
    ramp_steps = round(config.objective.ramp * config.steps)

    def loss(params, ema, step, batch):
        negatives, dropout = _random_keys(config, step)

        def losses(model):
            return rc3_losses(
                model,
                batch,
                negatives,
                config.objective,
                weak_weight=ramp(step, ramp_steps),
                relevance_vectors=vectors,
                deterministic=not config.model.dropout,
                mesh=mesh,
                microbatches=config.microbatches,
            )

        vectors = _ema_vectors(model, ema, batch, config.objective)
        return nn.apply(losses, model)({"params": params}, rngs={"dropout": dropout})

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


def _check_rc3(config) -> None:
    _check_pairs(config)
    check_forms(config.objective.regularizer)
    check_choice("objective.relevance", config.objective.relevance, RELEVANCE_SOURCES)


def _cclm_loss(model, config, mesh) -> Loss:
    deterministic = not (config.model.dropout or config.model.patch.get("drop_path", 0.0))

    def loss(params, ema, step, batch):
        del ema
        negatives, dropout = _random_keys(config, step)

        def losses(model):
            return cclm_losses(
                model,
                batch,
                negatives,
                config.objective,
                deterministic=deterministic,
                mesh=mesh,
                microbatches=config.microbatches,
            )

        return nn.apply(losses, model)({"params": params}, rngs={"dropout": dropout})

    return loss


def _check_cclm(config) -> None:
    _check_pairs(config)
    check_choice("objective.step", config.objective.step, STEPS)
    check_choice("objective.negatives", config.objective.negatives, NEGATIVES)


def _cclm_updates(config) -> tuple[tuple[str, ...] | None, ...]:
    return UPDATES if config.objective.step == "separate" else (None,)


def _check_pairs(config) -> None:
    check_choice("objective.pairs.transport", config.objective.pairs.transport, TRANSPORTS)


SYSTEMS = {
    "rc3": System(build_rc3, _rc3_loss, _check_rc3, lambda config: (None,)),
    "cclm": System(build_cclm, _cclm_loss, _check_cclm, _cclm_updates),
}
