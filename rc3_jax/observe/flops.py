"""Model FLOPs of a training step by a formula: what MFU divides by, whatever the compiler does.

Counted are the matrix products of the forward pass, 2 x m x n x k each, over all positions,
padding included; the backward pass takes twice the forward's. Recomputation, elementwise work,
look-ups in tables and the optimizer do not count (Chowdhery et al., PaLM, arXiv 2204.02311,
appendix B).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import ml_collections

from rc3_jax.objectives.rc3 import ALIGNED, WITH_IMAGE, contrasted
from rc3_jax.systems import encoder_settings


class Part(NamedTuple):
    """FLOPs of a forward pass, over the global batch, and whether a gradient flows back."""

    forward: float
    trained: bool = True

    @property
    def step(self) -> float:
        """Forward and backward."""
        return self.forward * (3 if self.trained else 1)


def block_flops(width: int, mlp_width: int, queries: int, keys: int | None = None) -> float:
    """Forward FLOPs of one transformer block on one row.

    Args:
      queries: tokens of the row.
      keys: tokens of the other view, where the block has cross-attention.
    """
    self_attention = 8 * queries * width**2 + 4 * queries**2 * width
    mlp = 4 * queries * width * mlp_width
    if keys is None:
        return self_attention + mlp
    cross_attention = 4 * (queries + keys) * width**2 + 4 * queries * keys * width
    return self_attention + cross_attention + mlp


def text_flops(model: ml_collections.ConfigDict, length: int) -> float:
    """Forward FLOPs of the text tower and its projection on one text of `length` tokens."""
    text = model.text
    layers = text.depth * block_flops(text.width, text.mlp_width, length)
    return layers + 2 * text.width * model.projection_size


def patch_flops(model: ml_collections.ConfigDict) -> float:
    """Forward FLOPs of the visual tower and the image projection on one image."""
    patch = model.patch
    if patch.type == "swin":
        return _swin_flops(patch) + 2 * model.text.width * model.projection_size
    count = (patch.image_size // patch.patch) ** 2
    embedding = 2 * count * 3 * patch.patch**2 * patch.width
    layers = patch.depth * block_flops(patch.width, patch.mlp_width, count + 1)
    return embedding + layers + 2 * patch.width * model.projection_size


def _swin_flops(patch: ml_collections.ConfigDict) -> float:
    side, width = patch.image_size // patch.patch, patch.width
    total = 2 * side**2 * 3 * patch.patch**2 * width
    for stage, depth in enumerate(patch.depths):
        window = min(patch.window, side)
        windows = (side // window) ** 2
        total += depth * windows * block_flops(width, 4 * width, window**2)
        if stage < len(patch.depths) - 1:  # four neighbours become one of twice the width
            total += 2 * (side // 2) ** 2 * 4 * width * 2 * width
            side, width = side // 2, 2 * width
    return total


def roi_flops(model: ml_collections.ConfigDict) -> float:
    """Forward FLOPs of the ROI tower on one image: both kinds of content are computed."""
    roi, patch = model.roi, model.patch
    side = patch.image_size // patch.patch
    features = 2 * roi.regions * roi.feature_size * patch.width
    # Weights of all cells as products of those of rows and columns, their sum over the grid, W.
    aligned = 2 * roi.regions * (side**2 * (1 + patch.width) + patch.width**2)
    place = 2 * roi.regions * int(roi.geometry[0]) * patch.width
    layers = roi.depth * block_flops(patch.width, patch.mlp_width, roi.regions)
    return features + aligned + place + layers


def visual_tokens(model: ml_collections.ConfigDict) -> int:
    """Tokens of an image: class token, patches, regions."""
    patches = (model.patch.image_size // model.patch.patch) ** 2
    return 1 + patches + model.roi.regions


def fusion_flops(model: ml_collections.ConfigDict, length: int, keys: int) -> float:
    """Forward FLOPs of the fusion encoder on one text of `length` and a view of `keys` tokens."""
    text = model.text
    return model.fusion.depth * block_flops(text.width, text.mlp_width, length, keys)


def readout_flops(model: ml_collections.ConfigDict, length: int) -> float:
    """Forward FLOPs of z's read-out and projection and of the matching head on one fused row."""
    width = model.text.width
    pool = (4 * width**2 * (1 + length) + 4 * length * width) * (model.readout == "attention")
    matching = 2 * width * 2 * width + 2 * 2 * width * 2
    return pool + 2 * width * model.projection_size + matching


def step_flops(
    config: ml_collections.ConfigDict, rows: Mapping[str, int], vocab_size: int
) -> dict[str, Part]:
    """Model FLOPs of one step of RC³, by part, as `objectives.rc3.rc3_losses` goes through it.

    Args:
      rows: rows of each kind in a global batch.
    """
    model, objective = config.model, config.objective
    weights, length, size = objective.weights, config.data.max_length, model.projection_size
    images = sum(rows.get(kind, 0) for kind in WITH_IMAGE)
    kinds = contrasted(objective, rows)
    contrasts = sum(rows[kind] for kind in kinds)
    fused = images * _image_passes(objective, kinds) + contrasts
    masked = sum(rows.values()) if weights.mclm else 0
    tokens = visual_tokens(model)
    parts = {
        "text tower": Part(text_rows(objective, rows) * text_flops(model, length)),
        "patch tower": Part(images * patch_flops(model)),
        "ROI tower": Part(images * roi_flops(model) if model.roi.regions else 0),
        "fusion, contrast and matching": Part(
            fused * (fusion_flops(model, length, tokens) + readout_flops(model, length))
        ),
        "fusion, masked texts": Part(
            (masked and images) * fusion_flops(model, length, tokens)
            + (masked and rows.get("parallel", 0)) * fusion_flops(model, length, length)
        ),
        "masked tokens": Part(masked * config.data.most_masked * 2 * model.text.width**2),
        "vocabulary product": Part(
            masked * config.data.most_masked * 2 * model.text.width * vocab_size
        ),
        "contrasts": Part(_pair_flops(objective, rows, size)),
        "hard negatives": Part(_negative_draws(objective, kinds) * 2 * images**2 * size, False),
    }
    if "weak" in kinds and set(objective.regularizer) & {"soft", "kl"}:
        parts["contrasts"] = Part(parts["contrasts"].forward + 2 * rows["weak"] ** 2 * size)
        parts["targets of relevance"] = Part(2 * rows["weak"] ** 2 * size, False)
    if "weak" in kinds and objective.relevance == "ema":
        parts["averaged text tower"] = Part(2 * rows["weak"] * text_flops(model, length), False)
    if "weak" in kinds and objective.relevance == "encoder":
        text = encoder_settings(config)["text"]
        layers = text["depth"] * block_flops(text["width"], text["mlp_width"], length)
        parts["sentence encoder"] = Part(2 * rows["weak"] * layers, False)
    return {name: part for name, part in parts.items() if part.forward}


def text_rows(objective: ml_collections.ConfigDict, rows: Mapping[str, int]) -> int:
    """Texts of a global batch that go through the text tower, masked ones among them."""
    weights, kinds = objective.weights, contrasted(objective, rows)
    total = 0
    for kind, count in rows.items():
        translated = bool(weights.xtcl) and kind in ALIGNED
        if kind == "parallel":
            views = (translated, translated or weights.mclm)
        else:
            views = (
                weights.itc or weights.itm or kinds or translated,
                weights.itc or kind in kinds or translated,
            )
        total += count * sum(map(bool, (*views, weights.mclm)))
    return total


def _image_passes(objective: ml_collections.ConfigDict, kinds: list[str]) -> int:
    """Passes of all images through the fusion encoder: text a, wrong text, wrong image."""
    itm = bool(objective.weights.itm)
    wrong_text = itm or bool(kinds and objective.same_image_negatives)
    return (itm or bool(kinds)) + wrong_text + itm


def _negative_draws(objective: ml_collections.ConfigDict, kinds: list[str]) -> int:
    itm = bool(objective.weights.itm)
    return (itm or bool(kinds and objective.same_image_negatives)) + itm


def _pair_flops(objective: ml_collections.ConfigDict, rows: Mapping[str, int], size: int) -> float:
    """Forward FLOPs of the similarities of ITC (two of them), XTCL, and the contrast of each kind."""
    weights = objective.weights
    images = sum(rows.get(kind, 0) for kind in WITH_IMAGE)
    aligned = sum(rows.get(kind, 0) for kind in ALIGNED)
    squares = 2 * images**2 * bool(weights.itc) + aligned**2 * bool(weights.xtcl)
    hard = [
        kind
        for kind in contrasted(objective, rows)
        if kind == "strict" or "soft" not in objective.regularizer
    ]
    return 2.0 * size * (squares + sum(rows[kind] ** 2 for kind in hard))
