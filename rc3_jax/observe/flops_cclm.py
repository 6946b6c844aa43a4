"""Model FLOPs of a training step of CCLM; see `flops`."""

from __future__ import annotations

from collections.abc import Mapping

import ml_collections

from rc3_jax.config_cclm import visual_grid
from rc3_jax.data.example import text_sizes
from rc3_jax.objectives.cclm import WITH_IMAGE
from rc3_jax.observe.flops import Part, fusion_flops, patch_flops, text_flops


def cclm_flops(
    config: ml_collections.ConfigDict, rows: Mapping[str, int], vocab_size: int
) -> dict[str, Part]:
    """By part, as `objectives.cclm.cclm_losses` goes through a step.

    Args:
      rows: rows of each kind in a global batch.
    """
    model, objective = config.model, config.objective
    keys = 1 + visual_grid(model.patch) ** 2
    images = sum(rows.get(kind, 0) for kind in WITH_IMAGE)
    regions = rows.get("region", 0) * config.data.regions.per_image
    parallel = rows.get("parallel", 0)
    second = sum(rows.get(kind, 0) for kind in ("strict", "weak"))
    views = (  # weights, rows, kind, tokens of the first view, texts besides a and masked
        (objective.weights.image, images, "captioned", keys, second),
        (objective.weights.text, parallel, "parallel", None, parallel),
        (objective.weights.region, regions, "region", keys, 0),
    )
    width, size = model.text.width, model.projection_size
    head = 2 * width * 2 * width
    pixels = images + rows.get("region", 0)
    parts = {"visual tower": pixels * patch_flops(model), "text tower": 0.0, "fusion": 0.0}
    parts["visual tower"] += regions * 2 * width * size  # each region has a vector of its own
    parts |= {"heads": 0.0, "vocabulary product": 0.0, "contrasts": 0.0, "hard negatives": 0.0}
    for weights, count, kind, seen, others in views:
        if not count or not any(weights.values()):
            continue
        length, most = text_sizes(config, kind)
        masked, matched = bool(weights.masked_lm), bool(weights.matching)
        boxes = kind == "region" and bool(weights.box or weights.giou)
        parts["text tower"] += (count * (1 + masked) + others) * text_flops(model, length)
        reads = count * (3 * matched + masked + boxes)
        parts["fusion"] += reads * fusion_flops(model, length, seen or length)
        parts["heads"] += count * (3 * matched * (head + 8 * width) + boxes * (head + 16 * width))
        parts["heads"] += count * masked * most * 2 * width**2
        parts["vocabulary product"] += count * masked * most * 2 * width * vocab_size
        squares = bool(weights.contrast) * count**2
        if kind == "captioned":
            squares += (bool(weights.contrast) + bool(weights.captions)) * others**2
        parts["contrasts"] += 2.0 * squares * size
        sweeps = 4 if objective.negative_floor else 2
        parts["hard negatives"] += matched * sweeps * 2.0 * count**2 * size
    return {name: Part(flops, name != "hard negatives") for name, flops in parts.items() if flops}
