"""AdamW with a decay mask, a higher rate for new parameters, and a warm-up schedule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import ml_collections
import optax

from rc3_jax.config import ConfigError
from rc3_jax.parallel.rules import matches, path_name


def schedule(config: ml_collections.ConfigDict, steps: int) -> optax.Schedule:
    """Linear warm-up over a share of the run, then `cosine`, `linear` or `constant`.

    Raises:
      ConfigError: for another name of the decay.
    """
    warmup = max(1, round(config.warmup * steps))
    rest, end = max(1, steps - warmup), config.lr * config.final_lr
    decays = {
        "cosine": optax.cosine_decay_schedule(config.lr, rest, alpha=config.final_lr),
        "linear": optax.linear_schedule(config.lr, end, rest),
        "constant": optax.constant_schedule(config.lr),
    }
    if config.decay not in decays:
        raise ConfigError(f"optimizer.decay={config.decay!r}: use one of {', '.join(decays)}")
    rise = optax.linear_schedule(config.lr / warmup, config.lr, warmup - 1)
    return optax.join_schedules([rise, decays[config.decay]], [warmup])


def mask(params: Any, patterns: Sequence[str], setting: str) -> Any:
    """True for every parameter whose path a pattern matches (a pytree like `params`).

    Raises:
      ConfigError: if a pattern matches no parameter, since it is then a mistake.
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
    config: ml_collections.ConfigDict, steps: int, params: Any, updates: int = 1
) -> optax.GradientTransformation:
    """Clips by global norm, then AdamW; `params` may be abstract.

    Parameters that `config.no_decay` names keep their size; those that an entry of
    `config.rates` names learn, and decay, at its factor times the rate.

    Args:
      updates: how many of them each of the `steps` makes, all at the step's rate.
    """
    rate_of = schedule(config, steps)
    no_decay = mask(params, config.no_decay, "optimizer.no_decay")
    rates = [
        optax.masked(
            optax.scale(rate.factor), mask(params, rate.parameters, f"optimizer.rates.{name}")
        )
        for name, rate in config.rates.items()
    ]
    return optax.chain(
        optax.clip_by_global_norm(config.clip),
        optax.scale_by_adam(config.b1, config.b2, config.eps, mu_dtype=config.mu_dtype),
        optax.add_decayed_weights(
            config.weight_decay, mask=jax.tree.map(lambda skip: not skip, no_decay)
        ),
        optax.scale_by_learning_rate(lambda count: rate_of(count // updates)),
        *rates,
    )
