"""The terms that RC³ and CCLM have in common: contrast, matching, masked language modelling."""

from __future__ import annotations

from jaxtyping import Array, Float

from rc3_jax.objectives.batching import interleave
from rc3_jax.objectives.masked_lm import masked_lm_loss
from rc3_jax.objectives.matching import matching_loss
from rc3_jax.objectives.terms import Encoded, Kinds, Losses, Pair, Pass, Term


def contrast_term(name: str, weight: float, pair: Pair) -> Term:
    """Contrast of the two views of a pair."""

    def loss(encoded: Encoded, kinds: Kinds) -> Losses:
        return {name: _contrast(encoded, pair, pair.text, kinds)}

    views = (pair.view, pair.text)
    return Term(name, weight, pair.kinds, loss, views, temperatures=(pair.temperature,))


def image_text_term(name: str, weight: float, pair: Pair) -> Term:
    """Contrast of an image with its text a and, where rows have one, with its text b; their mean."""

    def loss(encoded: Encoded, kinds: Kinds) -> Losses:
        value = _contrast(encoded, pair, "a", kinds)
        if both := encoded.having("b", kinds):
            value = (value + _contrast(encoded, pair, "b", both)) / 2
        return {name: value}

    views = ("image", "a", "b")
    return Term(name, weight, pair.kinds, loss, views, temperatures=(pair.temperature,))


def _contrast(encoded: Encoded, pair: Pair, text: str, kinds: Kinds) -> Float[Array, ""]:
    pair = pair._replace(text=text)
    x, y = (encoded.embedding(name, kinds) for name in (pair.view, pair.text))
    return encoded.contrast(pair.temperature, x, y, encoded.groups(kinds, *pair.texts))


def matching_term(name: str, weight: float, pair: Pair) -> Term:
    """Matching of a pair: one right pair to a wrong view and a wrong text (METHOD.md section 2)."""
    right = Pass(pair.kinds, pair.text, pair.view, match)
    wrong_view = Pass(pair.kinds, pair.text, "wrong_view", match)
    wrong_text = Pass(pair.kinds, "wrong_text", pair.view, match)
    passes = (right, wrong_view, wrong_text)

    def loss(encoded: Encoded, kinds: Kinds) -> Losses:
        positive, of_view, of_text = (
            encoded.read(text, view, match, kinds) for _, text, view, _ in passes
        )
        exists = encoded.has_negative(pair)
        value, accuracy = matching_loss(positive, of_view, of_text, exists)
        return {name: value, f"{name}_accuracy": accuracy}

    return Term(name, weight, pair.kinds, loss, passes=passes, temperatures=(pair.temperature,))


def masked_lm_term(name: str, weight: float, kinds: Kinds) -> Term:
    """Masked texts a given the image or, in parallel rows, the text b (METHOD.md section 2)."""
    given = {kind: "b" if kind == "parallel" else "image" for kind in kinds}
    passes = tuple(Pass((kind,), "masked", view, mlm_hidden) for kind, view in given.items())

    def loss(encoded: Encoded, kinds: Kinds) -> Losses:
        hidden = interleave(
            [encoded.outputs[kind, "masked", given[kind], mlm_hidden] for kind in kinds]
        )
        labels = encoded.field("masked_labels", kinds)
        mesh = encoded.comparison.tiling.mesh
        value, accuracy = masked_lm_loss(hidden, *encoded.model.output_embedding(), labels, mesh)
        return {name: value, f"{name}_accuracy": accuracy}

    return Term(name, weight, kinds, loss, passes=passes)


def match(model, fused, mask, positions) -> Float[Array, "batch 2"]:
    """Head: whether text and view belong together."""
    return model.match(fused)


def mlm_hidden(model, fused, mask, positions) -> Float[Array, "batch masked width"]:
    """Head: states at the masked positions."""
    return model.mlm_hidden(fused, positions)
