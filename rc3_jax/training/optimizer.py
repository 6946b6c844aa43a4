"""AdamW with a decay mask, a higher rate for new parameters, and a warm-up schedule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import jax
import optax
import pydantic

from rc3_jax.parallel.rules import matches, path_name
from rc3_jax.settings import ConfigError, Settings


class LrMultiplier(Settings):
    """The learning rate of some parameters."""

    factor: pydantic.NonNegativeFloat
    """Factor of their rate, and of their weight decay."""
    parameters: tuple[str, ...]
    """Regular expressions of their paths."""


class OptimizerSettings(Settings):
    """AdamW with warm-up and decay of the rate, after the gradient is clipped by its global norm."""

    lr: pydantic.PositiveFloat = 1e-4
    """Highest learning rate."""
    warmup: float = pydantic.Field(0.05, ge=0, le=1)
    """Share of the run in which the rate rises."""
    decay: Literal["cosine", "linear", "constant"] = "cosine"
    """Form of the decay after the warm-up."""
    final_lr: float = pydantic.Field(0.0, ge=0, le=1)
    """Share of `lr` at the end."""
    weight_decay: pydantic.NonNegativeFloat = 0.01
    """Decoupled weight decay."""
    b1: float = pydantic.Field(0.9, ge=0, lt=1)
    """Decay of the first moment."""
    b2: float = pydantic.Field(0.98, ge=0, lt=1)
    """Decay of the second moment."""
    eps: pydantic.PositiveFloat = 1e-8
    """Added to the root of the second moment."""
    clip: pydantic.NonNegativeFloat = 1.0
    """Greatest global norm of the gradient; 0 does not clip."""
    mu_dtype: str | None = None
    """Type of the first moment, such as `bfloat16`; None: float32."""
    lr_multipliers: dict[str, LrMultiplier] = pydantic.Field({})
    """Name -> parameters with a rate of their own; names may be added."""
    no_decay: tuple[str, ...] = (r"(?!(.*/)?(kernel|word_embedding/embedding|decoder)$).*",)
    """Regular expressions of the paths of parameters without weight decay; by default all but
    kernels and tables of words."""


def schedule(config: OptimizerSettings, steps: int) -> optax.Schedule:
    """The learning rate of each step: linear warm-up over a share of the run, then the decay."""
    warmup = max(1, round(config.warmup * steps))
    rest = max(1, steps - warmup)
    decays = {
        "cosine": optax.cosine_decay_schedule(config.lr, rest, alpha=config.final_lr),
        "linear": optax.linear_schedule(config.lr, config.lr * config.final_lr, rest),
        "constant": optax.constant_schedule(config.lr),
    }
    rise = optax.linear_schedule(config.lr / warmup, config.lr, warmup - 1)
    return optax.join_schedules([rise, decays[config.decay]], [warmup])


def mask(params: Any, patterns: Sequence[str], setting: str) -> Any:
    """True for every parameter whose path a pattern matches (a pytree like `params`).

    Raises:
      ConfigError: if a pattern matches no parameter, since that is a mistake.
    """
    names = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    idle = [pattern for pattern in patterns if not any(matches([pattern], n) for n in names)]
    if idle:
        raise ConfigError(
            f"{setting}: {', '.join(map(repr, idle))} matches no parameter; parameters are named "
            f"like {', '.join(names[:3])}"
        )
    return jax.tree_util.tree_map_with_path(
        lambda path, _: matches(patterns, path_name(path)), params
    )


def make_optimizer(
    config: OptimizerSettings, steps: int, params: Any, updates: int = 1
) -> optax.GradientTransformation:
    """Clips by global norm, then AdamW; `params` may be abstract.

    The weights that `config.no_decay` names do not decay; those that an entry of `config.lr_multipliers`
    names learn, and decay, at its factor times the rate.

    Args:
      updates: number of updates in each of the `steps`, all at the step's rate.

    Raises:
      ConfigError: if a pattern matches no parameter.
    """
    rate_of = schedule(config, steps)
    no_decay = mask(params, config.no_decay, "optimizer.no_decay")
    multipliers = [
        optax.masked(
            optax.scale(group.factor),
            mask(params, group.parameters, f"optimizer.lr_multipliers.{name}"),
        )
        for name, group in config.lr_multipliers.items()
    ]
    return optax.chain(
        optax.clip_by_global_norm(config.clip) if config.clip else optax.identity(),
        optax.scale_by_adam(config.b1, config.b2, config.eps, mu_dtype=config.mu_dtype),
        optax.add_decayed_weights(
            config.weight_decay, mask=jax.tree.map(lambda skip: not skip, no_decay)
        ),
        optax.scale_by_learning_rate(lambda count: rate_of(count // updates)),
        *multipliers,
    )
