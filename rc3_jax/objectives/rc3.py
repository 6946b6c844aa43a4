"""The objectives of RC³, term by term: ITC + XTCL + R-XVtCL + ITM + MCLM (METHOD.md section 2).

A weight of 0 leaves the term, and the passes that only it needs, out of the compiled step.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from rc3_jax.data.tokenizer import PAD_ID
from rc3_jax.models.rc3 import RC3
from rc3_jax.objectives.contrastive import info_nce
from rc3_jax.objectives.masked_lm import masked_lm_loss
from rc3_jax.objectives.matching import matching_loss, sample_negatives
from rc3_jax.objectives.relevance import RegularizerScales, weak_contrast
from rc3_jax.objectives.rows import join, split

Terms = dict[str, Float[Array, ""]]


class Objective(NamedTuple):
    """Which terms count how much; all static, so that each choice compiles to its own step.

    Attributes:
      itc ... mclm: weights of the terms; `xvtcl_weak` weighs R-XVtCL on weak rows.
      regularizer: the forms of R, see `relevance.FORMS`.
      same_image_negatives: adds the same image with a wrong text to XVtCL's negatives.
    """

    itc: float = 1.0
    xtcl: float = 1.0
    xvtcl: float = 1.0
    xvtcl_weak: float = 1.0
    itm: float = 1.0
    mclm: float = 1.0
    regularizer: tuple[str, ...] = ("weighted", "hinge")
    scales: RegularizerScales = RegularizerScales()
    same_image_negatives: bool = True

    def contrasts(self, kind: str) -> bool:
        """Whether rows of this kind enter the visio-textual contrast."""
        return {
            "strict": bool(self.xvtcl),
            "weak": bool(self.xvtcl_weak) and tuple(self.regularizer) != ("off",),
            "parallel": False,
        }[kind]


class TextView(NamedTuple):
    """Texts of some rows after the text tower."""

    states: Float[Array, "batch length width"]
    mask: Bool[Array, "batch length"]
    vector: Float[Array, "batch size"]


def rc3_losses(
    model: RC3,
    batch: Mapping[str, Mapping[str, Array]],
    key: PRNGKeyArray,
    objective: Objective,
    weak_weight: Float[Array, ""] | float = 1.0,
    relevance_vectors: tuple[Array, Array] | None = None,
    deterministic: bool = False,
) -> tuple[Float[Array, ""], Terms]:
    """The weighted sum of the objectives and each term by itself.

    Args:
      model: bound to its parameters (the function runs inside `nn.apply`).
      batch: rows of each kind present (`strict`, `weak`, `parallel`), see `data.stream`.
      key: source of the hard negatives.
      weak_weight: the ramp's present value, multiplied into R-XVtCL on weak rows.
      relevance_vectors: text vectors of the weak rows' texts a and b that tell their
        relevance; None takes those of the model itself.
      deterministic: switches dropout off.
    """
    kinds = [kind for kind in ("strict", "weak") if kind in batch]
    counts = [batch[kind]["ids_a"].shape[0] for kind in kinds]
    pairs = {name: join([batch[k][name] for k in kinds]) for name in batch[kinds[0]]}
    visual = model.encode_visual(pairs, deterministic)
    texts = _encode_texts(model, batch, objective, deterministic)
    temperature = model.temperatures()
    contrasted = [kind for kind in kinds if objective.contrasts(kind)]
    terms: Terms = {}

    def rows(view: str, of: list[str]) -> TextView:
        return TextView(*(join(parts) for parts in zip(*(texts[k, view] for k in of), strict=True)))

    def of_kinds(array: Array, chosen: list[str]) -> Array:
        parts = dict(zip(kinds, split(array, counts), strict=True))
        return join([parts[kind] for kind in chosen])

    needs_a = bool(objective.itc or objective.itm or contrasted)
    text_a = rows("a", kinds) if needs_a else None

    if objective.itc:
        terms["itc"] = _image_text_contrast(
            visual.vector, text_a, rows("b", kinds), temperature["image_text"], pairs["groups"]
        )

    aligned = [kind for kind in ("strict", "parallel") if kind in batch]
    if objective.xtcl and aligned:
        groups = join([batch[kind]["groups"] for kind in aligned])
        terms["xtcl"] = info_nce(
            rows("a", aligned).vector, rows("b", aligned).vector, temperature["text_text"], groups
        )

    # Every pass of the fusion encoder over images, as one batch.
    passes: dict[str, tuple[TextView, Array, Array]] = {}
    if objective.itm or contrasted:
        passes["a"] = (text_a, visual.tokens, visual.mask)
    if contrasted:
        tokens, mask = (of_kinds(x, contrasted) for x in (visual.tokens, visual.mask))
        passes["b"] = (rows("b", contrasted), tokens, mask)
    same_image_negatives = bool(contrasted) and objective.same_image_negatives
    if objective.itm or same_image_negatives:
        wrong_text, has_wrong_text = sample_negatives(
            jax.random.fold_in(key, 0),
            visual.vector,
            text_a.vector,
            temperature["image_text"],
            pairs["groups"],
        )
        taken = TextView(*(x[wrong_text] for x in text_a))
        passes["wrong_text"] = (taken, visual.tokens, visual.mask)
    if objective.itm:
        wrong_image, has_wrong_image = sample_negatives(
            jax.random.fold_in(key, 1),
            text_a.vector,
            visual.vector,
            temperature["image_text"],
            pairs["groups"],
        )
        passes["wrong_image"] = (text_a, visual.tokens[wrong_image], visual.mask[wrong_image])
    if objective.mclm:
        passes["masked"] = (rows("masked", kinds), visual.tokens, visual.mask)
    fused = _fuse(model, passes, deterministic)

    if objective.itm:
        terms["itm"], terms["itm_accuracy"] = matching_loss(
            model.match(fused["a"]),
            model.match(fused["wrong_image"]),
            model.match(fused["wrong_text"]),
            has_wrong_image,
            has_wrong_text,
        )

    if contrasted:
        z_a = model.fused_vector(of_kinds(fused["a"], contrasted), rows("a", contrasted).mask)
        z_b = model.fused_vector(fused["b"], rows("b", contrasted).mask)
        same_image = None
        if same_image_negatives:
            z_wrong = model.fused_vector(fused["wrong_text"], passes["wrong_text"][0].mask)
            z_wrong, usable = (of_kinds(x, contrasted) for x in (z_wrong, has_wrong_text))
            same_image = tuple(
                jnp.where(usable, jnp.sum(z * z_wrong, axis=1), -1e9) for z in (z_a, z_b)
            )
        sizes = [batch[kind]["ids_a"].shape[0] for kind in contrasted]
        by_kind = {
            kind: values
            for kind, *values in zip(
                contrasted, *(split(x, sizes) for x in (z_a, z_b, *(same_image or ()))), strict=True
            )
        }
        if "strict" in by_kind:
            a, b, *same = by_kind["strict"]
            terms["xvtcl"] = info_nce(
                a, b, temperature["fused"], batch["strict"]["groups"], same_image=same or None
            )
        if "weak" in by_kind:
            a, b, *same = by_kind["weak"]
            tell = relevance_vectors or (texts["weak", "a"].vector, texts["weak", "b"].vector)
            terms |= weak_contrast(
                objective.regularizer,
                a,
                b,
                *tell,
                temperature["fused"],
                batch["weak"]["groups"],
                same or None,
                objective.scales,
            )

    if objective.mclm:
        terms["mclm"], terms["mclm_accuracy"] = _masked_lm(
            model, batch, pairs, fused["masked"], texts, deterministic
        )

    weak_factor = objective.xvtcl_weak * weak_weight
    factors = {name: getattr(objective, name) for name in ("itc", "xtcl", "xvtcl", "itm", "mclm")}
    factors |= {name: weak_factor for name in ("xvtcl_weak", "soft", "kl", "hinge", "mse")}
    total = sum(factors[name] * terms[name] for name in factors if name in terms)
    return total, {"loss": total, **terms}


def _encode_texts(model, batch, objective, deterministic) -> dict[tuple[str, str], TextView]:
    """One pass of the text tower over every (kind, view) that some term reads."""
    wanted = {}
    for kind, rows in batch.items():
        if kind == "parallel":
            contrast = bool(objective.xtcl)
            in_a, in_b = contrast, contrast or objective.mclm
        else:
            contrast = objective.contrasts(kind) or (objective.xtcl and kind == "strict")
            in_a, in_b = objective.itc or objective.itm or contrast, objective.itc or contrast
        # The hard negatives are drawn from the texts a of all rows with an image.
        if kind != "parallel" and (objective.itm or any(map(objective.contrasts, batch))):
            in_a = True
        for view, name, needed in (
            ("a", "ids_a", in_a),
            ("b", "ids_b", in_b),
            ("masked", "masked_ids", objective.mclm),
        ):
            if needed:
                wanted[kind, view] = rows[name]
    counts = [ids.shape[0] for ids in wanted.values()]
    ids = join(list(wanted.values()))
    states, vectors = model.encode_text(ids, deterministic)
    parts = zip(split(states, counts), split(ids != PAD_ID, counts), split(vectors, counts))
    return {key: TextView(*part) for key, part in zip(wanted, parts, strict=True)}


def _image_text_contrast(vector, text_a, text_b, temperature, groups):
    """ITC: the image against either text, averaged."""
    losses = [info_nce(vector, text.vector, temperature, groups) for text in (text_a, text_b)]
    return sum(losses) / 2


def _fuse(model, passes, deterministic) -> dict[str, Array]:
    """All (text, view tokens, view mask) passes in one call of the fusion encoder."""
    if not passes:
        return {}
    columns = zip(*((t.states, t.mask, tokens, mask) for t, tokens, mask in passes.values()))
    fused = model.fuse(*(join(column) for column in columns), deterministic)
    counts = [text.states.shape[0] for text, _, _ in passes.values()]
    return dict(zip(passes, split(fused, counts), strict=True))


def _masked_lm(model, batch, pairs, fused_pairs, texts, deterministic):
    """MCLM: masked texts a given the image; for parallel rows given the text b."""
    fused, positions, labels = (
        [fused_pairs],
        [pairs["masked_positions"]],
        [pairs["masked_labels"]],
    )
    if "parallel" in batch:
        masked, other = texts["parallel", "masked"], texts["parallel", "b"]
        fused.append(
            model.fuse(masked.states, masked.mask, other.states, other.mask, deterministic)
        )
        positions.append(batch["parallel"]["masked_positions"])
        labels.append(batch["parallel"]["masked_labels"])
    logits = model.predict_tokens(join(fused), join(positions))
    return masked_lm_loss(logits, join(labels))
