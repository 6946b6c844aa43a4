"""R-XVtCL on weak rows: the proximity of two visio-textual inputs follows the relevance of
their texts (METHOD.md section 2). That proximity is so constrained is published; the forms
here are this project's.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import ml_collections
from jaxtyping import Array, Float, Int

from rc3_jax.config import ConfigError
from rc3_jax.objectives.contrastive import DENSE, info_nce, soft_cross_entropy
from rc3_jax.objectives.tiles import Tiling

FORMS = ("weighted", "soft", "hinge", "mse", "kl", "none", "off")
ALONE = ("none", "off")


def check_forms(forms: Sequence[str]) -> None:
    """Raises ConfigError unless `forms` is a combination that means something."""
    named = f"objective.regularizer={tuple(forms)}"
    if not forms or not set(forms) <= set(FORMS):
        raise ConfigError(f"{named}: name one or more of {', '.join(FORMS)}")
    if len(forms) > 1 and set(forms) & set(ALONE):
        raise ConfigError(f"{named}: 'none' and 'off' stand alone")
    if "soft" in forms and ("weighted" in forms or "kl" in forms):
        raise ConfigError(
            f"{named}: 'soft' has no hard positive that 'weighted' could weigh or 'kl' could add "
            "to; name 'soft' without them"
        )


def weak_contrast(
    forms: Sequence[str],
    z_a: Float[Array, "batch size"],
    z_b: Float[Array, "batch size"],
    text_a: Float[Array, "batch size"],
    text_b: Float[Array, "batch size"],
    temperature: Float[Array, ""],
    groups: Int[Array, " batch"],
    same_image: tuple[Float[Array, " batch"], Float[Array, " batch"]] | None,
    scales: ml_collections.ConfigDict,
    tiling: Tiling = DENSE,
) -> dict[str, Float[Array, ""]]:
    """XVtCL on weak rows with its regularizer; the terms are to be summed.

    Args:
      z_a: visio-textual vectors of the images with one text, `z_b` with the other.
      text_a: text vectors that tell the relevance, `text_b` those of the other texts; no
        gradient flows into them.
      same_image: see `info_nce`.
      scales: `config.objective.scales`, of the forms; their margin and temperature.
    """
    own = jax.lax.stop_gradient(jnp.sum(text_a * text_b, axis=1))
    proximity = jnp.sum(z_a * z_b, axis=1)
    terms = {}
    if "soft" not in forms:
        weights = relevance_weights(own) if "weighted" in forms else None
        terms["xvtcl_weak"] = info_nce(z_a, z_b, temperature, groups, weights, same_image, tiling)
    if "soft" in forms or "kl" in forms:
        cross_entropy, entropy = soft_cross_entropy(
            z_a, z_b, temperature, text_a, text_b, scales.relevance_temperature, tiling
        )
        if "soft" in forms:
            terms["soft"] = scales.soft * cross_entropy
        else:
            terms["kl"] = scales.kl * (cross_entropy - entropy)
    if "hinge" in forms:
        excess = jnp.maximum(0.0, proximity - own - scales.margin)
        terms["hinge"] = scales.hinge * jnp.mean(excess)
    if "mse" in forms:
        terms["mse"] = scales.mse * jnp.mean((proximity - own) ** 2)
    return terms


def relevance_weights(own: Float[Array, " batch"]) -> Float[Array, " batch"]:
    """`clip(relevance, 0, 1)` scaled to mean 1; all zero where no row is relevant."""
    weights = jnp.clip(own, 0.0, 1.0)
    return weights / jnp.maximum(weights.mean(), 1e-6)


def ramp(step: Int[Array, ""], steps: int) -> Float[Array, ""]:
    """Weight of the weak rows' term: rises linearly from 0 to 1 over `steps` steps."""
    return jnp.minimum(1.0, step / steps) if steps else jnp.ones(())
