"""What a run is made of: opened from a configuration, or read back from a run's folder."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import optax
from jax.sharding import Mesh

from rc3_jax.config import ConfigError, default_config
from rc3_jax.config_cclm import cclm_config
from rc3_jax.data.corpus import Corpus, open_corpus, run_tokenizer
from rc3_jax.data.record import Skips
from rc3_jax.data.stream import batch_rows
from rc3_jax.data.tokenizer import Tokenizer
from rc3_jax.evaluation.retrieval import MODES
from rc3_jax.models.pair import PairModel
from rc3_jax.parallel.mesh import check_batch, make_mesh
from rc3_jax.parallel.rules import laid_out
from rc3_jax.systems import abstract_encoder, parts_of, system_of
from rc3_jax.training.checkpoint import Checkpoints, load_params
from rc3_jax.training.optimizer import make_optimizer
from rc3_jax.training.start import check_vocabulary, load_start
from rc3_jax.training.state import EMA_PARTS, TrainState, initial_params

OPEN = ("sources", "rates")
"""Settings whose names are the user's."""


class Run(NamedTuple):
    """What a run is made of, before its first step."""

    config: ml_collections.ConfigDict
    mesh: Mesh
    corpus: Corpus
    tokenizer: Tokenizer
    model: PairModel
    optimizer: optax.GradientTransformation
    skips: Skips

    def initial_state(self, given: Any = None, encoder: Any = None) -> TrainState:
        """The state before the first step; a pure function of `config.seed` and of what is given.

        Args:
          given: parameters that are not drawn, by part; None draws all.
          encoder: parameters of the sentence encoder, where `objective.relevance` is "encoder".
        """
        params = initial_params(self.model, self.config) | (given or {})
        ema = encoder
        if self.config.objective.get("relevance") == "ema":
            ema = jax.tree.map(jnp.copy, {part: params[part] for part in EMA_PARTS})
        return TrainState(jnp.zeros((), jnp.int32), params, self.optimizer.init(params), ema)

    def abstract_params(self) -> Any:
        """Shapes, dtypes and shardings of the parameters; nothing is computed."""
        shapes = jax.eval_shape(lambda: initial_params(self.model, self.config))
        return laid_out(shapes, self.mesh, self.config.mesh)

    def abstract_state(self) -> TrainState:
        """Shapes, dtypes and shardings of the state; nothing is computed."""
        encoder = abstract_encoder(self.config, self.model.text.vocab_size)
        shapes = jax.eval_shape(self.initial_state, None, encoder)
        return laid_out(shapes, self.mesh, self.config.mesh)

    def create_state(self) -> TrainState:
        """The initial state, made in place on the devices that keep it.

        With `config.init` the parameters are those of that folder, as far as it has them.

        Raises:
          ConfigError: if a folder holds no parameters, or those of another model.
        """
        abstract = self.abstract_state()
        target = jax.tree.map(lambda leaf: leaf.sharding, abstract)
        given = None if self.config.init is None else load_start(self.config, abstract.params)
        encoder = None
        if self.config.objective.get("relevance") == "encoder":
            folder = pathlib.Path(self.config.objective.relevance_encoder)
            check_vocabulary(folder, self.tokenizer)
            encoder = load_params(folder, abstract.ema, parts=("text",))
        initial = jax.jit(self.initial_state, out_shardings=target, donate_argnums=(0, 1))
        return initial(given, encoder)


def prepare_run(config: ml_collections.ConfigDict, folder: pathlib.Path | None = None) -> Run:
    """Opens the data, finds or trains the tokenizer, builds model and optimizer.

    Args:
      folder: the run's folder; a tokenizer stored there is used again. None keeps nothing.

    Raises:
      DataError, ConfigError: for data or settings that cannot be, with the remedy.
    """
    _check(config)
    mesh = make_mesh(config.mesh)
    skips = Skips(config.data.skip_limit)
    corpus = open_corpus(config, skips)
    rows = batch_rows(config.batch_size, config.shares, list(corpus.pools))
    check_batch(rows, mesh, config.microbatches)
    tokenizer = run_tokenizer(config, corpus, folder)
    model, optimizer = model_and_optimizer(config, tokenizer.vocab_size, mesh, rows)
    return Run(config, mesh, corpus, tokenizer, model, optimizer, skips)


def model_and_optimizer(
    config: ml_collections.ConfigDict, vocab_size: int, mesh: Mesh, rows: Mapping[str, int]
) -> tuple[PairModel, optax.GradientTransformation]:
    """What `config` says, for batches with so many rows of each kind."""
    system = system_of(config)
    system.check(config)
    model = system.build(config.model, vocab_size, mesh)
    params = jax.eval_shape(lambda: initial_params(model, config))
    updates = len(parts_of(rows, system.updates(config)))
    return model, make_optimizer(config.optimizer, config.steps, params, updates)


def load_run(
    folder: pathlib.Path, config: ml_collections.ConfigDict | None = None
) -> tuple[Run, Any]:
    """Reads the newest checkpoint that `training.loop.train` left in a folder.

    Args:
      config: settings in place of the stored ones, for data that lie elsewhere now or for other
        devices; the model and the optimizer must be those of the run.

    Returns:
      The run with its data opened and its tokenizer read, and the parameters (a pytree),
      sharded over the run's mesh.

    Raises:
      ConfigError: if the folder holds no checkpoint.
      DataError, ValueError: as `prepare_run`; also if the checkpoint does not fit `config`.
    """
    if not (folder / "checkpoints").is_dir():
        raise ConfigError(f"{folder} holds no run; name the --workdir of one that has saved")
    if config is None:
        stored = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        config = ml_collections.FrozenConfigDict(with_defaults(stored))
    with Checkpoints(folder, config.checkpoint.every, config.checkpoint.keep) as checkpoints:
        if checkpoints.latest is None:
            raise ConfigError(
                f"{folder} holds no checkpoint yet; it saves its first after "
                f"checkpoint.every={config.checkpoint.every} steps"
            )
        newest = checkpoints.latest
    run = prepare_run(config, folder)
    return run, load_params(folder, run.abstract_params(), newest)


def with_defaults(stored: dict[str, Any]) -> dict[str, Any]:
    """The settings of a run, with today's defaults for those that it did not have yet."""

    def fill(settings, defaults):
        filled = dict(defaults) | settings
        for name, value in settings.items():
            if name not in OPEN and isinstance(value, dict) and name in defaults:
                filled[name] = fill(value, defaults[name])
        return filled

    defaults = cclm_config() if stored.get("system") == "cclm" else default_config()
    return fill(stored, json.loads(json.dumps(defaults.to_dict())))


def _check(config: ml_collections.ConfigDict) -> None:
    """Raises ConfigError for settings that no later part reads by itself."""
    unknown = set(config.evaluation.modes) - set(MODES)
    if unknown:
        raise ConfigError(
            f"evaluation.modes: {', '.join(sorted(unknown))} unknown; use {', '.join(MODES)}"
        )
    text = config.model.text
    room = text.max_positions - text.get("position_offset", 2)  # XLM-R's positions start at 2
    for name in ("max_length", "parallel_max_length"):
        if (config.data[name] or 0) > room:
            raise ConfigError(
                f"data.{name}={config.data[name]} exceeds the {room} tokens that "
                f"model.text.max_positions={text.max_positions} leaves; change either"
            )
    system_of(config).check(config)
