"""The systems that can be trained: how each is built, and what its steps minimise."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import ml_collections
from jax.sharding import Mesh
from jaxtyping import Array, Float

from rc3_jax.config import ConfigError, check_choice, stored_settings
from rc3_jax.config_cclm import visual_grid
from rc3_jax.data.example import example_batch
from rc3_jax.data.stream import KINDS
from rc3_jax.data.tokenizer import PAD_ID
from rc3_jax.models.cclm import build_cclm
from rc3_jax.models.heads import Projection
from rc3_jax.models.pair import PairModel
from rc3_jax.models.rc3 import build_rc3
from rc3_jax.models.sentence import SentenceEncoder, build_sentence_encoder
from rc3_jax.models.towers import check_tower
from rc3_jax.objectives.cclm import UPDATES, cclm_losses
from rc3_jax.objectives.rc3 import contrasted, rc3_losses
from rc3_jax.objectives.relevance import check_forms, ramp
from rc3_jax.objectives.tiles import TRANSPORTS

RELEVANCE_SOURCES = ("own", "ema", "encoder")
STEPS = ("summed", "separate")
NEGATIVES = ("global", "local")

Loss = Callable[..., tuple[Float[Array, ""], Mapping[str, Float[Array, ""]]]]
"""`(params, ema, step, batch) -> (loss, terms)`, `ema` being `TrainState.ema`; its randomness comes
from (seed, step)."""


class System(NamedTuple):
    """A system by its functions of the configuration.

    Attributes:
      build: `(config.model, vocabulary size, mesh)` to a model.
      loss: `(model, config, mesh)` to the loss of a step.
      check: raises ConfigError for settings that cannot be.
      kinds: the rows that it can train on.
      updates: `config` to groups of kinds of rows, each with an update of its own, in order; the
        single group None takes all.
    """

    build: Callable[[ml_collections.ConfigDict, int, Mesh | None], PairModel]
    loss: Callable[[PairModel, ml_collections.ConfigDict, Mesh | None], Loss]
    check: Callable[[ml_collections.ConfigDict], None]
    kinds: tuple[str, ...]
    updates: Callable[[ml_collections.ConfigDict], tuple[tuple[str, ...] | None, ...]]


def system_of(config: ml_collections.ConfigDict) -> System:
    """The system that a configuration is for.

    Raises:
      ConfigError: for an unknown one.
    """
    check_choice("system", config.system, SYSTEMS)
    return SYSTEMS[config.system]


def abstract_params(system: str, model: ml_collections.ConfigDict, vocab_size: int) -> dict:
    """The shapes of a model's parameters; nothing is computed.

    Raises:
      ConfigError: for sizes that no model can have.
    """
    built = SYSTEMS[system].build(model, vocab_size, None)
    sizes = ml_collections.ConfigDict(dict(model=model, data=dict(max_length=4)))
    rows, ids = example_batch(sizes)
    return jax.eval_shape(built.init, jax.random.key(0), rows, ids)["params"]


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


def _options(config, mesh) -> dict[str, Any]:
    """What the losses of all systems are given."""
    random = config.model.dropout or config.model.patch.get("drop_path", 0.0)
    return dict(deterministic=not random, mesh=mesh, microbatches=config.microbatches)


def _rc3_loss(model, config, mesh) -> Loss:
    ramp_steps = round(config.objective.ramp * config.steps)
    vectors = _relevance(model, config, mesh)

    def loss(params, ema, step, batch):
        negatives, dropout = _random_keys(config, step)
        told = None
        if vectors is not None and "weak" in contrasted(config.objective, batch):
            ids = (batch["weak"][name] for name in ("ids_a", "ids_b"))
            told = tuple(jax.lax.stop_gradient(vectors(ema, texts)) for texts in ids)
        losses = functools.partial(
            rc3_losses,
            objective=config.objective,
            weak_weight=ramp(step, ramp_steps),
            relevance_vectors=told,
            **_options(config, mesh),
        )
        rngs = {"dropout": dropout}
        return nn.apply(losses, model)({"params": params}, batch, negatives, rngs=rngs)

    return loss


def _relevance(model, config, mesh) -> Callable | None:
    """`(TrainState.ema, ids)` to the text vectors that tell the relevance of weak texts.

    None where the model's own tell it.
    """
    if config.objective.relevance == "own":
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
    text = ml_collections.ConfigDict(settings["text"])
    if config.data.max_length > text.max_positions - PAD_ID - 1:
        raise ConfigError(
            f"{config.objective.relevance_encoder} reads {text.max_positions - PAD_ID - 1} tokens at "
            f"most, and texts have data.max_length={config.data.max_length}; change it or the encoder"
        )
    return build_sentence_encoder(text, settings["pooling"], config.model, vocab_size, mesh)


def abstract_encoder(config: ml_collections.ConfigDict, vocab_size: int) -> dict | None:
    """The shapes of the parameters of `relevance_encoder`; None where the run has none."""
    if config.objective.get("relevance") != "encoder":
        return None
    encoder = relevance_encoder(config, vocab_size, None)
    ids = jax.ShapeDtypeStruct((1, 4), "int32")
    return jax.eval_shape(encoder.init, jax.random.key(0), ids)["params"]


def encoder_settings(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """`config.json` of the folder that `objective.relevance_encoder` names.

    Raises:
      ConfigError: if it is none that `convert.py from-hf` made of a sentence encoder.
    """
    folder = pathlib.Path(config.objective.relevance_encoder)
    try:
        settings = stored_settings(folder)
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


def _check_rc3(config) -> None:
    _check_objective(config, "regularizer")
    for name, same in (
        ("parallel_max_length", "max_length"),
        ("parallel_most_masked", "most_masked"),
    ):
        if config.data[name] not in (None, config.data[same]):
            raise ConfigError(
                f"data.{name}={config.data[name]}: the texts of RC³ have one length; leave it out"
            )
    check_forms(config.objective.regularizer)
    check_choice("objective.relevance", config.objective.relevance, RELEVANCE_SOURCES)
    encoder = config.objective.get("relevance_encoder")
    if (encoder is not None) != (config.objective.relevance == "encoder"):
        raise ConfigError(
            f"objective.relevance={config.objective.relevance!r} with "
            f"objective.relevance_encoder={encoder!r}: 'encoder' needs the folder of one, and "
            "nothing else has a use for it"
        )


def _cclm_loss(model, config, mesh) -> Loss:
    losses = functools.partial(cclm_losses, objective=config.objective, **_options(config, mesh))

    def loss(params, ema, step, batch):
        del ema
        negatives, dropout = _random_keys(config, step)
        if config.objective.step == "separate":  # each update drops out anew
            first = min(KINDS.index(kind) for kind in batch)
            dropout = jax.random.fold_in(dropout, first)
        rngs = {"dropout": dropout}
        return nn.apply(losses, model)({"params": params}, batch, negatives, rngs=rngs)

    return loss


def _check_cclm(config) -> None:
    _check_objective(config, "step")
    if config.evaluation.dependence_rows:
        raise ConfigError(
            f"evaluation.dependence_rows={config.evaluation.dependence_rows}: CCLM has no fused "
            "vector whose dependence could be measured; set it to 0"
        )
    check_tower(config.model.patch)
    grid = visual_grid(config.model.patch)
    if config.shares.region and config.data.regions.grid != grid:
        raise ConfigError(
            f"data.regions.grid={config.data.regions.grid}: the visual tower has {grid} x {grid} "
            f"patches; set it to {grid}"
        )
    check_choice("objective.step", config.objective.step, STEPS)
    check_choice("objective.negatives", config.objective.negatives, NEGATIVES)


def _cclm_updates(config) -> tuple[tuple[str, ...] | None, ...]:
    if config.objective.step == "summed":
        return (None,)
    weights = config.objective.weights
    return tuple(kinds for view, kinds in UPDATES.items() if any(weights[view].values()))


def _check_objective(config, own: str) -> None:
    if own not in config.objective:
        raise ConfigError(
            f"system={config.system!r} needs settings of its own, and these are another system's; "
            "start from default_config() of rc3_jax/config.py for rc3, from cclm_config() of "
            "rc3_jax/config_cclm.py for cclm"
        )
    known = SYSTEMS[config.system].kinds
    for kind, share in config.shares.items():
        if share and kind not in known:
            raise ConfigError(
                f"shares.{kind}={share}: {config.system} has no use for {kind} rows; set it to 0 "
                f"(it trains on {', '.join(known)})"
            )
    check_choice("objective.pairs.transport", config.objective.pairs.transport, TRANSPORTS)


SYSTEMS = {
    "rc3": System(
        build_rc3, _rc3_loss, _check_rc3, ("strict", "weak", "parallel"), lambda config: (None,)
    ),
    "cclm": System(build_cclm, _cclm_loss, _check_cclm, KINDS, _cclm_updates),
}
