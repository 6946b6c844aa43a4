"""What a pre-training run is made of, opened from its configuration."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax
from jax.sharding import Mesh

from rc3_jax.config import PretrainSettings, validate
from rc3_jax.data.corpus import Corpus, open_corpus, run_tokenizer
from rc3_jax.data.record import Skips
from rc3_jax.data.stream import batch_rows
from rc3_jax.data.tokenizer import Tokenizer
from rc3_jax.models.base import PairModel
from rc3_jax.models.compute import Compute
from rc3_jax.objectives.rc3 import RC3Objective
from rc3_jax.parallel.mesh import check_batch, make_mesh
from rc3_jax.parallel.rules import with_shardings
from rc3_jax.paths import as_path
from rc3_jax.systems import abstract_encoder, build_model, system_of
from rc3_jax.training.checkpoint import load_params
from rc3_jax.training.optimizer import make_optimizer, schedule
from rc3_jax.training.state import EMA_PARTS, TrainState, ema_update, initial_params
from rc3_jax.training.step import TrainStep, split_by_kind
from rc3_jax.training.warm_start import check_vocabulary, load_warm_start


@dataclasses.dataclass(frozen=True, eq=False)
class RunModel:
    """What a run's step is made of: all but its data."""

    config: PretrainSettings
    mesh: Mesh
    model: PairModel
    optimizer: optax.GradientTransformation

    def initial_state(self, given: Any = None, encoder: Any = None) -> TrainState:
        """The state before the first step; a pure function of `config.seed` and the arguments.

        Args:
          given: parameters that are not drawn, by part; None draws all.
          encoder: parameters of the sentence encoder, where `objective.relevance` is "encoder".
        """
        params = initial_params(self.model, self.config) | (given or {})
        ema = encoder
        if self._average is not None:
            ema = jax.tree.map(jnp.copy, {part: params[part] for part in EMA_PARTS})
        return TrainState(jnp.zeros((), jnp.int32), params, self.optimizer.init(params), ema)

    @functools.cached_property
    def abstract_state(self) -> TrainState:
        """Shapes, dtypes and shardings of the state; nothing is computed."""
        encoder = abstract_encoder(self.config, self.model.text.vocab_size)
        shapes = jax.eval_shape(self.initial_state, None, encoder)
        return with_shardings(shapes, self.mesh, self.config.mesh)

    def train_step(self) -> TrainStep:
        """The step; all objectives see the rows of all devices."""
        system = system_of(self.config)
        rate_of = schedule(self.config.optimizer, self.config.steps)
        return TrainStep(
            system.loss(self.model, self.config, self.mesh),
            self.optimizer,
            self.abstract_state,
            self.mesh,
            lambda state: rate_of(state.step),
            system.updates(self.config),
            self._average,
        )

    @property
    def _average(self) -> Callable[[Any, Any, jax.Array], Any] | None:
        """The new average of the parameters, see `ema_update`; None where none is kept."""
        objective = self.config.objective
        if isinstance(objective, RC3Objective) and objective.relevance == "ema":
            return ema_update(objective.ema_decay)
        return None


@dataclasses.dataclass(frozen=True, eq=False)
class Run(RunModel):
    """What a run is made of, before its first step."""

    corpus: Corpus
    tokenizer: Tokenizer
    skips: Skips

    def create_state(self) -> TrainState:
        """The initial state, made in place on the devices that keep it.

        With `config.init`, the parameters are those of that folder, as far as it has them.

        Raises:
          ConfigError: if a folder holds no parameters, or those of another model.
        """
        abstract = self.abstract_state
        target = jax.tree.map(lambda leaf: leaf.sharding, abstract)
        given = None if self.config.init is None else load_warm_start(self.config, abstract.params)
        encoder = None
        if name := getattr(self.config.objective, "relevance_encoder", None):
            check_vocabulary(as_path(name), self.tokenizer)
            encoder = load_params(as_path(name), abstract.ema, parts=("text",))
        initial = jax.jit(self.initial_state, out_shardings=target, donate_argnums=(0, 1))
        return initial(given, encoder)


def prepare_run(
    config: ml_collections.ConfigDict | PretrainSettings,
    folder: pathlib.Path | None = None,
    skips: Skips | None = None,
) -> Run:
    """Checks the settings, opens the data, finds or trains the tokenizer, builds the model.

    Args:
      folder: the run's folder; a tokenizer stored there is used again. None keeps nothing.
      skips: takes note of unusable records, also where they are too many; None makes one.

    Raises:
      DataError, ConfigError: for invalid data or settings, with the remedy.
    """
    config = validate(config)
    mesh = make_mesh(config.mesh)
    Compute.of(config.model, mesh)  # what the devices do not have is refused before data are read
    skips = skips or Skips(config.data.skip_limit)
    corpus = open_corpus(config, skips)
    rows = batch_rows(config.batch_size, config.batch_mix, list(corpus.pools))
    check_batch(rows, mesh, config.microbatches)
    tokenizer = run_tokenizer(config, corpus, folder, skips)
    model, optimizer = model_and_optimizer(config, tokenizer.vocab_size, mesh, rows)
    return Run(config, mesh, model, optimizer, corpus, tokenizer, skips)


def model_and_optimizer(
    config: PretrainSettings, vocab_size: int, mesh: Mesh, rows: Mapping[str, int]
) -> tuple[PairModel, optax.GradientTransformation]:
    """The model and the optimizer, for batches with so many rows of each kind."""
    system = system_of(config)
    model = build_model(config, vocab_size, mesh)
    params = jax.eval_shape(lambda: initial_params(model, config))
    updates = len(split_by_kind(rows, system.updates(config)))
    return model, make_optimizer(config.optimizer, config.steps, params, updates)
