"""A folder of images with a captions file: one JSON object a line, one line an image."""

from __future__ import annotations

import functools
import os
import pathlib
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
import pydantic
from pydantic import Field

from rc3_jax.data.files import FolderFiles, Listing
from rc3_jax.data.groups import image_key
from rc3_jax.data.image import image_frame
from rc3_jax.data.jsonl import (
    Captions,
    Row,
    RowsOfLines,
    Translations,
    plain_captions,
    read_objects,
)
from rc3_jax.data.kinds import Texts
from rc3_jax.data.lines import Place
from rc3_jax.data.record import DataError, Kinds, Part, Skips
from rc3_jax.data.regions import load_region_file, note_flat, usable_boxes
from rc3_jax.data.sources.images import (
    ImageIdentity,
    ImageRow,
    ImageRows,
    heldout_kinds,
    identity,
    train_kinds,
)
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
    image_identity: ImageIdentity = "path"
    """What tells that images are the same: their paths, or their files' bytes, which are then read at
    the start."""

    def open(self, config: Any, skips: Skips) -> tuple[Kinds, Kinds]:
        """Returns the kinds of records to train on, and those held out."""
        train, heldout = self.read([self.train_split, self.heldout_split], skips)
        return train_kinds(train, config.batch_mix), heldout_kinds(heldout)

    def read(self, splits: Sequence[str | None], skips: Skips) -> list[ImageRows]:
        """Reads the lines of some splits, and leaves their images closed.

        Raises:
          DataError: file or folder missing, no line, or more bad ones than `skips` allows.
        """
        root = os.path.realpath(self.root)
        if not os.path.isdir(root):
            raise DataError(f"{self.root}: no such folder of images; correct root in the config")
        files = Listing(root)
        by = self.image_identity
        parts = [(_Split(split, files, skips, by), Part(skips, self.captions)) for split in splits]
        for place, fields in skips.told(read_objects(self.captions, again=True), self.captions):
            for of_split, part in parts:
                part.use(of_split.use, place, fields)
        for split, (of_split, part) in zip(splits, parts, strict=True):
            part.check()
            if not of_split.rows:
                name = "" if split is None else f" of split {split!r}"
                raise DataError(f"{self.captions}: no line{name}; add some, or change the split")
        return [of_split.rows for of_split, _ in parts]


class _Split:
    """Collects the rows of a split."""

    def __init__(self, split: str | None, files: Listing, skips: Skips, by: ImageIdentity):
        self._split, self._files, self._skips, self._by = split, files, skips, by
        self._lines = RowsOfLines(
            functools.partial(_image_row, files=FolderFiles(files.root), skips=skips)
        )
        self.rows = ImageRows(self._lines)

    def use(self, place: Place, fields: dict[str, Any]) -> bool | None:
        """Adds a line; None if it is of another split. Raises BadRecord if it cannot be used."""
        if self._split is not None and (given := fields.get("split")) != self._split:
            if type(given) is not str:
                _SplitRow.parse(fields, place)
            return None
        image, translations, captions = _image_and_texts(fields, place, self._files, self._skips)
        self.rows.add(image_key(identity(image, str(place), self._by)), translations, captions)
        self._lines.places.append(place)
        return True


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


_BEYOND_TEXTS = FolderRow.model_fields.keys() - {"image", "translations", "captions"}


def _image_and_texts(
    fields: dict[str, Any], place: Place, files: Listing, skips: Skips
) -> tuple[str, Texts, Texts]:
    """The real path of a line's image, its translations, its captions.

    Raises:
      BadRecord: the line cannot be used, as far as that shows with its images closed.
    """
    name, features = fields.get("image"), None
    translations, captions = map(plain_captions, map(fields.get, ("translations", "captions")))
    if (
        type(name) is not str
        or translations is None
        or captions is None
        or not (translations or captions)
        or any(len(texts) > 1 for texts in translations.values())
        or not fields.keys().isdisjoint(_BEYOND_TEXTS)
    ):
        row = FolderRow.parse(fields, place)
        name, features = row.image, row.region_features
        if corners := _corners(row):
            kept = [x1 < x2 and y1 < y2 for x1, y1, x2, y2 in corners]
            note_flat(skips, str(place), np.array(kept))
        translations, captions = row.translations, row.captions
    image = files.path("image", name, place)
    if features:
        files.path("region_features", features, place)
    return image, translations, captions


def _corners(row: FolderRow) -> list[Box]:
    """x1, y1, x2, y2 of the boxes, in pixels."""
    return row.boxes_xyxy or [[x, y, x + w, y + h] for x, y, w, h in row.boxes_xywh or ()]


def _image_row(place: Place, fields: dict[str, Any], files: FolderFiles, skips: Skips) -> ImageRow:
    """A row with its boxes, for which the image's header and its region file are read."""
    row, where = FolderRow.parse(fields, place), str(place)
    image = pathlib.Path(files.path("image", row.image, where))
    given = None if row.width is None or row.height is None else (row.width, row.height)
    boxes = features = None
    if row.region_features:
        path = pathlib.Path(files.path("region_features", row.region_features, where))
        frame = image_frame(image, where)
        boxes, features = load_region_file(path, where, frame, given, skips)
    elif corners := _corners(row):
        boxes = usable_boxes(corners, where, skips, image_frame(image, where), given)
    return ImageRow(where, image, row.translations, row.captions, boxes, features)
