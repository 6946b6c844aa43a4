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

Form = Literal["weighted", "ranked", "top", "soft", "hinge", "mse", "kl", "none", "off"]
"""A form of the regularizer."""
WEIGHING = {"weighted", "ranked", "top"}
"""The forms that weigh the rows of the contrast."""


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
    if "soft" in forms and (WEIGHING | {"kl"}) & set(forms):
        raise ValueError(
            f"regularizer={tuple(forms)}: 'soft' has no hard positive that 'weighted', 'ranked' or "
            "'top' could weigh or 'kl' could add to; name 'soft' without them"
        )
    if len(WEIGHING & set(forms)) > 1:
        raise ValueError(
            f"regularizer={tuple(forms)}: 'weighted', 'ranked' and 'top' weigh the same rows; name one"
        )


def weak_contrast(
    forms: Sequence[str],
    z_a: Float[Array, "batch size"],
    z_b: Float[Array, "batch size"],
    texts: tuple[Float[Array, "batch size"], Float[Array, "batch size"]] | None,
    own: Float[Array, " batch"],
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
      texts: vectors of one text and of the other whose products are their relevance, for `soft` and
        `kl`; no gradient flows into them.
      own: the relevance of the two texts of each row; no gradient flows into it either.
      bias, same_image: see `contrastive_loss`; `soft` and `kl` are softmaxes in any case.
    """
    own = jnp.clip(jax.lax.stop_gradient(own), -1.0, 1.0)
    proximity = jnp.sum(z_a * z_b, axis=1)
    terms = {}
    if "soft" not in forms:
        weights = next((relevance_weights(own, form) for form in WEIGHING & set(forms)), None)
        terms["xvtcl_weak"] = contrastive_loss(
            z_a, z_b, temperature, bias, groups, weights, same_image, tiling
        )
    if texts is not None and ("soft" in forms or "kl" in forms):
        cross_entropy, entropy = soft_cross_entropy(
            z_a, z_b, temperature, *texts, scales.relevance_temperature, tiling
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


def debiased(
    text_a: Float[Array, "batch size"], text_b: Float[Array, "batch size"]
) -> tuple[Float[Array, "batch size"], Float[Array, "batch size"]]:
    """The vectors less their common mean, scaled to a mean square length of 1.

    All captions resemble one another, whatever they say. Products of these vectors are the similarity
    of two texts less what each has with any text: the rows and columns of all products have mean 0 over
    both sides together.
    """
    both = jnp.stack([text_a, text_b])
    rest = both - both.mean(axis=(0, 1))
    square = jnp.sum(rest**2, axis=-1).mean()
    left, right = rest * jax.lax.rsqrt(jnp.maximum(square, 1e-12))
    return left, right


def relevance_weights(own: Float[Array, " batch"], form: str) -> Float[Array, " batch"]:
    """Weights of the rows, scaled to mean 1; all zero where no row has any.

    `weighted` takes `clip(relevance, 0, 1)`, `ranked` the row's rank among those of the batch, and `top`
    1 for the half of the rows that is most relevant.
    """
    if form == "ranked":
        weights = jnp.argsort(jnp.argsort(own)) + 0.5
    elif form == "top":
        weights = jnp.where(own >= jnp.median(own), 1.0, 0.0)
    else:
        weights = jnp.clip(own, 0.0, 1.0)
    return weights / jnp.maximum(weights.mean(), 1e-6)


def ramp(step: Int[Array, ""], steps: int, start: int = 0) -> Float[Array, ""]:
    """Weight of the weak rows' term: 0 until `start`, then rises linearly to 1 over `steps` steps."""
    if not steps:
        return jnp.where(step >= start, 1.0, 0.0)
    return jnp.clip((step - start) / steps, 0.0, 1.0)
