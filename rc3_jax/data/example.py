"""One record to one row of arrays: texts drawn and masked, image augmented, regions padded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax
import ml_collections
import numpy as np

from rc3_jax.data.image import augment, decode, resize
from rc3_jax.data.record import BadRecord, LanguagePair, Record
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
      `ids_a`, `masked_ids` and, where the pair is of two, `ids_b` int32 `[length]`;
      `masked_positions`, `masked_labels` int32 `[most]`; `groups` int32; and for a record with an
      image those of `visual_fields`.
    """
    drawn = draw_texts(record, pair, rng)
    ids = encode_texts([text for _, text in drawn], tokenizer, record.where)
    row = dict(zip(("ids_a", "ids_b"), ids, strict=False))
    kind = "parallel" if record.image is None else "captioned"
    row |= masked_fields(ids[0], tokenizer, config, rng, kind)
    row["groups"] = np.int32(group)
    if record.image is None:
        return row
    spoken = ({language: [text]} for language, text in drawn)
    may_flip = config.data.image.flip and not any(map(speaks_of_sides, spoken))
    pixels, boxes, visible = augment(
        decode(record.image, record.where),
        record.boxes,
        config.model.patch.image_size,
        rng,
        crop_scale=tuple(config.data.image.crop_scale),
        jitter=config.data.image.jitter,
        may_flip=may_flip,
        operations=config.data.image.rand_augment,
        geometric=not (config.model.roi.regions and record.boxes is not None),
    )
    row |= visual_fields(record, pixels, boxes, visible, config)
    if config.model.roi.regions and row["region_mask"].any():
        chance = rng.random()
        dropout = config.data.modality_dropout
        row["use_patches"] = np.bool_(chance >= dropout)
        row["use_regions"] = np.bool_(not dropout <= chance < 2 * dropout)
    return row


def encode_texts(texts: Sequence[str], tokenizer: Tokenizer, where: str) -> np.ndarray:
    """Token ids, int32 `[len(texts), length]`; raises BadRecord where cleaning leaves no word."""
    for text in texts:
        if not tokenizer.clean(text):
            raise BadRecord(
                f"{where}: text {text[:40]!r} has no word once it is cleaned; remove it, or set "
                "data.clean_captions to False"
            )
    return tokenizer.encode(texts)


def masked_fields(
    ids: np.ndarray,
    tokenizer: Tokenizer,
    config: ml_collections.ConfigDict,
    rng: np.random.Generator,
    kind: str = "captioned",
) -> Row:
    """`masked_ids`, `masked_positions` and `masked_labels` of a text, see `mask_tokens`."""
    masked, positions, labels = mask_tokens(
        ids,
        tokenizer.vocab_size,
        rng,
        config.data.mask_share,
        text_sizes(config, kind)[1],
        mask_eos=config.data.mask_eos,
    )
    return {"masked_ids": masked, "masked_positions": positions, "masked_labels": labels}


def text_sizes(config: ml_collections.ConfigDict, kind: str) -> tuple[int, int]:
    """Tokens of a text in rows of a kind, and how many of them are masked at most."""
    data = config.data
    if kind != "parallel":
        return data.max_length, data.most_masked
    return (
        data.parallel_max_length or data.max_length,
        data.parallel_most_masked or data.most_masked,
    )


def evaluation_row(record: Record, config: ml_collections.ConfigDict) -> Row:
    """The visual fields of a record's whole image, without any randomness."""
    size = config.model.patch.image_size
    pixels = resize(decode(record.image, record.where), size)
    return visual_fields(record, pixels, record.boxes, None, config)


def stacked(rows: Sequence[Row]) -> Row:
    """The fields of rows of one kind, each in one array."""
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


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
    """Visual fields and token ids of two empty rows, as models take them for `init`."""
    return _visual_example(config, 2), np.zeros((2, config.data.max_length), np.int32)


def example_rows(config: ml_collections.ConfigDict, kind: str, count: int) -> Row:
    """So many empty rows of a kind, with the fields of `training_row` or `region_row`."""
    length, most = text_sizes(config, kind)
    per_image, grid = config.data.regions.per_image, config.data.regions.grid
    texts = (count, per_image) if kind == "region" else (count,)
    rows = {name: np.zeros((*texts, length), np.int32) for name in ("ids_a", "masked_ids")}
    if kind not in ("captioned", "region"):
        rows["ids_b"] = np.zeros((count, length), np.int32)
    for name in ("masked_positions", "masked_labels"):
        rows[name] = np.zeros((*texts, most), np.int32)
    rows["groups"] = np.zeros(texts, np.int32)
    if kind == "parallel":
        return rows
    visual = _visual_example(config, count)
    if kind != "region":
        return rows | visual
    return rows | {
        "image": visual["image"],
        "use_patches": visual["use_patches"],
        "region_tokens": np.ones((*texts, 1 + grid * grid), bool),
        "boxes": np.tile(np.array([0.5, 0.5, 1, 1], np.float32), (*texts, 1)),
        "is_image": np.ones(texts, bool),
    }


def _visual_example(config: ml_collections.ConfigDict, count: int) -> Row:
    size, roi = config.model.patch.image_size, config.model.roi
    rows = {
        "image": np.zeros((count, size, size, 3), np.uint8),
        "use_patches": np.ones(count, bool),
    }
    if roi.regions:
        rows |= {
            "region_features": np.zeros((count, roi.regions, roi.feature_size), np.float32),
            "region_boxes": np.zeros((count, roi.regions, 4), np.float32),
            "region_mask": np.ones((count, roi.regions), bool),
            "has_features": np.ones(count, bool),
            "use_regions": np.ones(count, bool),
        }
    return rows


def abstract_batch(config: ml_collections.ConfigDict, rows: Mapping[str, int]) -> dict:
    """Shapes and types of a training batch with so many rows of each kind; nothing is read.

    Returns:
      kind → field → `jax.ShapeDtypeStruct`, the fields of `example_rows`.
    """
    return {
        kind: {
            name: jax.ShapeDtypeStruct((count, *value.shape[1:]), value.dtype)
            for name, value in example_rows(config, kind, 1).items()
        }
        for kind, count in rows.items()
    }
