"""The shapes of batches, before anything is read."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import ml_collections
import numpy as np

from rc3_jax.data.example import Row, reads_relevance, stacked, text_sizes, visual_fields
from rc3_jax.data.kinds import KINDS
from rc3_jax.data.record import Record

FieldShapes = dict[str, tuple[tuple[int, ...], type | np.dtype]]
"""Field → shape and type of one row."""


def example_batch(config: ml_collections.ConfigDict) -> tuple[Row, np.ndarray]:
    """Visual fields and token ids of two empty rows, as models take them for `init`."""
    size, roi = config.model.patch.image_size, config.model.roi
    boxes = np.tile(np.array([0, 0, 1, 1], np.float32), (roi.regions, 1))
    features = np.zeros((roi.regions, roi.feature_size), np.float32)
    record = Record("", 0, {}, boxes=boxes, features=features)
    row = visual_fields(record, np.zeros((size, size, 3), np.uint8), boxes, None, config)
    return stacked([row, row]), np.zeros((2, config.data.max_length), np.int32)


def abstract_batch(config: ml_collections.ConfigDict, rows: Mapping[str, int]) -> dict:
    """Shapes and types of a training batch with so many rows of each kind; nothing is read.

    Returns:
      kind → field → `jax.ShapeDtypeStruct`, the fields of `training_row` or `region_row`.
    """
    visual: FieldShapes = {
        name: (a.shape[1:], a.dtype) for name, a in example_batch(config)[0].items()
    }

    def fields(kind: str) -> FieldShapes:
        of = KINDS[kind]
        length, most = text_sizes(config, of.image)
        texts: tuple[int, ...] = (config.data.regions.per_image,) if of.regions else ()
        found: FieldShapes = {
            name: ((*texts, length), np.int32) for name in ("ids_a", "masked_ids")
        }
        if of.texts == 2:
            found["ids_b"] = ((length,), np.int32)
        for name in ("masked_positions", "masked_labels"):
            found[name] = ((*texts, most), np.int32)
        for name in ("groups", "sentences") if of.sentence else ("groups",):
            found[name] = (texts, np.int32)
        if kind == "weak" and reads_relevance(config):
            found["relevance"] = ((), np.float32)
        if not of.regions:
            return found | (visual if of.image else {})
        tokens = 1 + config.model.patch.grid**2
        found |= {name: visual[name] for name in ("image", "use_patches")}
        found |= {"region_tokens": ((*texts, tokens), bool), "is_image": (texts, bool)}
        return found | {"boxes": ((*texts, 4), np.float32)}

    return {
        kind: {
            name: jax.ShapeDtypeStruct((count, *shape), dtype)
            for name, (shape, dtype) in fields(kind).items()
        }
        for kind, count in rows.items()
    }
