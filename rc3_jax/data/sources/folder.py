"""A folder of images with a captions file: one JSON object a line, one line an image.

    {"image": "images/17.jpg", "split": "train",
     "translations": {"en": "A dog runs.", "de": "Ein Hund rennt."},
     "captions": {"en": ["A brown dog.", "A dog on grass."], "zh": ["草地上的狗。"]},
     "boxes_xyxy": [[10, 20, 110, 90]], "width": 640, "height": 480}

Everything but `image` may be left out. Boxes are pixels of an image of `width` x `height`, by
default the file's own, as `boxes_xyxy` (corners) or `boxes_xywh` (corner and size);
`region_features` instead names an `.npz` file (regions.py). Other fields are ignored.
"""

from __future__ import annotations

import functools
import os
import pathlib

import numpy as np

from rc3_jax.data.image import image_size
from rc3_jax.data.record import BadRecord, DataError, Skips
from rc3_jax.data.regions import boxes_as_fractions, load_region_file
from rc3_jax.data.sources.lines import numbered_lines, parsed_object, path_inside
from rc3_jax.data.sources.rows import ImageRow, checked_texts


def read_folder(
    captions_file: pathlib.Path | str,
    image_root: pathlib.Path | str,
    split: str | None = None,
    skips: Skips | None = None,
    check_images: bool = True,
) -> list[ImageRow]:
    """Reads a captions file (`.jsonl`, `.jsonl.gz`) once, for `ImageTextSource`s of any kind.

    Args:
      image_root: the folder that image paths are relative to. Nothing outside of it is read.
      split: take records with this `split` only; None takes all.
      skips: gathers the records that cannot be used.
      check_images: read the header of every image. Without it, undecodable images are noticed
        when they are decoded; opening millions of files on a network drive takes long.

    Raises:
      DataError: file or folder missing, no record, or more bad ones than `skips` allows.
    """
    root = os.path.realpath(image_root)
    if not os.path.isdir(root):
        raise DataError(f"{image_root}: no such folder of images; check image_root in the config")
    bad = Skips((skips or Skips()).limit)
    groups: dict[str, int] = {}
    rows = []
    for where, line in numbered_lines(pathlib.Path(captions_file)):
        try:
            fields = parsed_object(line, where)
            if fields is not None and split in (None, _split(fields, split, where)):
                rows.append(_row(fields, where, root, groups, check_images))
        except BadRecord as error:
            bad.add(where, str(error))
    bad.hand_over(skips, len(rows) + len(bad.reasons), str(captions_file))
    if not rows:
        of_split = "" if split is None else f" of split {split!r}"
        raise DataError(
            f"{captions_file}: no record{of_split}; write one JSON object a line, with "
            "`image` and `captions` or `translations`, or change the split in the config"
        )
    return rows


def _split(fields: dict, split: str | None, where: str) -> str | None:
    if split is not None and not isinstance(fields.get("split"), str):
        raise BadRecord(
            f"{where}: field split is missing or not a text, while the config asks for split "
            f"{split!r}; add it, or set the split to None to take every record"
        )
    return fields.get("split")


def _row(
    fields: dict, where: str, root: str, groups: dict[str, int], check_images: bool
) -> ImageRow:
    image = path_inside(root, "image", fields.get("image"), where)
    translations = checked_texts("translations", fields.get("translations"), where)
    captions = checked_texts("captions", fields.get("captions"), where)
    several = [language for language, texts in translations.items() if len(texts) > 1]
    if several:
        raise BadRecord(
            f"{where}: translations[{several[0]!r}] holds several texts; texts that are not "
            "translations of one another belong into captions"
        )
    if not translations and not captions:
        raise BadRecord(f"{where}: no text; give captions or translations")

    names = ("boxes_xyxy", "boxes_xywh", "region_features")
    given = [name for name in names if fields.get(name) not in (None, [])]
    if len(given) > 1:
        raise BadRecord(f"{where}: {' and '.join(given)} exclude one another; keep one")
    size = _stated_size(fields, where)
    if check_images or (given and size is None):
        header_size = image_size(image, where)
        size = size or header_size
    boxes = load_regions = None
    if given == ["region_features"]:
        path = path_inside(root, given[0], fields[given[0]], where)
        load_regions = functools.partial(load_region_file, path, where, size)
    elif given:
        boxes = _boxes(fields[given[0]], given[0] == "boxes_xywh", size, where)
    group = groups.setdefault(str(image), len(groups))
    return ImageRow(where, group, image, translations, captions, boxes, load_regions)


def _stated_size(fields: dict, where: str) -> tuple[float, float] | None:
    size = (fields.get("width"), fields.get("height"))
    if size == (None, None):
        return None
    if not all(type(side) in (int, float) and 0 < side < 1e6 for side in size):
        raise BadRecord(f"{where}: width and height must both be positive numbers, or be left out")
    return size


def _boxes(given: object, with_size: bool, size: tuple[float, float], where: str) -> np.ndarray:
    """Returns float32 `[regions, 4]` fractions of pixels x, y, x, y or x, y, width, height."""
    if with_size:
        try:
            given = [[x, y, x + w, y + h] for x, y, w, h in given]
        except (TypeError, ValueError) as error:
            raise BadRecord(f"{where}: boxes_xywh must be lists of 4 numbers ({error})") from error
    return boxes_as_fractions(given, *size, where)
