"""The towers and the fusion encoder, each in as few passes as the shapes of a batch allow.

`terms` says which views and passes the terms of a loss need; see there for the names of views.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool

from rc3_jax.data.tokenizer import PAD_ID
from rc3_jax.models.base import VISUAL_FIELDS, PairModel, View
from rc3_jax.objectives.batching import deinterleave, interleave

Batch = Mapping[str, Mapping[str, Array]]
"""Kind of rows → field → array; see `data.stream`."""
Views = dict[tuple[str, str], View]
"""(kind, name of a view) → the encoded view."""
Head = Callable[[PairModel, Array, Array, Array | None], Array]
"""Maps (model, fused tokens, text mask, masked positions of a `masked` text) to what a term reads."""
Passes = dict[tuple[str, str, str], list[Head]]
"""(kind, text, view) → the heads that read it."""
FORMS = ("one_form", "other_form")
"""Names of views: every second row shows its patches in the first and its regions in the other, the
rows between them the other way round."""
InParts = Callable[..., Any]
"""Calls (function, *rows) as `microbatched` does."""

TEXT_FIELDS = {"a": "ids_a", "b": "ids_b", "masked": "masked_ids"}
"""Name of a text → its field in a batch."""


def encode_texts(
    rows: Batch, needed: AbstractSet[tuple[str, str]], deterministic: bool, in_parts: InParts
) -> Views:
    """One pass of the text tower over all texts of a length."""
    by_length: dict[int, dict[tuple[str, str], tuple[Array, Array]]] = {}
    for kind, fields in rows.items():
        for name, field in TEXT_FIELDS.items():
            if (kind, name) in needed and field in fields:
                # A masked token may have become any other, the padding token too.
                known = fields["ids_a" if name == "masked" else field] != PAD_ID
                same = by_length.setdefault(known.shape[1], {})
                same[kind, name] = fields[field], known
    views: Views = {}
    for texts in by_length.values():
        ids, mask = (interleave(list(x)) for x in zip(*texts.values(), strict=True))
        states, embedding = in_parts(
            lambda model, ids, mask: model.encode_text(ids, deterministic, mask), ids, mask
        )
        counts = [len(known) for _, known in texts.values()]
        parts = (deinterleave(x, counts) for x in (states, mask, embedding))
        views |= {
            text: View(*part) for text, part in zip(texts, zip(*parts, strict=True), strict=True)
        }
    return views


def encode_images(
    model: Any,
    batch: Batch,
    needed: AbstractSet[tuple[str, str]],
    deterministic: bool,
    in_parts: InParts,
) -> Views:
    """One pass of the visual towers over all images; regions come from their images' tokens."""
    read = {kind for kind, name in needed if name in ("image", "whole", *FORMS)}
    kinds = [kind for kind in batch if kind in read]
    kinds = [kind for kind in kinds if "image" in batch[kind]]
    if not kinds:
        return {}
    names = [name for name in VISUAL_FIELDS if name in batch[kinds[0]]]
    rows = {name: interleave([batch[kind][name] for kind in kinds]) for name in names}
    visual = in_parts(lambda model, rows: model.encode_visual(rows, deterministic), rows)
    counts = [len(batch[kind]["image"]) for kind in kinds]
    parts = zip(*(deinterleave(x, counts) for x in visual), strict=True)
    views: Views = {}
    for kind, (tokens, mask, embedding) in zip(kinds, parts, strict=True):
        if kind != "region":
            views[kind, "image"] = View(tokens, mask, embedding)
            for name, part in zip(FORMS, _forms(mask, batch[kind]), strict=True):
                if (kind, name) in needed:
                    views[kind, name] = View(tokens, part, None)
            continue
        inside = batch[kind]["region_tokens"]
        if (kind, "image") in needed:
            views[kind, "image"] = model.regions(tokens, inside)
        if (kind, "whole") in needed:
            tokens, mask = (jnp.repeat(x, inside.shape[1], axis=0) for x in (tokens, mask))
            views[kind, "whole"] = View(tokens, mask, None)
    return views


def _forms(
    mask: Bool[Array, "batch tokens"], fields: Mapping[str, Array]
) -> list[Bool[Array, "batch tokens"]]:
    """The masks of `FORMS`; a row without such tokens shows all of its tokens."""
    regions = fields["region_mask"].shape[1] if "region_mask" in fields else 0
    rows, tokens = mask.shape
    is_patch = jnp.arange(tokens) < tokens - regions
    is_even = jnp.arange(rows)[:, None] % 2 == 0
    chosen = (mask & (is_patch == is_even), mask & (is_patch != is_even))
    return [jnp.where(part.any(axis=1, keepdims=True), part, mask) for part in chosen]


def fuse(
    views: Views, rows: Batch, passes: Passes, deterministic: bool, in_parts: InParts
) -> dict[tuple[str, str, str, Head], Array]:
    """The fusion encoder over all passes, those of equal shapes together.

    The texts of a row that read one view go side by side, so that the keys and values of the view
    are computed once for all of them.
    """
    texts: dict[tuple, list[str]] = {}
    for kind, text, view in passes:
        texts.setdefault((kind, view, views[kind, text].mask.shape[1]), []).append(text)
    alike: dict[tuple, list[tuple[str, str, list[str]]]] = {}
    for (kind, view, length), names in texts.items():
        shape = (len(names), length, *views[kind, view].tokens.shape[1:])
        alike.setdefault(shape, []).append((kind, view, names))
    outputs: dict[tuple[str, str, str, Head], Array] = {}
    for readings in alike.values():

        def read(model, inputs, readings=readings):
            contexts, *said, _ = zip(*inputs, strict=True)
            tokens, masks = (interleave(x) for x in said)
            fused = model.fusion(
                tokens.reshape(-1, *tokens.shape[2:]),
                masks.reshape(-1, *masks.shape[2:]),
                *(interleave(x) for x in zip(*contexts, strict=True)),
                deterministic,
            )
            parts = deinterleave(fused.reshape(tokens.shape), [len(mask) for mask in said[1]])
            return [
                [
                    head(model, part[:, place], mask[:, place], positions)
                    for place, text in enumerate(names)
                    for head in passes[kind, text, view]
                ]
                for (kind, view, names), part, (*_, mask, positions) in zip(
                    readings, parts, inputs, strict=True
                )
            ]

        inputs = []
        for kind, view, names in readings:
            said = zip(*(views[kind, name][:2] for name in names), strict=True)
            positions = rows[kind]["masked_positions"] if "masked" in names else None
            context = views[kind, view][:2]
            inputs.append((context, *(jnp.stack(x, axis=1) for x in said), positions))
        for (kind, view, names), found in zip(readings, in_parts(read, inputs), strict=True):
            keys = [(kind, text, view, head) for text in names for head in passes[kind, text, view]]
            outputs |= dict(zip(keys, found, strict=True))
    return outputs
