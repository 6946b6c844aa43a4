"""A folder of images with a captions file: one JSON object a line, one line an image."""

from __future__ import annotations

import functools
import os
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field

from rc3_jax.data.groups import image_key
from rc3_jax.data.image import image_frame
from rc3_jax.data.jsonl import Captions, Row, Translations, path_inside, read_objects
from rc3_jax.data.record import DataError, Kinds, Skips
from rc3_jax.data.regions import load_region_file, usable_boxes
from rc3_jax.data.sources.images import ImageRow, split_kinds
from rc3_jax.settings import Settings

Side = Annotated[float, Field(gt=0, lt=1e6)]
Box = Annotated[list[float], Field(min_length=4, max_length=4)]


class FolderSource(Settings):
    """Images in a folder, and a file with one line for each of them."""

    type: Literal["folder"] = "folder"
    captions: str
    """The file, `.jsonl` or `.jsonl.gz`."""
    root: str
    """Folder to which paths in the file are relative. Nothing outside of it is read."""
    train_split: str | None
    """Trains on the lines with this `split`; None: on all."""
    heldout_split: str | None
    """Evaluates on the lines with this `split`; None: on all."""

    def open(self, config: Any, skips: Skips) -> tuple[Kinds, Kinds]:
        """Returns the kinds of records to train on, and those held out."""
        return split_kinds(lambda split: self.read(split, skips), self, config.batch_mix)

    def read(self, split: str | None, skips: Skips) -> list[ImageRow]:
        """Reads the lines of a split, and the header of each image.

        Raises:
          DataError: file or folder missing, no line, or more bad ones than `skips` allows.
        """
        root = os.path.realpath(self.root)
        if not os.path.isdir(root):
            raise DataError(f"{self.root}: no such folder of images; correct root in the config")

        def use(place: object, fields: dict) -> ImageRow | None:
            if split is not None and _SplitRow.parse(fields, place).split != split:
                return None
            return _image_row(FolderRow.parse(fields, place), str(place), root, skips)

        rows = list(skips.usable(read_objects(self.captions), use, self.captions))
        if not rows:
            of_split = "" if split is None else f" of split {split!r}"
            raise DataError(f"{self.captions}: no line{of_split}; add some, or change the split")
        return rows


class _SplitRow(Row):
    split: str


class FolderRow(Row):
    """A line: an image, its texts and its regions, if it has any."""

    image: str
    translations: Translations = Field({})
    captions: Captions = Field({})
    boxes_xyxy: list[Box] | None = None
    """x1, y1, x2, y2 in pixels."""
    boxes_xywh: list[Box] | None = None
    """x, y, width, height in pixels."""
    region_features: str | None = None
    """An `.npz` file, see `load_region_file`."""
    width: Side | None = None
    """Width of the image that the boxes were drawn on; None: that of the file."""
    height: Side | None = None

    @pydantic.model_validator(mode="after")
    def _check(self):
        if not self.translations and not self.captions:
            raise ValueError("no text; give captions or translations")
        if sum(map(bool, (self.boxes_xyxy, self.boxes_xywh, self.region_features))) > 1:
            raise ValueError("boxes_xyxy, boxes_xywh and region_features exclude one another")
        if (self.width is None) != (self.height is None):
            raise ValueError("width and height must both be given, or be left out")
        return self


def _image_row(row: FolderRow, where: str, root: str, skips: Skips) -> ImageRow:
    image = path_inside(root, "image", row.image, where)
    frame = image_frame(image, where)
    given = None if row.width is None or row.height is None else (row.width, row.height)
    boxes = load_regions = None
    if row.region_features:
        path = path_inside(root, "region_features", row.region_features, where)
        load_regions = functools.partial(load_region_file, path, where, frame, given, skips)
    elif drawn := row.boxes_xyxy or [[x, y, x + w, y + h] for x, y, w, h in row.boxes_xywh or ()]:
        boxes = usable_boxes(drawn, where, skips, frame, given)
    key = image_key(str(image))
    return ImageRow(where, key, image, row.translations, row.captions, boxes, load_regions)
