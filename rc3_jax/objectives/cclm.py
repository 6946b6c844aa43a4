"""The objectives of CCLM: contrast, matching and masked language modelling of pairs of views.

METHOD.md section 3, CCLM.md section 2.
"""

from __future__ import annotations

from typing import Literal

import jax
import pydantic
from jax.sharding import Mesh
from jaxtyping import Array, Float, PRNGKeyArray

from rc3_jax.models.base import PairModel
from rc3_jax.objectives.boxes import box_losses
from rc3_jax.objectives.contrastive import ContrastSettings
from rc3_jax.objectives.encoding import Batch
from rc3_jax.objectives.pair_terms import (
    contrast_term,
    image_text_term,
    masked_lm_term,
    matching_term,
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

TEMPERATURE = "temperature"
IMAGE_TEXT = Pair(("captioned", "strict", "weak"), "image", "a", TEMPERATURE)
TEXT_TEXT = Pair(("parallel",), "a", "b", TEMPERATURE)
REGION_TEXT = Pair(("region",), "image", "a", TEMPERATURE)
CAPTIONS = Pair(("strict", "weak"), "a", "b", TEMPERATURE)
PAIRS = (IMAGE_TEXT, TEXT_TEXT, REGION_TEXT)
"""The pairs that negatives are drawn for, in the order of their keys."""
UPDATES = (TEXT_TEXT.kinds, IMAGE_TEXT.kinds, REGION_TEXT.kinds)
"""With `objective.step = "separate"`, each of these makes an update, in this order."""


class TextWeights(Settings):
    """Weights of the terms of pairs of texts; 0 leaves a term out of the compiled step."""

    contrast: pydantic.NonNegativeFloat = 1.0
    """Contrast of the two views."""
    matching: pydantic.NonNegativeFloat = 1.0
    """Matching of the two views, with hard negatives."""
    masked_lm: pydantic.NonNegativeFloat = 1.0
    """Masked language modelling, given the other view."""


class ImageWeights(TextWeights):
    """Weights of the terms of images and their texts."""

    captions: pydantic.NonNegativeFloat = 1.0
    """Contrast of the two texts of an image, where rows have two."""


class RegionWeights(TextWeights):
    """Weights of the terms of regions and their texts."""

    box: pydantic.NonNegativeFloat = 1.0
    """L1 distance of the box that a text points at."""
    giou: pydantic.NonNegativeFloat = 1.0
    """1 - GIoU of this box."""


class CCLMWeights(Settings):
    """Weights of the terms, by the first view."""

    image: ImageWeights = ImageWeights()
    """Weights on captioned, strict and weak rows."""
    text: TextWeights = TextWeights()
    """Weights on parallel rows."""
    region: RegionWeights = RegionWeights()
    """Weights on region rows."""


class CCLMObjective(ContrastSettings):
    """`config.objective` of CCLM."""

    weights: CCLMWeights = CCLMWeights()
    """Weights of the terms."""
    step: Literal["summed", "separate"] = "summed"
    """One update for all kinds of rows, or one each for texts, images and regions (published)."""
    negatives: Literal["global", "local"] = "global"
    """Hard negatives come from the whole batch, or from the rows of a device (published)."""
    negative_floor: float = pydantic.Field(0.0, ge=0, le=1)
    """Added to the probability of each negative (published: 1e-5)."""
    group_positives: bool = True
    """Rows about the same image or sentence are positives; False: negatives (published)."""
    itc_grad_scale: pydantic.PositiveFloat = 1.0
    """Factor of the gradient that the contrasts give to the towers (published: 1 / GPUs)."""


def cclm_losses(
    model: PairModel,
    batch: Batch,
    key: PRNGKeyArray,
    *,
    objective: CCLMObjective,
    deterministic: bool = False,
    mesh: Mesh | None = None,
    microbatches: int = 1,
) -> tuple[Float[Array, ""], Losses]:
    """The weighted sum of the objectives that apply to the batch, and each term by itself.

    Args:
      batch: rows of each kind present, see `data.stream`: `captioned`, `strict` and `weak` pair
        images with texts, `region` parts of images, `parallel` texts. Strict and weak rows have a
        second caption, which is only contrasted.
      model, key, objective, deterministic, mesh, microbatches: see `rc3_losses`.
    """
    keys = jax.random.split(key, len(PAIRS))
    return term_losses(
        model,
        batch,
        cclm_terms(objective),
        {pair: tuple(jax.random.split(own)) for pair, own in zip(PAIRS, keys, strict=True)},
        Comparison(
            Tiling(objective.pairs.transport, objective.pairs.tile, mesh),
            gradient_scale=objective.itc_grad_scale,
            group_positives=objective.group_positives,
            equal_texts_match=objective.equal_texts_match,
            local_negatives=objective.negatives == "local",
            negative_floor=objective.negative_floor,
            random_negatives=objective.random_negatives,
        ),
        deterministic,
        microbatches,
    )


def cclm_terms(objective: CCLMObjective) -> tuple[Term, ...]:
    """All terms of CCLM, in the order of the console line."""
    image, text, region = (getattr(objective.weights, name) for name in ("image", "text", "region"))
    return (
        image_text_term("itc", image.contrast, IMAGE_TEXT),
        matching_term("itm", image.matching, IMAGE_TEXT),
        masked_lm_term("mlm", image.masked_lm, IMAGE_TEXT.kinds),
        contrast_term("caption_ttc", image.captions, CAPTIONS),
        contrast_term("ttc", text.contrast, TEXT_TEXT),
        matching_term("ttm", text.matching, TEXT_TEXT),
        masked_lm_term("text_mlm", text.masked_lm, TEXT_TEXT.kinds),
        contrast_term("region_itc", region.contrast, REGION_TEXT),
        matching_term("region_itm", region.matching, REGION_TEXT),
        masked_lm_term("region_mlm", region.masked_lm, REGION_TEXT.kinds),
        box_term("box", region.box),
        box_term("giou", region.giou),
    )


def box_term(name: Literal["box", "giou"], weight: float) -> Term:
    """Where in the whole image the text of a region belongs; see `box_losses`."""

    def loss(encoded: Encoded, kinds: Kinds) -> Losses:
        predicted = encoded.read("a", "whole", predict_box, kinds)
        counted = ~encoded.field("is_image", kinds)
        losses = box_losses(predicted, encoded.field("boxes", kinds), counted)
        return {name: losses[name == "giou"]}

    passes = (Pass(REGION_TEXT.kinds, "a", "whole", predict_box),)
    return Term(name, weight, REGION_TEXT.kinds, loss, passes=passes)


def predict_box(model, fused, mask, positions) -> Float[Array, "batch 4"]:
    """Head: the box that the text points at."""
    return model.predict_box(fused)
