"""One record to one row of arrays: texts drawn and masked, image augmented, regions padded."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import ml_collections
import numpy as np

from rc3_jax.data.image import augment, decode, resize
from rc3_jax.data.record import LanguagePair, Record
from rc3_jax.data.regions import pad_regions
from rc3_jax.data.sides import speaks_of_sides
from rc3_jax.data.text import draw_texts, mask_tokens
from rc3_jax.data.tokenizer import Tokenizer

Row = dict[str, np.ndarray]


def training_row(
    record: Record,
    group: int,
    pair: LanguagePair,
    tokenizer: Tokenizer,
    config: ml_collections.ConfigDict,
    rng: np.random.Generator,
) -> Row:
    """A row of a training batch, with texts of a pair that the record offers.

    All of its randomness comes from `rng`.

    Returns:
      `ids_a`, `ids_b`, `masked_ids` int32 `[length]`; `masked_positions`, `masked_labels` int32
      `[most]`; `groups` int32; and for a record with an image the fields of `visual_row`.
    """
    (language_a, text_a), (language_b, text_b) = draw_texts(record, pair, rng)
    ids_a, ids_b = tokenizer.encode([text_a, text_b])
    masked, positions, labels = mask_tokens(
        ids_a, tokenizer.vocab_size, rng, config.data.mask_share, config.data.most_masked
    )
    row = {
        "ids_a": ids_a,
        "ids_b": ids_b,
        "masked_ids": masked,
        "masked_positions": positions,
        "masked_labels": labels,
        "groups": np.int32(group),
    }
    if record.image is None:
        return row
    spoken = ({language_a: [text_a]}, {language_b: [text_b]})
    may_flip = config.data.image.flip and not any(map(speaks_of_sides, spoken))
    pixels, boxes, visible = augment(
        decode(record.image, record.where),
        record.boxes,
        config.model.patch.image_size,
        rng,
        crop_scale=tuple(config.data.image.crop_scale),
        jitter=config.data.image.jitter,
        may_flip=may_flip,
    )
    row |= visual_fields(record, pixels, boxes, visible, config)
    if config.model.roi.regions and row["region_mask"].any():
        chance = rng.random()
        dropout = config.data.modality_dropout
        row["use_patches"] = np.bool_(chance >= dropout)
        row["use_regions"] = np.bool_(not dropout <= chance < 2 * dropout)
    return row


def evaluation_row(record: Record, config: ml_collections.ConfigDict) -> Row:
    """The visual fields of a record's whole image, without any randomness."""
    size = config.model.patch.image_size
    pixels = resize(decode(record.image, record.where), size)
    return visual_fields(record, pixels, record.boxes, None, config)


def visual_fields(record, pixels, boxes, visible, config) -> Row:
    """`image` uint8 `[size, size, 3]`, `use_patches` and, with an ROI tower, the regions:
    `region_features`, `region_boxes`, `region_mask`, `has_features`, `use_regions`.
    """
    row = {"image": pixels, "use_patches": np.bool_(True)}
    if config.model.roi.regions:
        row |= pad_regions(
            boxes,
            record.features,
            visible,
            config.model.roi.regions,
            config.model.roi.feature_size,
            record.where,
        )
        row["has_features"] = np.bool_(record.features is not None)
        row["use_regions"] = np.bool_(True)
    return row


def example_batch(config: ml_collections.ConfigDict) -> tuple[Row, np.ndarray]:
    """Visual fields and token ids of two empty rows, as `RC3.__call__` takes them."""
    size, roi = config.model.patch.image_size, config.model.roi
    rows = {
        "image": np.zeros((2, size, size, 3), np.uint8),
        "use_patches": np.ones(2, bool),
    }
    if roi.regions:
        rows |= {
            "region_features": np.zeros((2, roi.regions, roi.feature_size), np.float32),
            "region_boxes": np.zeros((2, roi.regions, 4), np.float32),
            "region_mask": np.ones((2, roi.regions), bool),
            "has_features": np.ones(2, bool),
            "use_regions": np.ones(2, bool),
        }
    return rows, np.zeros((2, config.data.max_length), np.int32)


def abstract_batch(config: ml_collections.ConfigDict, rows: Mapping[str, int]) -> dict:
    """Shapes and types of a training batch with so many rows of each kind; nothing is read.

    Returns:
      kind → field → `jax.ShapeDtypeStruct`, the fields of `training_row`.
    """
    visual, ids = example_batch(config)
    length, most = ids.shape[1], config.data.most_masked
    text = {name: np.zeros((1, length), np.int32) for name in ("ids_a", "ids_b", "masked_ids")}
    text |= {name: np.zeros((1, most), np.int32) for name in ("masked_positions", "masked_labels")}
    text["groups"] = np.zeros(1, np.int32)
    return {
        kind: {
            name: jax.ShapeDtypeStruct((count, *value.shape[1:]), value.dtype)
            for name, value in (text if kind == "parallel" else text | visual).items()
        }
        for kind, count in rows.items()
    }
