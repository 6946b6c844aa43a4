"""The objectives of RC³, term by term: ITC + XTCL + R-XVtCL + ITM + MCLM (METHOD.md section 2).

A weight of 0 leaves the term, and the passes that only it needs, out of the compiled step.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
from jax.sharding import Mesh
from jaxtyping import Array, Float, PRNGKeyArray

from rc3_jax.config import ConfigError
from rc3_jax.data.tokenizer import PAD_ID
from rc3_jax.models.pair import View
from rc3_jax.models.rc3 import RC3
from rc3_jax.objectives.contrastive import info_nce
from rc3_jax.objectives.masked_lm import masked_lm_loss
from rc3_jax.objectives.matching import has_negative, matching_loss, sample_negatives
from rc3_jax.objectives.microbatch import microbatch
from rc3_jax.objectives.relevance import weak_contrast
from rc3_jax.objectives.rows import join, split
from rc3_jax.objectives.tiles import Tiling
from rc3_jax.parallel.exchange import fetch_rows

Batch = Mapping[str, Mapping[str, Array]]
Terms = dict[str, Float[Array, ""]]

WITH_IMAGE = ("strict", "weak")
ALIGNED = ("strict", "parallel")
"""Kinds whose texts translate one another."""
REGULARIZERS = ("soft", "kl", "hinge", "mse")
"""Terms of R besides the contrast that it weighs."""


def contrasted(objective: ml_collections.ConfigDict, batch: Batch) -> list[str]:
    """The kinds of rows that enter the visio-textual contrast."""
    on = {
        "strict": objective.weights.xvtcl,
        "weak": objective.weights.xvtcl_weak and "off" not in objective.regularizer,
    }
    return [kind for kind in WITH_IMAGE if kind in batch and on[kind]]


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
    visual: View
    texts: dict[tuple[str, str], View]

    def text(self, view: str, kinds: Sequence[str]) -> View:
        """One view of several kinds, joined."""
        return View(*map(join, zip(*(self.texts[kind, view] for kind in kinds), strict=True)))

    def take(self, rows: Array, kinds: Sequence[str]) -> Array:
        """Of an array over all rows with an image, those of some kinds."""
        parts = dict(zip(self.kinds, split(rows, self.counts), strict=True))
        return join([parts[kind] for kind in kinds])


def rc3_losses(
    model: RC3,
    batch: Batch,
    key: PRNGKeyArray,
    objective: ml_collections.ConfigDict,
    weak_weight: Float[Array, ""] | float = 1.0,
    relevance_vectors: tuple[Array, Array] | None = None,
    deterministic: bool = False,
    mesh: Mesh | None = None,
    microbatches: int = 1,
) -> tuple[Float[Array, ""], Terms]:
    """The weighted sum of the objectives, and each term by itself.

    Args:
      model: bound to its parameters (the function runs inside `nn.apply`).
      batch: rows of each kind present (`strict`, `weak`, `parallel`), see `data.stream`.
      key: source of the hard negatives.
      objective: `config.objective`, static: each choice compiles to a step of its own.
      weak_weight: the ramp's present value, multiplied into R-XVtCL on weak rows.
      relevance_vectors: text vectors of the weak rows' texts a and b that tell their
        relevance; None takes those of the model itself.
      deterministic: switches dropout off.
      mesh: where rows are spread; None for a single device.
      microbatches: parts of the batch that go through towers and fusion encoder in turn, see
        `microbatch`; all losses see the whole batch.
    """
    weights = objective.weights
    tiling = Tiling(objective.pairs.transport, objective.pairs.tile, mesh)
    in_parts = functools.partial(microbatch, model, microbatches, mesh)
    encoded = _encode(model, batch, objective, deterministic, in_parts)
    temperature = model.temperatures()
    kinds = contrasted(objective, batch)
    terms: Terms = {}

    if weights.itc:
        terms["itc"] = _image_text_contrast(encoded, temperature["image_text"], tiling)
    aligned = [kind for kind in ALIGNED if kind in batch]
    if weights.xtcl and aligned:
        a, b = encoded.text("a", aligned), encoded.text("b", aligned)
        groups = join([batch[kind]["groups"] for kind in aligned])
        terms["xtcl"] = info_nce(
            a.vector, b.vector, temperature["text_text"], groups, tiling=tiling
        )

    # All that the fusion encoder reads over images goes through it as one batch.
    visual, groups = encoded.visual, encoded.groups
    passes: dict[str, tuple[View, Array, Array]] = {}
    if weights.itm or kinds:
        text_a = encoded.text("a", encoded.kinds)
        passes["a"] = (text_a, visual.tokens, visual.mask)
    if kinds:
        seen = (encoded.take(x, kinds) for x in (visual.tokens, visual.mask))
        passes["b"] = (encoded.text("b", kinds), *seen)
    if weights.itm or (kinds and objective.same_image_negatives):
        tau = temperature["image_text"]
        drawn = sample_negatives(
            jax.random.fold_in(key, 0), visual.vector, text_a.vector, tau, groups, tiling
        )
        wrong_text = View(*fetch_rows(mesh, (text_a.tokens, text_a.mask), drawn), None)
        passes["wrong_text"] = (wrong_text, visual.tokens, visual.mask)
    if weights.itm:
        drawn = sample_negatives(
            jax.random.fold_in(key, 1), text_a.vector, visual.vector, tau, groups, tiling
        )
        wrong_image = fetch_rows(mesh, (visual.tokens, visual.mask), drawn)
        passes["wrong_image"] = (text_a, *wrong_image)
    z, matches = _fuse(model, passes, deterministic, in_parts)

    if kinds:
        z = {"b": z["b"]} | {
            name: encoded.take(z[name], kinds) for name in ("a", "wrong_text") if name in z
        }
        if not objective.same_image_negatives:
            z.pop("wrong_text", None)
        terms |= _visio_textual_contrast(
            batch, encoded, z, objective, temperature["fused"], relevance_vectors, tiling
        )
    if weights.itm:
        logits = (matches[name] for name in ("a", "wrong_image", "wrong_text"))
        terms["itm"], terms["itm_accuracy"] = matching_loss(*logits, has_negative(groups))
    if weights.mclm:
        terms["mclm"], terms["mclm_accuracy"] = _masked_lm(
            model, batch, encoded, deterministic, in_parts, mesh
        )

    factors = dict(weights) | {
        name: weights.xvtcl_weak * weak_weight for name in ("xvtcl_weak", *REGULARIZERS)
    }
    total = sum(factors[name] * terms[name] for name in factors if name in terms)
    return total, {"loss": total, **terms}


def _encode(
    model: RC3,
    batch: Batch,
    objective: ml_collections.ConfigDict,
    deterministic: bool,
    in_parts: Callable,
) -> Encoded:
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
        raise ConfigError(
            f"no objective with a weight applies to {', '.join(batch)} rows; see objective.weights"
        )
    lengths = [ids.shape[0] for ids in wanted.values()]
    ids = join(list(wanted.values()))
    states, vectors = in_parts(lambda model, ids: model.encode_text(ids, deterministic), ids)
    visual = in_parts(lambda model, rows: model.encode_visual(rows, deterministic), rows)
    parts = (split(x, lengths) for x in (states, ids != PAD_ID, vectors))
    texts = {name: View(*part) for name, part in zip(wanted, zip(*parts), strict=True)}
    return Encoded(kinds, counts, rows["groups"], visual, texts)


def _views(kind: str, batch: Batch, objective: ml_collections.ConfigDict) -> list[str]:
    """The texts of a kind that some term reads; the others never enter the text tower."""
    weights, kinds = objective.weights, contrasted(objective, batch)
    translated = weights.xtcl and kind in ALIGNED
    if kind == "parallel":
        needs = {"a": translated, "b": translated or weights.mclm}
    else:
        # Wrong texts are drawn from the texts a of all rows with an image.
        needs = {
            "a": weights.itc or weights.itm or kinds or translated,
            "b": weights.itc or kind in kinds or translated,
        }
    return [view for view, needed in {**needs, "masked": weights.mclm}.items() if needed]


def _image_text_contrast(encoded: Encoded, temperature: Array, tiling: Tiling) -> Array:
    """ITC: the image against either text, averaged."""
    texts = (encoded.text(view, encoded.kinds) for view in ("a", "b"))
    losses = (
        info_nce(encoded.visual.vector, text.vector, temperature, encoded.groups, tiling=tiling)
        for text in texts
    )
    return sum(losses) / 2


def _fuse(model, passes, deterministic, in_parts) -> tuple[dict[str, Array], dict[str, Array]]:
    """Vectors z and matching logits of all (text, view tokens, view mask) passes, by name; they go
    through the fusion encoder as one batch.
    """
    if not passes:
        return {}, {}

    def read(model, states, mask, *view):
        fused = model.fusion(states, mask, *view, deterministic)
        return model.fused_vector(fused, mask), model.match(fused)

    columns = zip(*((t.tokens, t.mask, *view) for t, *view in passes.values()), strict=True)
    results = in_parts(read, *map(join, columns))
    counts = [text.tokens.shape[0] for text, _, _ in passes.values()]
    return tuple(dict(zip(passes, split(x, counts), strict=True)) for x in results)


def _visio_textual_contrast(
    batch: Batch,
    encoded: Encoded,
    z: Mapping[str, Array],
    objective: ml_collections.ConfigDict,
    temperature: Array,
    relevance_vectors: tuple[Array, Array] | None,
    tiling: Tiling,
) -> Terms:
    """XVtCL on strict rows and R-XVtCL on weak rows; each kind is a contrast of its own."""
    kinds = contrasted(objective, batch)
    columns = [z["a"], z["b"]]
    if "wrong_text" in z:
        exists = encoded.take(has_negative(encoded.groups), kinds)
        columns += [
            jnp.where(exists, jnp.sum(z[view] * z["wrong_text"], axis=1), -1e9) for view in "ab"
        ]
    counts = [batch[kind]["ids_a"].shape[0] for kind in kinds]
    parts = zip(*(split(x, counts) for x in columns), strict=True)
    terms: Terms = {}
    for kind, (z_a, z_b, *same_image) in zip(kinds, parts, strict=True):
        groups, same_image = batch[kind]["groups"], tuple(same_image) or None
        if kind == "strict":
            terms["xvtcl"] = info_nce(
                z_a, z_b, temperature, groups, same_image=same_image, tiling=tiling
            )
            continue
        own = (encoded.texts["weak", view].vector for view in "ab")
        terms |= weak_contrast(
            objective.regularizer,
            z_a,
            z_b,
            *(relevance_vectors or own),
            temperature,
            groups,
            same_image,
            objective.scales,
            tiling,
        )
    return terms


def _masked_lm(model, batch, encoded, deterministic, in_parts, mesh) -> tuple[Array, Array]:
    """MCLM: masked texts a given the image; those of parallel rows given the text b."""

    def read(model, states, mask, view, view_mask, positions):
        return model.token_states(
            model.fusion(states, mask, view, view_mask, deterministic), positions
        )

    def field(name, kinds):
        return join([batch[kind][name] for kind in kinds])

    views = [(encoded.kinds, (encoded.visual.tokens, encoded.visual.mask))]
    if "parallel" in batch:
        other = encoded.texts["parallel", "b"]
        views.append((["parallel"], (other.tokens, other.mask)))
    states, labels = [], []
    for kinds, view in views:
        masked = encoded.text("masked", kinds)
        positions = field("masked_positions", kinds)
        states.append(in_parts(read, masked.tokens, masked.mask, *view, positions))
        labels.append(field("masked_labels", kinds))
    return masked_lm_loss(join(states), *model.vocabulary(), join(labels), mesh)
