"""The three losses of CCLM on two views of the same objects (METHOD.md section 3).

The first view is an image, a region of one, or a text; the second is a text, which reads the first
through the fusion encoder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import ml_collections
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, PRNGKeyArray

from rc3_jax.models.pair import PairModel, View
from rc3_jax.objectives.contrastive import info_nce
from rc3_jax.objectives.masked_lm import masked_lm_loss
from rc3_jax.objectives.matching import Rule, has_negative, matching_loss, sample_negatives
from rc3_jax.objectives.rows import join, split
from rc3_jax.objectives.tiles import Tiling
from rc3_jax.parallel.exchange import fetch_rows
from rc3_jax.parallel.mesh import batch_devices

Terms = dict[str, Float[Array, ""]]


class Pair(NamedTuple):
    """Two views of the same objects, row for row; rows of one group are no negatives."""

    view: View
    text: View
    groups: Int[Array, " batch"]


class Masked(NamedTuple):
    """Texts with masks, the view that helps to fill them, and what was there."""

    text: View
    view: View
    positions: Int[Array, "batch masked"]
    labels: Int[Array, "batch masked"]


class Context(NamedTuple):
    """What all losses of a step share.

    Attributes:
      objective: `config.objective` of CCLM; `contrast` and `matching` read its `pairs`,
        `itc_grad_scale`, `negatives` and `negative_floor`.
      in_parts: `microbatch` of the model, which takes a function of the model and rows.
    """

    model: PairModel
    objective: ml_collections.ConfigDict
    deterministic: bool
    mesh: Mesh | None
    in_parts: Callable

    @property
    def tiling(self) -> Tiling:
        """How all pairs of a batch are gone through."""
        return Tiling(self.objective.pairs.transport, self.objective.pairs.tile, self.mesh)

    def rule(self, rows: int) -> Rule:
        """How negatives are drawn from so many rows."""
        devices = 1 if self.mesh is None else batch_devices(self.mesh)
        local = self.objective.negatives == "local"
        return Rule(self.objective.negative_floor, rows // devices if local else None)

    def read(self, then: Callable, text: View, view: View, *rows: Array) -> Array:
        """`then(model, fused, *rows)` of the texts after they read their views."""

        def one_part(model, states, mask, view_tokens, view_mask, *rows):
            fused = model.fusion(states, mask, view_tokens, view_mask, self.deterministic)
            return then(model, fused, *rows)

        return self.in_parts(one_part, text.tokens, text.mask, view.tokens, view.mask, *rows)


def contrast(context: Context, pair: Pair) -> Array:
    """InfoNCE of the two views' vectors over the whole batch."""
    scale = context.objective.itc_grad_scale
    vectors = (scale_gradient(view.vector, scale) for view in (pair.view, pair.text))
    return info_nce(*vectors, context.model.pair_temperature(), pair.groups, tiling=context.tiling)


def scale_gradient(x: Array, scale: float) -> Array:
    """`x`, into which only `scale` times the gradient flows (CCLM.md section 2.1)."""
    return x if scale == 1 else scale * x + jax.lax.stop_gradient((1 - scale) * x)


def draw_negatives(
    context: Context, pair: Pair, key: PRNGKeyArray
) -> tuple[Int[Array, " batch"], Int[Array, " batch"]]:
    """For each text the row of a wrong view, for each view that of a wrong text."""
    tau, rule = context.model.pair_temperature(), context.rule(len(pair.groups))

    def draw(key, anchors, candidates):
        return sample_negatives(key, anchors, candidates, tau, pair.groups, context.tiling, rule)

    keys, view, text = jax.random.split(key), pair.view.vector, pair.text.vector
    return draw(keys[0], text, view), draw(keys[1], view, text)


def matching(
    context: Context, pair: Pair, negatives: tuple[Int[Array, " batch"], Int[Array, " batch"]]
) -> tuple[Array, Array]:
    """Matching loss and accuracy; right pairs, wrong views and wrong texts are read as one batch.

    Args:
      negatives: see `draw_negatives`.
    """
    logits = matching_logits(context, pair, negatives)
    exists = has_negative(pair.groups, context.rule(len(pair.groups)).within)
    return matching_loss(*logits, exists)


def matching_logits(context: Context, pair: Pair, negatives) -> list[Float[Array, "batch 2"]]:
    """Of the pairs as they are, with wrong views, with wrong texts."""

    def fetch(view, rows):
        return fetch_rows(context.mesh, (view.tokens, view.mask), rows)

    view, text = pair.view, pair.text
    wrong_view = View(*fetch(view, negatives[0]), None)
    wrong_text = View(*fetch(text, negatives[1]), None)
    texts = (text, text, wrong_text)
    views = (view, wrong_view, view)

    def joined(views):
        return View(join([v.tokens for v in views]), join([v.mask for v in views]), None)

    logits = context.read(lambda model, fused: model.match(fused), joined(texts), joined(views))
    return split(logits, [len(pair.groups)] * 3)


def masked_lm(context: Context, masked: Masked) -> tuple[Array, Array]:
    """Loss and accuracy of the masked tokens' predictions."""
    states = context.read(
        lambda model, fused, positions: model.token_states(fused, positions),
        masked.text,
        masked.view,
        masked.positions,
    )
    return masked_lm_loss(states, *context.model.vocabulary(), masked.labels, context.mesh)


def view_losses(
    context: Context,
    pair: Pair,
    masked: Masked,
    weights: Mapping[str, float],
    key: PRNGKeyArray,
) -> Terms:
    """`contrast`, `matching` and `masked_lm`, the latter two with `..._accuracy`.

    Args:
      weights: of the three; a term of weight 0, and the passes that only it needs, are left out.
    """
    terms: Terms = {}
    if weights["contrast"]:
        terms["contrast"] = contrast(context, pair)
    if weights["matching"]:
        negatives = draw_negatives(context, pair, key)
        terms["matching"], terms["matching_accuracy"] = matching(context, pair, negatives)
    if weights["masked_lm"]:
        terms["masked_lm"], terms["masked_lm_accuracy"] = masked_lm(context, masked)
    return terms
