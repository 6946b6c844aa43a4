"""The objectives of RC³, term by term: ITC + XTCL + R-XVtCL + ITM + MCLM (METHOD.md section 2).

A weight of 0 leaves the term, and the passes that only it needs, out of the compiled step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from rc3_jax.data.tokenizer import PAD_ID
from rc3_jax.models.rc3 import RC3, Visual
from rc3_jax.objectives.contrastive import info_nce
from rc3_jax.objectives.masked_lm import masked_lm_loss
from rc3_jax.objectives.matching import matching_loss, sample_negatives
from rc3_jax.objectives.relevance import RegularizerScales, weak_contrast
from rc3_jax.objectives.rows import join, split

Batch = Mapping[str, Mapping[str, Array]]
Terms = dict[str, Float[Array, ""]]

WITH_IMAGE = ("strict", "weak")
ALIGNED = ("strict", "parallel")
"""Kinds whose texts translate one another."""


class Objective(NamedTuple):
    """Which terms count how much; all static, so that each choice compiles to its own step.

    Attributes:
      itc, xtcl, xvtcl, xvtcl_weak, itm, mclm: weights of the terms; `xvtcl` is the contrast
        on strict rows, `xvtcl_weak` R-XVtCL on weak rows.
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

    def contrasted(self, batch: Batch) -> list[str]:
        """The kinds of rows that enter the visio-textual contrast."""
        on = {"strict": self.xvtcl, "weak": self.xvtcl_weak and self.regularizer != ("off",)}
        return [kind for kind in WITH_IMAGE if kind in batch and on[kind]]

    def draws_same_image_negatives(self, contrasted: Sequence[str]) -> bool:
        """Whether some kind has a hard positive that these negatives compete with."""
        hard = [kind for kind in contrasted if kind == "strict" or "soft" not in self.regularizer]
        return bool(hard) and self.same_image_negatives


class Text(NamedTuple):
    """Texts of some rows after the text tower."""

    states: Float[Array, "batch length width"]
    mask: Bool[Array, "batch length"]
    vector: Float[Array, "batch size"]


class Encoded(NamedTuple):
    """Everything the towers say about a batch.

    Attributes:
      kinds: the kinds with an image, in the order in which `visual` and `groups` join them.
      counts: their rows.
      texts: (kind, view) → its texts; views are a, b and masked (a with masks).
    """

    kinds: list[str]
    counts: list[int]
    groups: Array
    visual: Visual
    texts: dict[tuple[str, str], Text]

    def text(self, view: str, kinds: Sequence[str]) -> Text:
        """One view of several kinds, joined."""
        return Text(*map(join, zip(*(self.texts[kind, view] for kind in kinds), strict=True)))

    def take(self, rows: Array, kinds: Sequence[str]) -> Array:
        """Of an array over all rows with an image, those of some kinds."""
        parts = dict(zip(self.kinds, split(rows, self.counts), strict=True))
        return join([parts[kind] for kind in kinds])


class WrongText(NamedTuple):
    """A wrong text for each image: its rows, and whether the batch had one to draw."""

    text: Text
    exists: Bool[Array, " batch"]


def rc3_losses(
    model: RC3,
    batch: Batch,
    key: PRNGKeyArray,
    objective: Objective,
    weak_weight: Float[Array, ""] | float = 1.0,
    relevance_vectors: tuple[Array, Array] | None = None,
    deterministic: bool = False,
) -> tuple[Float[Array, ""], Terms]:
    """The weighted sum of the objectives, and each term by itself.

    Args:
      model: bound to its parameters (the function runs inside `nn.apply`).
      batch: rows of each kind present (`strict`, `weak`, `parallel`), see `data.stream`.
      key: source of the hard negatives.
      weak_weight: the ramp's present value, multiplied into R-XVtCL on weak rows.
      relevance_vectors: text vectors of the weak rows' texts a and b that tell their
        relevance; None takes those of the model itself.
      deterministic: switches dropout off.
    """
    encoded = _encode(model, batch, objective, deterministic)
    temperature = model.temperatures()
    contrasted = objective.contrasted(batch)
    terms: Terms = {}

    if objective.itc:
        terms["itc"] = _image_text_contrast(encoded, temperature["image_text"])
    aligned = [kind for kind in ALIGNED if kind in batch]
    if objective.xtcl and aligned:
        a, b = encoded.text("a", aligned), encoded.text("b", aligned)
        groups = join([batch[kind]["groups"] for kind in aligned])
        terms["xtcl"] = info_nce(a.vector, b.vector, temperature["text_text"], groups)

    # All that the fusion encoder reads over images goes through it as one batch.
    visual = encoded.visual
    passes: dict[str, tuple[Text, Array, Array]] = {}
    wrong_text = None
    if objective.itm or contrasted:
        text_a = encoded.text("a", encoded.kinds)
        passes["a"] = (text_a, visual.tokens, visual.mask)
    if contrasted:
        seen = (encoded.take(x, contrasted) for x in (visual.tokens, visual.mask))
        passes["b"] = (encoded.text("b", contrasted), *seen)
    same_image_negatives = objective.draws_same_image_negatives(contrasted)
    if objective.itm or same_image_negatives:
        drawn, exists = sample_negatives(
            jax.random.fold_in(key, 0),
            visual.vector,
            text_a.vector,
            temperature["image_text"],
            encoded.groups,
        )
        wrong_text = WrongText(Text(*(x[drawn] for x in text_a)), exists)
        passes["wrong_text"] = (wrong_text.text, visual.tokens, visual.mask)
    if objective.itm:
        drawn, has_wrong_image = sample_negatives(
            jax.random.fold_in(key, 1),
            text_a.vector,
            visual.vector,
            temperature["image_text"],
            encoded.groups,
        )
        passes["wrong_image"] = (text_a, visual.tokens[drawn], visual.mask[drawn])
    if objective.mclm:
        masked = encoded.text("masked", encoded.kinds)
        passes["masked"] = (masked, visual.tokens, visual.mask)
    fused = _fuse(model, passes, deterministic)

    if contrasted:
        terms |= _visio_textual_contrast(
            model,
            batch,
            encoded,
            fused,
            wrong_text if same_image_negatives else None,
            objective,
            temperature["fused"],
            relevance_vectors,
        )
    if objective.itm:
        logits = (model.match(fused[name]) for name in ("a", "wrong_image", "wrong_text"))
        terms["itm"], terms["itm_accuracy"] = matching_loss(
            *logits, has_wrong_image, wrong_text.exists
        )
    if objective.mclm:
        terms["mclm"], terms["mclm_accuracy"] = _masked_lm(
            model, batch, encoded, fused["masked"], deterministic
        )

    factors = {name: getattr(objective, name) for name in ("itc", "xtcl", "xvtcl", "itm", "mclm")}
    for name in ("xvtcl_weak", "soft", "kl", "hinge", "mse"):
        factors[name] = objective.xvtcl_weak * weak_weight
    total = sum(factors[name] * terms[name] for name in factors if name in terms)
    return total, {"loss": total, **terms}


def _encode(model: RC3, batch: Batch, objective: Objective, deterministic: bool) -> Encoded:
    """One pass of the visual towers over all images, one of the text tower over all texts."""
    kinds = [kind for kind in WITH_IMAGE if kind in batch]
    counts = [batch[kind]["ids_a"].shape[0] for kind in kinds]
    fields = [name for name in batch[kinds[0]] if "ids" not in name and "masked" not in name]
    rows = {name: join([batch[kind][name] for kind in kinds]) for name in fields}

    wanted = {
        (kind, view): batch[kind]["masked_ids" if view == "masked" else f"ids_{view}"]
        for kind in batch
        for view in _views(kind, batch, objective)
    }
    if not wanted:
        raise ValueError(
            f"no objective with a weight applies to {', '.join(batch)} rows; see objective.weights"
        )
    lengths = [ids.shape[0] for ids in wanted.values()]
    ids = join(list(wanted.values()))
    states, vectors = model.encode_text(ids, deterministic)
    parts = (split(x, lengths) for x in (states, ids != PAD_ID, vectors))
    texts = {name: Text(*part) for name, part in zip(wanted, zip(*parts), strict=True)}
    return Encoded(kinds, counts, rows["groups"], model.encode_visual(rows, deterministic), texts)


def _views(kind: str, batch: Batch, objective: Objective) -> list[str]:
    """The texts of a kind that some term reads; the others never enter the text tower."""
    contrasted = objective.contrasted(batch)
    translated = objective.xtcl and kind in ALIGNED
    if kind == "parallel":
        needs = {"a": translated, "b": translated or objective.mclm}
    else:
        # Wrong texts are drawn from the texts a of all rows with an image.
        needs = {
            "a": objective.itc or objective.itm or contrasted or translated,
            "b": objective.itc or kind in contrasted or translated,
        }
    return [view for view, needed in {**needs, "masked": objective.mclm}.items() if needed]


def _image_text_contrast(encoded: Encoded, temperature: Array) -> Array:
    """ITC: the image against either text, averaged."""
    texts = (encoded.text(view, encoded.kinds) for view in ("a", "b"))
    losses = (
        info_nce(encoded.visual.vector, text.vector, temperature, encoded.groups) for text in texts
    )
    return sum(losses) / 2


def _fuse(model, passes, deterministic) -> dict[str, Array]:
    """All (text, view tokens, view mask) passes in one call of the fusion encoder."""
    if not passes:
        return {}
    columns = zip(*((t.states, t.mask, *view) for t, *view in passes.values()), strict=True)
    fused = model.fuse(*map(join, columns), deterministic)
    counts = [text.states.shape[0] for text, _, _ in passes.values()]
    return dict(zip(passes, split(fused, counts), strict=True))


def _visio_textual_contrast(
    model: RC3,
    batch: Batch,
    encoded: Encoded,
    fused: Mapping[str, Array],
    wrong_text: WrongText | None,
    objective: Objective,
    temperature: Array,
    relevance_vectors: tuple[Array, Array] | None,
) -> Terms:
    """XVtCL on strict rows and R-XVtCL on weak rows; each kind is a contrast of its own."""
    kinds = objective.contrasted(batch)
    z_a = model.fused_vector(encoded.take(fused["a"], kinds), encoded.text("a", kinds).mask)
    z_b = model.fused_vector(fused["b"], encoded.text("b", kinds).mask)
    columns = [z_a, z_b]
    if wrong_text is not None:
        z_wrong = model.fused_vector(fused["wrong_text"], wrong_text.text.mask)
        z_wrong, exists = (encoded.take(x, kinds) for x in (z_wrong, wrong_text.exists))
        columns += [jnp.where(exists, jnp.sum(z * z_wrong, axis=1), -1e9) for z in (z_a, z_b)]
    counts = [batch[kind]["ids_a"].shape[0] for kind in kinds]
    parts = zip(kinds, zip(*(split(x, counts) for x in columns), strict=True), strict=True)
    terms: Terms = {}
    for kind, (a, b, *same_image) in parts:
        groups, same_image = batch[kind]["groups"], tuple(same_image) or None
        if kind == "strict":
            terms["xvtcl"] = info_nce(a, b, temperature, groups, same_image=same_image)
        else:
            own = (encoded.texts["weak", view].vector for view in ("a", "b"))
            terms |= weak_contrast(
                objective.regularizer,
                a,
                b,
                *(relevance_vectors or own),
                temperature,
                groups,
                same_image,
                objective.scales,
            )
    return terms


def _masked_lm(model, batch, encoded, fused, deterministic) -> tuple[Array, Array]:
    """MCLM: masked texts a given the image; those of parallel rows given the text b."""
    rows = [batch[kind] for kind in encoded.kinds]
    # Joined first, as `fused` is: how rows interleave depends on what is joined.
    parts = [
        (fused, *(join([row[f"masked_{x}"] for row in rows]) for x in ("positions", "labels")))
    ]
    if "parallel" in batch:
        masked, other = encoded.texts["parallel", "masked"], encoded.texts["parallel", "b"]
        fused = model.fuse(masked.states, masked.mask, other.states, other.mask, deterministic)
        row = batch["parallel"]
        parts.append((fused, row["masked_positions"], row["masked_labels"]))
    states, positions, labels = map(join, zip(*parts, strict=True))
    return masked_lm_loss(model.predict_tokens(states, positions), labels)
