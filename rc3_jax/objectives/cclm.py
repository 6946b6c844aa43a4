"""The objectives of CCLM: which views a batch pairs, and the sum of their losses.

METHOD.md section 3, CCLM.md section 2.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import ml_collections
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, PRNGKeyArray

from rc3_jax.config import ConfigError
from rc3_jax.data.tokenizer import PAD_ID
from rc3_jax.models.cclm import CCLM
from rc3_jax.objectives.boxes import box_losses
from rc3_jax.objectives.microbatch import microbatch
from rc3_jax.objectives.rows import join, split
from rc3_jax.objectives.views import (
    Context,
    Masked,
    Pair,
    Terms,
    View,
    contrast,
    view_losses,
)

Batch = Mapping[str, Mapping[str, Array]]

WITH_IMAGE = ("captioned", "strict", "weak")
UPDATES = {"text": ("parallel",), "image": WITH_IMAGE, "region": ("region",)}
"""First view → kinds of rows; `objective.step = "separate"` makes an update of each, in order."""
NAMES = {
    "image": dict(contrast="itc", matching="itm", masked_lm="mlm", captions="caption_ttc"),
    "text": dict(contrast="ttc", matching="ttm", masked_lm="text_mlm"),
    "region": dict(
        contrast="region_itc", matching="region_itm", masked_lm="region_mlm", box="box", giou="giou"
    ),
}
"""First view → weight in `objective.weights` → the term that it weighs."""


def cclm_losses(
    model: CCLM,
    batch: Batch,
    key: PRNGKeyArray,
    objective: ml_collections.ConfigDict,
    deterministic: bool = False,
    mesh: Mesh | None = None,
    microbatches: int = 1,
) -> tuple[Float[Array, ""], Terms]:
    """The weighted sum of the objectives that the batch's rows allow, and each term by itself.

    Args:
      model: bound to its parameters (the function runs inside `nn.apply`).
      batch: rows of each kind present, see `data.stream`: `captioned`, `strict` and `weak` pair
        images with texts, `region` parts of images, `parallel` texts. Strict and weak rows bring
        a second caption, which is only contrasted.
      key: source of the hard negatives.
      objective: `config.objective`, static: each choice compiles to a step of its own.
      deterministic: switches dropout off.
      mesh: where rows are spread; None for a single device.
      microbatches: parts of the batch that go through the network in turn, see `microbatch`.
    """
    in_parts = functools.partial(microbatch, model, microbatches, mesh)
    context = Context(model, objective, deterministic, mesh, in_parts)
    with_image = [kind for kind in WITH_IMAGE if kind in batch]
    losses = {
        "image": lambda key: image_losses(context, {k: batch[k] for k in with_image}, key),
        "text": lambda key: text_losses(context, batch["parallel"], key),
        "region": lambda key: region_losses(context, batch["region"], key),
    }
    present = {"image": bool(with_image), "text": "parallel" in batch, "region": "region" in batch}
    total, terms = 0.0, {}
    for name, part_key in zip(losses, jax.random.split(key, len(losses)), strict=True):
        weights = objective.weights[name]
        if not present[name] or not any(weights.values()):
            continue
        found = losses[name](part_key)
        total += sum(weights[term] * found[term] for term in weights if term in found)
        for term, value in found.items():
            base = term.removesuffix("_accuracy")
            terms[NAMES[name][base] + term.removeprefix(base)] = value
    if not terms:
        raise ConfigError(
            f"no objective with a weight applies to {', '.join(batch)} rows; see objective.weights"
        )
    return total, {"loss": total, **terms}


def image_losses(context: Context, batch: Batch, key: PRNGKeyArray) -> Terms:
    """An image and its caption; where rows have two captions, the second one only contrasts."""
    kinds = list(batch)

    def field(name, kinds=kinds):
        return join([batch[kind][name] for kind in kinds])

    weights = context.objective.weights.image
    view = _encode_images(context, field("image"))
    twice = [kind for kind in kinds if "ids_b" in batch[kind]]
    ids = {"a": field("ids_a"), "masked": field("masked_ids")}
    if twice and (weights.contrast or weights.captions):
        ids["b"] = field("ids_b", twice)
    texts = _encode_texts(context, ids, weights)
    pair = Pair(view, texts["a"], _groups(context, field("groups")))
    masked = Masked(texts.get("masked"), view, field("masked_positions"), field("masked_labels"))
    terms = view_losses(context, pair, masked, weights, key)
    if "b" not in texts:
        return terms

    counts = [batch[kind]["groups"].shape[0] for kind in kinds]

    def of_two(rows):
        parts = dict(zip(kinds, split(rows, counts), strict=True))
        return join([parts[kind] for kind in twice])

    image, first = (View(None, None, of_two(x.vector)) for x in (view, texts["a"]))
    groups = of_two(pair.groups)
    if weights.contrast:
        second = contrast(context, Pair(image, texts["b"], groups))
        terms["contrast"] = (terms["contrast"] + second) / 2
    if weights.captions:
        terms["captions"] = contrast(context, Pair(first, texts["b"], groups))
    return terms


def text_losses(context: Context, rows: Mapping[str, Array], key: PRNGKeyArray) -> Terms:
    """A sentence a and its translation b: b reads a in matching, masked a reads b."""
    ids = {"a": rows["ids_a"], "b": rows["ids_b"], "masked": rows["masked_ids"]}
    weights = context.objective.weights.text
    texts = _encode_texts(context, ids, weights)
    pair = Pair(texts["a"], texts["b"], _groups(context, rows["groups"]))
    masked = Masked(
        texts.get("masked"), texts["b"], rows["masked_positions"], rows["masked_labels"]
    )
    return view_losses(context, pair, masked, weights, key)


def region_losses(context: Context, rows: Mapping[str, Array], key: PRNGKeyArray) -> Terms:
    """Regions and their captions; and from the whole image, where each caption belongs."""
    weights = context.objective.weights.region
    whole = _encode_images(context, rows["image"])
    view = context.model.regions(whole.tokens, rows["region_tokens"])

    def flat(name):
        """A row for each region, as `view` has it."""
        return rows[name].reshape(-1, *rows[name].shape[2:])

    texts = _encode_texts(context, {"a": flat("ids_a"), "masked": flat("masked_ids")}, weights)
    pair = Pair(view, texts["a"], _groups(context, flat("groups")))
    masked = Masked(texts.get("masked"), view, flat("masked_positions"), flat("masked_labels"))
    terms = view_losses(context, pair, masked, weights, key)
    if weights.box or weights.giou:
        image = View(
            *(jnp.repeat(x, rows["ids_a"].shape[1], axis=0) for x in (whole.tokens, whole.mask)),
            None,
        )
        boxes = context.read(lambda model, fused: model.predict_box(fused), texts["a"], image)
        terms["box"], terms["giou"] = box_losses(boxes, flat("boxes"), ~flat("is_image"))
    return terms


def _encode_images(context: Context, image: Array) -> View:
    return context.in_parts(
        lambda model, image: model.encode_visual({"image": image}, context.deterministic), image
    )


def _encode_texts(
    context: Context, ids: Mapping[str, Array], weights: Mapping[str, float]
) -> dict[str, View]:
    """One pass of the text tower over all of them; masked ones only if they are to be filled."""
    ids = {name: x for name, x in ids.items() if name != "masked" or weights["masked_lm"]}
    # A masked token may have become any other, the padding token too.
    mask = join([(ids["a"] if name == "masked" else x) != PAD_ID for name, x in ids.items()])
    states, vectors = context.in_parts(
        lambda model, ids, mask: model.encode_text(ids, context.deterministic, mask),
        join(list(ids.values())),
        mask,
    )
    lengths = [x.shape[0] for x in ids.values()]
    parts = (split(x, lengths) for x in (states, mask, vectors))
    return {name: View(*part) for name, part in zip(ids, zip(*parts), strict=True)}


def _groups(context: Context, groups: Int[Array, " batch"]) -> Int[Array, " batch"]:
    """Who is whose negative: rows of other groups or, as published, all others."""
    return groups if context.objective.group_positives else jnp.arange(len(groups))
