"""One record to one row of arrays: texts drawn and masked, image augmented, regions padded.

Rows of kind region are a crop, several texts about parts of it, and where these parts are (CCLM.md
section 3.6). Two faults of the published code are mended: an attribute goes before its caption as a
whole, and an image whose texts speak of sides is never mirrored.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import ml_collections
import numpy as np
from jaxtyping import Int

from rc3_jax.data.augment import augment, crop_boxes
from rc3_jax.data.image import decode, read_header, resize
from rc3_jax.data.kinds import LanguagePair
from rc3_jax.data.left_right import speaks_of_sides
from rc3_jax.data.record import BadRecord, Element, Record
from rc3_jax.data.regions import pad_regions
from rc3_jax.data.text import draw, draw_texts, mask_tokens
from rc3_jax.data.tokenizer import Tokenizer

Row = dict[str, np.ndarray]
"""Field → array."""

_MORE_THAN_HALF = math.nextafter(0.5, 1)  # share of a box that has to be in the crop
_WHOLE = 0  # place of the whole image among a record's captions
_TOLERANCE = 1e-5  # of a cell, by which float32 may err


def training_row(
    record: Record,
    groups: Int[np.ndarray, " groups"],
    pair: LanguagePair,
    tokenizer: Tokenizer,
    config: ml_collections.ConfigDict,
    rng: np.random.Generator,
) -> Row:
    """A row of a training batch, with texts of a pair that the record offers.

    All of its randomness comes from `rng`.

    Args:
      groups: that of the image or sentence; then, of strict and parallel rows, the sentence.

    Returns:
      `ids_a`, `masked_ids` and, where the pair is of two, `ids_b` int32 `[length]`;
      `masked_positions`, `masked_labels` int32 `[most]`; `groups` and, if given, `sentences` int32;
      `relevance` float32, where it is known and read; and for a record with an image those of
      `visual_fields`.
    """
    drawn = draw_texts(record, pair, rng)
    ids = encode_texts(drawn, tokenizer, record.where)
    row = dict(zip(("ids_a", "ids_b"), ids, strict=False))
    has_image = record.image is not None
    row |= masked_fields(ids[0], tokenizer, config, rng, has_image)
    row |= zip(("groups", "sentences"), np.asarray(groups, np.int32), strict=False)
    if record.relevance is not None and reads_relevance(config):
        row["relevance"] = np.asarray(record.relevance, np.float32)
    if not has_image:
        return row
    pixels, boxes, visible = augment(
        read_header(record.image, record.where),
        record.boxes,
        config.model.patch.image_size,
        rng,
        crop_scale=tuple(config.data.image.crop_scale),
        jitter=config.data.image.jitter,
        may_flip=config.data.image.flip and not speak_of_sides(drawn),
        operations=config.data.image.rand_augment,
        geometric=not (config.model.roi.regions and record.boxes is not None),
    )
    row |= visual_fields(record, pixels, boxes, visible, config)
    if config.model.roi.regions and row["region_mask"].any():
        chance, forms = rng.random(), config.data.visual_forms
        dropout = config.data.modality_dropout if forms == "both" else 0.0
        row["use_patches"] = np.asarray(chance >= dropout and forms != "regions")
        row["use_regions"] = np.asarray(not dropout <= chance < 2 * dropout and forms != "patches")
    return row


def region_row(
    record: Record,
    groups: Int[np.ndarray, " groups"],
    pair: LanguagePair,
    tokenizer: Tokenizer,
    config: ml_collections.ConfigDict,
    rng: np.random.Generator,
) -> Row:
    """A row of a training batch; N is `data.regions.per_image`, G is `model.patch.grid`.

    The first text is about the whole image, if the record has such texts. The others are about
    elements in random order, which are repeated where there are too few.

    Args:
      groups: those of the whole image and of each element.
      pair: not used, for each text draws its own language.

    Returns:
      `image` uint8 `[size, size, 3]`; `use_patches`; `ids_a`, `masked_ids` int32 `[N, length]`;
      `masked_positions`, `masked_labels` int32 `[N, most]`; `groups` int32 `[N]`, equal for the
      same element and for the same caption; `region_tokens` bool `[N, 1 + G * G]`, see
      `tokens_inside`; `boxes` float32 `[N, 4]`, centre, width and height as fractions of `image`;
      `is_image` bool `[N]`, texts about the whole image.
    """
    picture = read_header(record.image, record.where)
    height, width = picture.shape[:2]
    boxes = np.array([element.box for element in record.elements])
    crop = crop_around(boxes[rng.integers(len(boxes))], width, height, rng)
    _, visible = crop_boxes(boxes, np.divide(crop, [width, height] * 2), _MORE_THAN_HALF)
    order = 1 + rng.permutation(np.flatnonzero(visible))

    captions = record_captions(record)
    slots = [_WHOLE] if captions[_WHOLE] else []
    more = config.data.regions.per_image - len(slots)
    slots += itertools.islice(itertools.cycle(order.tolist()), more)
    drawn = []
    for slot in slots:
        language = draw(list(captions[slot]), rng)
        drawn.append((language, draw(captions[slot][language], rng)))

    image, corners, _ = augment(
        picture,
        np.array([(0, 0, 1, 1), *boxes])[slots],
        config.model.patch.image_size,
        rng,
        crop=crop,
        jitter=config.data.image.jitter,
        may_flip=config.data.image.flip and not speak_of_sides(drawn),
        operations=config.data.image.rand_augment,
    )
    ids = encode_texts(drawn, tokenizer, record.where)
    low, high = corners[:, :2], corners[:, 2:]
    return {
        "image": image,
        "use_patches": np.asarray(True),
        "ids_a": ids,
        **stacked([masked_fields(text, tokenizer, config, rng, True) for text in ids]),
        "groups": groups[caption_groups(captions, tokenizer)[slots]],
        "region_tokens": tokens_inside(corners, config.model.patch.grid),
        "boxes": np.concatenate([(low + high) / 2, high - low], axis=1),
        "is_image": np.array(slots) == _WHOLE,
    }


def crop_around(
    box: Sequence[float], width: int, height: int, rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """Draws x1, y1, x2, y2 in pixels, each edge uniformly between that of the box and the image's.

    Args:
      box: x1, y1, x2, y2 as fractions of width and height.
    """
    edges = []
    for low, high, size in ((box[0], box[2], width), (box[1], box[3], height)):
        last = min(math.floor(low * size), size - 1)
        first = max(min(math.ceil(high * size), size), last + 1)
        edges.append((int(rng.integers(last + 1)), int(rng.integers(first, size + 1))))
    (x1, x2), (y1, y2) = edges
    return x1, y1, x2, y2


def tokens_inside(corners: np.ndarray, grid: int) -> np.ndarray:
    """Which visual tokens belong to boxes (CCLM.md section 3.6).

    Args:
      corners: `[boxes, 4]`, x1, y1, x2, y2 as fractions of the image.
      grid: number of patches along each side.

    Returns:
      bool `[boxes, 1 + grid * grid]`: the pooled token, always; then, row by row, every patch
      that a box touches, at least one.
    """
    first = np.floor(corners[:, :2] * grid + _TOLERANCE).clip(0, grid - 1)
    end = np.maximum(np.ceil(corners[:, 2:] * grid - _TOLERANCE), first + 1)
    places = np.arange(grid)
    inside = (places >= first[..., None]) & (places < end[..., None])  # boxes, x or y, place
    patches = inside[:, 1, :, None] & inside[:, 0, None, :]
    pooled = np.ones((len(corners), 1), bool)
    return np.concatenate([pooled, patches.reshape(len(corners), -1)], axis=1)


def record_captions(record: Record) -> list[Mapping[str, Sequence[str]]]:
    """Language → texts: those about the whole image, then those about each element."""
    return [record.texts, *map(_element_captions, record.elements)]


def _element_captions(element: Element) -> Mapping[str, Sequence[str]]:
    """Every caption after every attribute that the element has in its language."""
    return {
        language: [
            f"{attribute} {text}".lstrip()
            for attribute in element.attributes.get(language) or ("",)
            for text in texts
        ]
        for language, texts in element.texts.items()
    }


def caption_groups(
    captions: Sequence[Mapping[str, Sequence[str]]], tokenizer: Tokenizer
) -> np.ndarray:
    """Numbers of what must not be each other's negatives.

    Returns:
      int32 `[len(captions)]`, `[0, len(captions))`: equal for those that have a caption in
      common, be it through others, and different for all others.
    """
    groups = list(range(len(captions)))
    first: dict[tuple[str, str], int] = {}
    for number, texts in enumerate(captions):
        said = {(code, tokenizer.clean(text)) for code, of in texts.items() for text in of}
        joined = {groups[first[caption]] for caption in said if caption in first} | {number}
        groups = [min(joined) if group in joined else group for group in groups]
        for caption in said:
            first.setdefault(caption, number)
    return np.array(groups, np.int32)


def speak_of_sides(drawn: Sequence[tuple[str, str]]) -> bool:
    """Whether one of the (language, text) speaks of left or right."""
    return any(speaks_of_sides({language: [text]}) for language, text in drawn)


def encode_texts(drawn: Sequence[tuple[str, str]], tokenizer: Tokenizer, where: str) -> np.ndarray:
    """Token ids of (language, text), int32 `[len(drawn), length]`.

    Raises:
      BadRecord: cleaning leaves no word of a text.
    """
    texts = [text for _, text in drawn]
    for text in texts:
        if not tokenizer.clean(text):
            problem = f"text {text[:40]!r} has no word once it is cleaned"
            raise BadRecord(where, f"{problem}; remove it, or set data.clean_captions to False")
    return tokenizer.encode(texts)


def masked_fields(
    ids: np.ndarray,
    tokenizer: Tokenizer,
    config: ml_collections.ConfigDict,
    rng: np.random.Generator,
    has_image: bool,
) -> Row:
    """`masked_ids`, `masked_positions` and `masked_labels` of a text, see `mask_tokens`."""
    share, most = config.data.mask_ratio, text_sizes(config, has_image)[1]
    options = dict(share=share, most=most, mask_eos=config.data.mask_eos)
    fields = mask_tokens(ids, tokenizer.vocab_size, rng, **options)
    return dict(zip(("masked_ids", "masked_positions", "masked_labels"), fields, strict=True))


def text_sizes(config: ml_collections.ConfigDict, has_image: bool) -> tuple[int, int]:
    """Tokens of a text in rows with or without an image, and how many are masked at most."""
    data = config.data
    if has_image:
        return data.max_length, data.max_masked
    return (
        data.parallel_max_length or data.max_length,
        data.parallel_max_masked or data.max_masked,
    )


def reads_relevance(config: ml_collections.ConfigDict) -> bool:
    """Whether the objective reads the true relevance of weak rows."""
    return getattr(config.objective, "relevance", None) == "true"


def evaluation_row(record: Record, config: ml_collections.ConfigDict) -> Row:
    """The visual fields of a record's whole image, without any randomness."""
    pixels = resize(decode(record.image, record.where), config.model.patch.image_size)
    return visual_fields(record, pixels, record.boxes, None, config)


def stacked(rows: Sequence[Row]) -> Row:
    """The fields of rows of one kind, each in one array."""
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def visual_fields(
    record: Record,
    pixels: np.ndarray,
    boxes: np.ndarray | None,
    visible: np.ndarray | None,
    config: ml_collections.ConfigDict,
) -> Row:
    """`image` uint8 `[size, size, 3]`, `use_patches` and, with an ROI tower, the regions:
    `region_features`, `region_boxes`, `region_mask`, `has_features`, `use_regions`.
    """
    row: Row = {"image": pixels, "use_patches": np.asarray(True)}
    roi = config.model.roi
    if roi.regions:
        size = roi.regions, roi.feature_size
        row |= pad_regions(boxes, record.features, visible, *size, record.where)
        row["has_features"] = np.asarray(record.features is not None)
        row["use_regions"] = np.asarray(True)
    return row
