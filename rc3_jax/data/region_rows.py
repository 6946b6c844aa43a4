"""A region record to one row: a crop, several texts about parts of it, and where these parts are.

CCLM.md section 3.6. Two faults of the published code are mended: an attribute goes before its
caption as a whole, and an image whose texts speak of sides is never mirrored.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import ml_collections
import numpy as np

from rc3_jax.data.example import Row, encode_texts, masked_fields
from rc3_jax.data.image import augment, crop_boxes, decode
from rc3_jax.data.record import Element, LanguagePair, Record
from rc3_jax.data.sides import speaks_of_sides
from rc3_jax.data.text import draw
from rc3_jax.data.tokenizer import Tokenizer

_MORE_THAN_HALF = math.nextafter(0.5, 1)  # share of a box that has to be in the crop
_WHOLE = 0  # place of the whole image among a record's captions
_TOLERANCE = 1e-5  # of a cell, by which float32 may err


def region_row(
    record: Record,
    group: int,
    pair: LanguagePair,
    tokenizer: Tokenizer,
    config: ml_collections.ConfigDict,
    rng: np.random.Generator,
) -> Row:
    """A row of a training batch; N is `data.regions.per_image`, G is `data.regions.grid`.

    The first text is about the whole image, if the record has such texts. The others are about
    elements in random order, which are repeated where there are too few.

    Args:
      group: that of the whole image; those of the elements follow.
      pair: not used, for each text draws its own language.

    Returns:
      `image` uint8 `[size, size, 3]`; `use_patches`; `ids_a`, `masked_ids` int32 `[N, length]`;
      `masked_positions`, `masked_labels` int32 `[N, most]`; `groups` int32 `[N]`, equal for the
      same element and for the same caption; `region_tokens` bool `[N, 1 + G * G]`, the pooled
      token and then, row by row, the patches that a box touches; `boxes` float32 `[N, 4]`,
      centre, width and height as fractions of `image`; `is_image` bool `[N]`, texts about the
      whole image.
    """
    pixels = decode(record.image, record.where)
    height, width = pixels.shape[:2]
    boxes = np.array([element.box for element in record.elements])
    crop = crop_around(boxes[rng.integers(len(boxes))], width, height, rng)
    _, visible = crop_boxes(boxes, np.divide(crop, [width, height] * 2), _MORE_THAN_HALF)
    shown = 1 + rng.permutation(np.flatnonzero(visible))

    captions = record_captions(record)
    slots = [_WHOLE] if captions[_WHOLE] else []
    more = config.data.regions.per_image - len(slots)
    slots += itertools.islice(itertools.cycle(shown.tolist()), more)
    drawn = []
    for slot in slots:
        language = draw(list(captions[slot]), rng)
        drawn.append((language, draw(captions[slot][language], rng)))

    image, corners, _ = augment(
        pixels,
        np.array([(0, 0, 1, 1), *boxes])[slots],
        config.model.patch.image_size,
        rng,
        crop=crop,
        jitter=config.data.image.jitter,
        may_flip=config.data.image.flip
        and not any(speaks_of_sides({language: [text]}) for language, text in drawn),
        operations=config.data.image.rand_augment,
    )
    ids = encode_texts([text for _, text in drawn], tokenizer, record.where)
    masked = [masked_fields(of_slot, tokenizer, config, rng) for of_slot in ids]
    is_image = np.array(slots) == _WHOLE
    return {
        "image": image,
        "use_patches": np.bool_(True),
        "ids_a": ids,
        **{name: np.stack([fields[name] for fields in masked]) for name in masked[0]},
        "groups": group + caption_groups(captions, tokenizer)[slots],
        "region_tokens": tokens_inside(corners, config.data.regions.grid),
        "boxes": np.concatenate(
            [(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]], axis=1
        ),
        "is_image": is_image,
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
