"""R-XVtCL on weak rows: the proximity of two visio-textual inputs follows the relevance of
their texts (METHOD.md section 2). That proximity is so constrained is published; the forms
here are this project's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import pydantic
from jaxtyping import Array, Float, Int

from rc3_jax.objectives.contrastive import DENSE, contrastive_loss, soft_cross_entropy
from rc3_jax.objectives.tiles import Tiling
from rc3_jax.settings import Settings

Form = Literal["weighted", "soft", "hinge", "mse", "kl", "none", "off"]
"""A form of the regularizer."""


class ScaleSettings(Settings):
    """Scales of the regularizer's forms."""

    soft: pydantic.NonNegativeFloat = 0.3
    """Scale of the `soft` form."""
    hinge: pydantic.NonNegativeFloat = 1.0
    """Scale of the `hinge` form."""
    mse: pydantic.NonNegativeFloat = 1.0
    """Scale of the `mse` form."""
    kl: pydantic.NonNegativeFloat = 1.0
    """Scale of the `kl` form."""
    margin: float = pydantic.Field(0.1, ge=-2, le=2)
    """How much the proximity may exceed the relevance before `hinge` acts."""
    relevance_temperature: pydantic.PositiveFloat = 0.1
    """Temperature of the targets of `soft` and `kl`."""


def check_forms(forms: Sequence[Form]) -> None:
    """Raises ValueError unless the forms can be combined."""
    if not forms:
        raise ValueError(f"regularizer: name one or more of {', '.join(get_args(Form))}")
    if len(forms) > 1 and {"none", "off"} & set(forms):
        raise ValueError(f"regularizer={tuple(forms)}: 'none' and 'off' stand alone")
    if "soft" in forms and {"weighted", "kl"} & set(forms):
        raise ValueError(
            f"regularizer={tuple(forms)}: 'soft' has no hard positive that 'weighted' could weigh "
            "or 'kl' could add to; name 'soft' without them"
        )


def weak_contrast(
    forms: Sequence[str],
    z_a: Float[Array, "batch size"],
    z_b: Float[Array, "batch size"],
    text_a: Float[Array, "batch size"],
    text_b: Float[Array, "batch size"],
    temperature: Float[Array, ""],
    bias: Float[Array, ""] | None,
    groups: Int[Array, " batch"],
    same_image: tuple[Float[Array, " batch"], Float[Array, " batch"]] | None,
    scales: ScaleSettings,
    tiling: Tiling = DENSE,
) -> dict[str, Float[Array, ""]]:
    """XVtCL on weak rows with its regularizer: terms that are to be summed.

    Args:
      z_a, z_b: visio-textual vectors of the images with one text and with the other.
      text_a, text_b: relevance vectors of these texts; no gradient flows into them.
      bias, same_image: see `contrastive_loss`; `soft` and `kl` are softmaxes in any case.
    """
    own = jax.lax.stop_gradient(jnp.sum(text_a * text_b, axis=1))
    proximity = jnp.sum(z_a * z_b, axis=1)
    terms = {}
    if "soft" not in forms:
        weights = relevance_weights(own) if "weighted" in forms else None
        terms["xvtcl_weak"] = contrastive_loss(
            z_a, z_b, temperature, bias, groups, weights, same_image, tiling
        )
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
