"""The systems that can be trained: how each is built, and what its steps minimise."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import ml_collections
from jax.sharding import Mesh
from jaxtyping import Array, Float

from rc3_jax.data.kinds import KINDS
from rc3_jax.data.shapes import example_batch
from rc3_jax.models.base import PairModel
from rc3_jax.models.cclm import build_cclm
from rc3_jax.models.compute import Compute
from rc3_jax.models.heads import Projection
from rc3_jax.models.rc3 import build_rc3
from rc3_jax.models.text import SentenceEncoder, TextSettings
from rc3_jax.objectives import cclm, rc3
from rc3_jax.objectives.cclm import UPDATES, cclm_losses, cclm_terms
from rc3_jax.objectives.rc3 import rc3_losses, rc3_terms
from rc3_jax.objectives.relevance import ramp
from rc3_jax.objectives.terms import Pair, Term
from rc3_jax.paths import as_path
from rc3_jax.settings import ConfigError, check_choice
from rc3_jax.stored_config import read_config

Loss = Callable[..., tuple[Float[Array, ""], Mapping[str, Float[Array, ""]]]]
"""`(params, ema, step, batch) -> (loss, metrics)`, `ema` being `TrainState.ema`; its randomness is a
function of (seed, step)."""


class System(NamedTuple):
    """A system as functions of the configuration.

    Attributes:
      image_text: its pair of images and texts.
      build: `(config.model, vocabulary size, mesh, temperatures, has_bias)` to a model; see
        `RC3ModelSettings.build`, and `build_model` for that of a run.
      terms: `config.objective` to all terms of the loss, in the order of the console line.
      loss: `(model, config, mesh)` to the loss of a step.
      updates: `config` to groups of kinds of rows, each with an update of its own, in order; the
        single group None takes all.
    """

    image_text: Pair
    build: Callable[..., PairModel]
    terms: Callable[[Any], tuple[Term, ...]]
    loss: Callable[[PairModel, Any, Mesh | None], Loss]
    updates: Callable[[Any], tuple[tuple[str, ...] | None, ...]]


def system_of(config: ml_collections.ConfigDict) -> System:
    """The system that a configuration is for.

    Raises:
      ConfigError: for an unknown one.
    """
    check_choice("system", config.system, SYSTEMS)
    return SYSTEMS[config.system]


def term_names(config: Any) -> list[str]:
    """The metrics that the loss sums, in the order of the console line."""
    terms = system_of(config).terms(config.objective)
    return [name for term in terms for name in (term.name, *term.more)]


def build_model(config: Any, vocab_size: int, mesh: Mesh | None) -> PairModel:
    """The model of a run, with the learned scalars of its terms."""
    system, objective = system_of(config), config.objective
    names = [name for t in system.terms(objective) if t.weight for name in t.temperatures]
    has_bias = objective.contrast == "sigmoid"
    return system.build(config.model, vocab_size, mesh, temperatures=names, has_bias=has_bias)


def abstract_params(system: str, model: Any, vocab_size: int, **scalars: Any) -> dict:
    """The shapes of a model's parameters; nothing is computed.

    Args:
      scalars: see `models.base.learned_scalars`.

    Raises:
      ConfigError: for sizes that no model can have.
    """
    built = SYSTEMS[system].build(model, vocab_size, None, **scalars)
    sizes = ml_collections.ConfigDict(dict(model=model, data=dict(max_length=4)))
    rows, ids = example_batch(sizes)
    return jax.eval_shape(built.init, jax.random.key(0), rows, ids)["params"]


def _random_keys(config, step) -> tuple[Array, Array]:
    """The keys of the negatives and of dropout."""
    key = jax.random.fold_in(jax.random.key(config.seed), step)
    negatives, dropout = jax.random.split(key)
    return negatives, dropout


def _options(config, mesh) -> dict[str, Any]:
    """The arguments that the losses of both systems share."""
    patch = config.model.patch
    rates = (getattr(patch, name, 0.0) for name in ("drop_path", "patch_dropout"))
    random = config.model.dropout or any(rates)
    options = dict(deterministic=not random, mesh=mesh, microbatches=config.microbatches)
    return options | dict(objective=config.objective)


def _rc3_loss(model, config, mesh) -> Loss:
    options = _options(config, mesh)
    ramp_steps, start = (
        round(share * config.steps)
        for share in (config.objective.ramp, config.objective.weak_start)
    )
    relevance = _relevance(model, config, mesh)

    def loss(params, ema, step, batch):
        negatives, dropout = _random_keys(config, step)
        vectors = relevance and functools.partial(relevance, ema)

        def losses(model):
            weight = ramp(step, ramp_steps, start)
            return rc3_losses(model, batch, negatives, weight, vectors, **options)

        return nn.apply(losses, model)({"params": params}, rngs={"dropout": dropout})

    return loss


def _relevance(model, config, mesh) -> Callable | None:
    """`(TrainState.ema, ids)` to the relevance vectors of texts; None where no other model gives it."""
    if config.objective.relevance in ("own", "true"):
        return None
    if config.objective.relevance == "encoder":
        encoder = relevance_encoder(config, model.text.vocab_size, mesh)
        return lambda params, ids: encoder.apply({"params": params}, ids)

    def averaged(params, ids):
        states = model.text.apply({"params": params["text"]}, ids)
        projection = Projection(model.projection_size)
        return projection.apply({"params": params["text_projection"]}, states[:, 0])

    return averaged


def relevance_encoder(
    config: ml_collections.ConfigDict, vocab_size: int, mesh: Mesh | None
) -> SentenceEncoder:
    """The fixed encoder that `objective.relevance_encoder` names, without its parameters.

    Raises:
      ConfigError: if the folder is none of a text tower, or has another vocabulary.
    """
    settings = encoder_settings(config)
    if settings["vocab_size"] != vocab_size:
        raise ConfigError(
            f"{config.objective.relevance_encoder} has a vocabulary of {settings['vocab_size']} "
            f"pieces and the run one of {vocab_size}; convert it with the run's --corpus and "
            "--languages"
        )
    text = TextSettings.parse(settings["text"], "model.text")
    if config.data.max_length > text.room:
        raise ConfigError(
            f"{config.objective.relevance_encoder} reads {text.room} tokens at most, and texts have "
            f"data.max_length={config.data.max_length}; change it or the encoder"
        )
    check_choice("pooling of the sentence encoder", settings["pooling"], ("mean", "cls"))
    fixed = dataclasses.replace(Compute.of(config.model, mesh), dropout=0.0, remat="none")
    return SentenceEncoder(text.build(vocab_size, fixed), settings["pooling"])


def abstract_encoder(config: ml_collections.ConfigDict, vocab_size: int) -> dict | None:
    """The shapes of the parameters of `relevance_encoder`; None where the run has none."""
    if getattr(config.objective, "relevance", None) != "encoder":
        return None
    encoder = relevance_encoder(config, vocab_size, None)
    ids = jax.ShapeDtypeStruct((1, 4), "int32")
    return jax.eval_shape(encoder.init, jax.random.key(0), ids)["params"]


def encoder_settings(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """`config.json` of the folder that `objective.relevance_encoder` names.

    Raises:
      ConfigError: if it is none that `convert.py from-hf` made of a sentence encoder.
    """
    folder = as_path(config.objective.relevance_encoder, "objective.relevance_encoder")
    try:
        settings = read_config(folder)
        return {
            "text": settings["model"]["text"],
            "vocab_size": settings["vocab_size"],
            "pooling": settings["pooling"],
        }
    except (ConfigError, KeyError, TypeError) as error:
        raise ConfigError(
            f"objective.relevance_encoder: {folder}/config.json cannot be read as that of a sentence "
            f"encoder ({error!r}); make the folder with launch/convert.py from-hf --text=..."
        ) from error


def _cclm_loss(model, config, mesh) -> Loss:
    options = _options(config, mesh)

    def loss(params, ema, step, batch):
        del ema
        negatives, dropout = _random_keys(config, step)
        if config.objective.step == "separate":  # each update drops out anew
            first = min(list(KINDS).index(kind) for kind in batch)
            dropout = jax.random.fold_in(dropout, first)

        def losses(model):
            return cclm_losses(model, batch, negatives, **options)

        return nn.apply(losses, model)({"params": params}, rngs={"dropout": dropout})

    return loss


def _cclm_updates(config) -> tuple[tuple[str, ...] | None, ...]:
    if config.objective.step == "summed":
        return (None,)
    used = {kind for t in cclm_terms(config.objective) if t.weight for kind in t.kinds}
    return tuple(kinds for kinds in UPDATES if used & set(kinds))


SYSTEMS = {
    "rc3": System(
        image_text=rc3.IMAGE_TEXT,
        build=build_rc3,
        terms=rc3_terms,
        loss=_rc3_loss,
        updates=lambda config: (None,),
    ),
    "cclm": System(
        image_text=cclm.IMAGE_TEXT,
        build=build_cclm,
        terms=cclm_terms,
        loss=_cclm_loss,
        updates=_cclm_updates,
    ),
}
