"""The objectives of RC³: ITC + XTCL + R-XVtCL + ITM + MCLM (METHOD.md section 2)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Self

import jax
import jax.numpy as jnp
import pydantic
from jax.sharding import Mesh
from jaxtyping import Array, Float, PRNGKeyArray

from rc3_jax.models.base import PairModel
from rc3_jax.objectives.contrastive import ContrastSettings
from rc3_jax.objectives.encoding import Batch, Head
from rc3_jax.objectives.pair_terms import (
    contrast_term,
    image_text_term,
    masked_lm_term,
    matching_term,
)
from rc3_jax.objectives.relevance import (
    Form,
    ScaleSettings,
    check_forms,
    debiased,
    weak_contrast,
)
from rc3_jax.objectives.terms import (
    Comparison,
    Encoded,
    Kinds,
    Losses,
    Pair,
    Pass,
    Term,
    term_losses,
)
from rc3_jax.objectives.tiles import Tiling
from rc3_jax.settings import Settings

KINDS = ("strict", "weak", "parallel", "captioned")
IMAGE_TEXT = Pair(("strict", "weak", "captioned"), "image", "a", "temperature_image_text")
TEXT_TEXT = Pair(("strict", "parallel"), "a", "b", "temperature_text_text")
FUSED = "temperature_fused"
REGULARIZERS = ("soft", "kl", "hinge", "mse")
"""Parts of R besides the contrast that it weighs."""


class RC3Weights(Settings):
    """Weights of the terms; 0 leaves a term out of the compiled step."""

    itc: pydantic.NonNegativeFloat = 1.0
    """Image-text contrast."""
    xtcl: pydantic.NonNegativeFloat = 1.0
    """Cross-lingual textual contrast."""
    xvtcl: pydantic.NonNegativeFloat = 1.0
    """Cross-lingual visio-textual contrast of strict rows."""
    xvtcl_weak: pydantic.NonNegativeFloat = 1.0
    """Cross-lingual visio-textual contrast of weak rows, with its regularizer."""
    itm: pydantic.NonNegativeFloat = 1.0
    """Image-text matching."""
    mclm: pydantic.NonNegativeFloat = 1.0
    """Masked conditional language modelling."""


class RC3Objective(ContrastSettings):
    """`config.objective` of RC³."""

    weights: RC3Weights = RC3Weights()
    """Weights of the terms."""
    regularizer: tuple[Form, ...] = ("weighted",)
    """Forms of the regularizer of weak rows: `weighted`, `ranked`, `top`, `soft`, `hinge`, `mse`, `kl`;
    or `none` or `off` alone."""
    scales: ScaleSettings = ScaleSettings()
    """Scales of these forms."""
    relevance: Literal["own", "ema", "encoder", "true"] = "own"
    """What gives the relevance of texts: the model's own text tower, its moving average, a fixed sentence
    encoder, or the facts behind generated texts."""
    relevance_encoder: str | None = None
    """Folder of that encoder, which launch/convert.py made."""
    ema_decay: float = pydantic.Field(0.999, ge=0, le=1)
    """Decay of the moving average, per step."""
    debias_relevance: bool = True
    """Takes from the relevance of texts what every text has in common with every other."""
    weak_views: Literal["image", "forms"] = "image"
    """What the two visio-textual vectors of a weak row read: both the whole image, or one of its
    visual forms each, patches and regions in turn."""
    weak_gradient: Literal["all", "readout"] = "all"
    """What the contrast of weak rows trains: all parameters that it is computed with, or the read-out of
    the visio-textual vector and its temperature alone, so that towers and fusion encoder learn from the
    other terms."""
    weak_start: float = pydantic.Field(0.0, ge=0, lt=1)
    """Share of the run before which `xvtcl_weak` has no weight."""
    ramp: float = pydantic.Field(0.1, ge=0, le=1)
    """Share of the run in which its weight then rises from 0."""
    same_image_negatives: bool = True
    """Adds the same image with a wrong text as one more negative of the visio-textual contrast."""

    @pydantic.model_validator(mode="after")
    def _check(self) -> Self:
        check_forms(self.regularizer)
        if self.weak_start + self.ramp > 1:
            raise ValueError(
                f"weak_start={self.weak_start} and ramp={self.ramp}: the weight would not be reached; "
                "let them add up to 1 at most"
            )
        if self.relevance == "true" and (unknown := {"soft", "kl"} & set(self.regularizer)):
            raise ValueError(
                f"relevance='true' with regularizer={self.regularizer}: the truth is known of the two "
                f"texts of a row alone; leave out {', '.join(sorted(unknown))}"
            )
        if (self.relevance_encoder is not None) != (self.relevance == "encoder"):
            raise ValueError(
                f"relevance={self.relevance!r} with relevance_encoder={self.relevance_encoder!r}: "
                "'encoder' needs the folder of one, and nothing else has a use for it"
            )
        return self


def rc3_losses(
    model: PairModel,
    batch: Batch,
    key: PRNGKeyArray,
    ramp: Float[Array, ""] | float = 1.0,
    relevance_vectors: Callable[[Array], Array] | None = None,
    *,
    objective: RC3Objective,
    deterministic: bool = False,
    mesh: Mesh | None = None,
    microbatches: int = 1,
) -> tuple[Float[Array, ""], Losses]:
    """The weighted sum of the objectives, and each term by itself.

    Args:
      model: bound to its parameters; the function runs inside `nn.apply`.
      batch: rows of each of the `KINDS` present, see `data.stream`. Captioned rows have one text:
        they enter the terms of images and a text, ITC, ITM and MCLM.
      key: source of the hard negatives.
      ramp, relevance_vectors: see `rc3_terms`.
      objective: `config.objective`, static.
      deterministic, microbatches: see `term_losses`.
      mesh: where rows are spread; None for a single device.
    """
    wrong_text, wrong_image = (jax.random.fold_in(key, number) for number in (0, 1))
    return term_losses(
        model,
        batch,
        rc3_terms(objective, ramp, relevance_vectors),
        {IMAGE_TEXT: (wrong_image, wrong_text)},
        Comparison(
            Tiling(objective.pairs.transport, objective.pairs.tile, mesh),
            equal_texts_match=objective.equal_texts_match,
            random_negatives=objective.random_negatives,
        ),
        deterministic,
        microbatches,
    )


def rc3_terms(
    objective: RC3Objective,
    ramp: Float[Array, ""] | float = 1.0,
    relevance_vectors: Callable[[Array], Array] | None = None,
) -> tuple[Term, ...]:
    """All terms of RC³, in the order of the console line.

    Args:
      ramp: the factor of R-XVtCL on weak rows at the present step.
      relevance_vectors: maps ids of texts to the vectors that give their relevance; None takes the
        embeddings of the model's own text tower.
    """
    weights = objective.weights
    return (
        image_text_term("itc", weights.itc, IMAGE_TEXT),
        contrast_term("xtcl", weights.xtcl, TEXT_TEXT),
        strict_contrast_term(objective),
        weak_contrast_term(objective, ramp, relevance_vectors),
        matching_term("itm", weights.itm, IMAGE_TEXT),
        masked_lm_term("mclm", weights.mclm, KINDS),
    )


def strict_contrast_term(objective: RC3Objective) -> Term:
    """XVtCL: the visio-textual vectors of an image with either text, on strict rows."""

    def loss(encoded: Encoded, kinds: Kinds) -> Losses:
        z_a, z_b, same_image = _fused_vectors(encoded, "strict", objective)
        groups = encoded.groups(kinds)
        return {"xvtcl": encoded.contrast(FUSED, z_a, z_b, groups, same_image=same_image)}

    passes = _fused_passes("strict", objective)
    weight = objective.weights.xvtcl
    return Term("xvtcl", weight, ("strict",), loss, passes=passes, temperatures=(FUSED,))


def weak_contrast_term(
    objective: RC3Objective,
    ramp: Float[Array, ""] | float,
    relevance_vectors: Callable[[Array], Array] | None,
) -> Term:
    """R-XVtCL: the same on weak rows, with its regularizer."""
    is_true = objective.relevance == "true"

    def loss(encoded: Encoded, kinds: Kinds) -> Losses:
        z_a, z_b, same_image = _fused_vectors(encoded, "weak", objective)
        if is_true:
            texts, own = None, encoded.field("relevance", kinds)
        else:
            if relevance_vectors is None:
                text_a, text_b = (encoded.embedding(name, kinds) for name in ("a", "b"))
            else:
                ids = (encoded.field(name, kinds) for name in ("ids_a", "ids_b"))
                text_a, text_b = map(relevance_vectors, ids)
            texts = jax.lax.stop_gradient((text_a, text_b))
            if objective.debias_relevance:
                texts = debiased(*texts)
            own = jnp.sum(texts[0] * texts[1], axis=1)
        temperature, bias = encoded.model.temperature_and_bias(FUSED)
        return weak_contrast(
            objective.regularizer,
            z_a,
            z_b,
            texts,
            own,
            temperature,
            bias,
            encoded.groups(kinds),
            same_image,
            objective.scales,
            encoded.comparison.tiling,
        )

    return Term(
        "xvtcl_weak",
        0.0 if "off" in objective.regularizer else objective.weights.xvtcl_weak,
        ("weak",),
        loss,
        views=("a", "b") if relevance_vectors is None and not is_true else (),
        passes=_fused_passes("weak", objective),
        temperatures=(FUSED,),
        more=REGULARIZERS,
        ramp=ramp,
    )


def _fused_passes(kind: str, objective: RC3Objective) -> tuple[Pass, ...]:
    views = {text: _view(kind, text, objective) for text in "ab"}
    if objective.same_image_negatives:
        views["wrong_text"] = "image"
    head = _head(kind, objective)
    return tuple(Pass((kind,), text, view, head) for text, view in views.items())


def _view(kind: str, text: str, objective: RC3Objective) -> str:
    """What the visio-textual vector of a row with text `a` or `b` reads."""
    if kind == "weak" and objective.weak_views == "forms":
        return {"a": "one_form", "b": "other_form"}[text]
    return "image"


def _head(kind: str, objective: RC3Objective) -> Head:
    """What reads the visio-textual vector of a row."""
    alone = kind == "weak" and objective.weak_gradient == "readout"
    return readout_vector if alone else fused_vector


def _fused_vectors(
    encoded: Encoded, kind: str, objective: RC3Objective
) -> tuple[Array, Array, tuple[Array, Array] | None]:
    """Vectors z of both texts, and their similarities to that of the same image with a wrong text."""
    head = _head(kind, objective)
    z = {text: encoded.read(text, _view(kind, text, objective), head, (kind,)) for text in "ab"}
    if not objective.same_image_negatives:
        return z["a"], z["b"], None
    kinds = encoded.present(IMAGE_TEXT.kinds)
    exists = encoded.select_kinds(encoded.has_negative(IMAGE_TEXT), kinds, (kind,))
    wrong = encoded.read("wrong_text", "image", head, (kind,))
    same_a, same_b = (jnp.where(exists, jnp.sum(z[x] * wrong, axis=1), -1e9) for x in "ab")
    return z["a"], z["b"], (same_a, same_b)


def fused_vector(model, fused, mask, positions) -> Float[Array, "batch size"]:
    """Head: the visio-textual vector z."""
    return model.fused_vector(fused, mask)


def readout_vector(model, fused, mask, positions) -> Float[Array, "batch size"]:
    """Head: z, whose gradient reaches its read-out alone."""
    return model.fused_vector(jax.lax.stop_gradient(fused), mask)
