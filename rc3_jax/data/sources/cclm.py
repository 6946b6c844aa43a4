"""The line formats that CCLM was published with (CCLM.md section 3.1); docs/data.md shows them.

A source is one file or a folder of many, one JSON object a line. An image is encoded in base64 or,
with `root`, a path. In place of a mapping of texts there may be a list of such mappings, in place
of a description a list of descriptions.
"""

from __future__ import annotations

import base64
import dataclasses
import itertools
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeVar

import numpy as np
import pydantic

from rc3_jax.data.coverage import check_languages
from rc3_jax.data.groups import GroupKeys, KeyLists, image_key
from rc3_jax.data.image import image_frame
from rc3_jax.data.jsonl import (
    Language,
    Place,
    path_inside,
    read_objects,
)
from rc3_jax.data.kinds import LanguagePair, joined, wanted
from rc3_jax.data.record import (
    BadRecord,
    DataError,
    Element,
    ImageLike,
    Kinds,
    Record,
    Skips,
)
from rc3_jax.data.regions import upright_fractions
from rc3_jax.data.sources.cclm_rows import (
    CaptionsRow,
    ElementRow,
    ImageField,
    ParallelRow,
    RegionsRow,
)
from rc3_jax.data.sources.images import ImageRow, heldout_kinds, image_text_kinds
from rc3_jax.data.sources.parallel import Sentences
from rc3_jax.settings import Settings

T = TypeVar("T")

MAX_LINE_BYTES = 2**26
"""Longer lines are refused; an image of 10 MB takes 13 MB in base64."""


class Keys(Settings):
    """The names of fields in lines."""

    image: str = "binary"
    caption: str = "caption"
    description: str = "desc"
    elements: str = "elems"
    box: str = "bb"
    attributes: str = "attributes"
    source: str = "source_text"
    target: str = "target_text"


class CCLMSource(Settings):
    """Lines as CCLM was published with."""

    type: Literal["cclm"] = "cclm"
    path: str
    """A file, or a folder of which all files are read but those whose names begin with . or _"""
    format: Literal["captions", "descriptions", "regions", "parallel"]
    heldout_path: str | None = None
    """File or folder of held-out images, for captions and descriptions."""
    root: str | None = None
    """Folder to which images are relative; None: lines hold them in base64."""
    languages: tuple[Language, ...] = ()
    """Passes over captions in other languages; (): over none."""
    language: Language = "und"
    """Language of descriptions, whose lines do not say it."""
    source_language: Language = "und"
    target_language: Language = "und"
    keys: Keys = Keys()
    """Names of fields that differ from the published ones."""

    @pydantic.model_validator(mode="after")
    def _check(self):
        if self.heldout_path and self.format not in ("captions", "descriptions"):
            raise ValueError(f"heldout_path: format {self.format} has no held-out part")
        return self

    def open(self, config: Any, skips: Skips) -> tuple[Kinds, Kinds] | None:
        """Returns the kinds of records to train on, and those held out; None if none is wanted.

        Raises:
          DataError: nothing to read, no usable line, more bad ones than `skips` allows, or images
            within gzip files, which cannot be read at random.
        """
        if self.root and not os.path.isdir(self.root):
            raise DataError(f"{self.root}: no such folder of images; correct root in the config")
        kinds = {"parallel": ("parallel",), "regions": ("region",)}
        chosen = wanted(kinds.get(self.format, ("strict", "weak", "captioned")), config.batch_mix)
        if not chosen:
            return None
        if self.format == "parallel":
            return {"parallel": (self.read_sentences(skips), 0)}, {}
        if self.format == "regions":
            return {"region": (RegionSource(self, skips), 0)}, {}
        train = image_text_kinds(self.read_captions(self.path, skips), chosen)
        if not self.heldout_path:
            return train, {}
        return train, heldout_kinds(self.read_captions(self.heldout_path, skips, True))

    def read_captions(self, path: str, skips: Skips, heldout: bool = False) -> list[ImageRow]:
        """Reads lines of format captions or descriptions.

        One mapping of captions is taken for translations of one another, several for captions.
        Images within lines are read when they are asked for. Held-out images need not have texts in
        all chosen languages.
        """
        is_captions = self.format == "captions"
        key = self.keys.caption if is_captions else self.keys.description
        found: set[str] = set()

        def use(place: Place, fields: Mapping[str, Any]) -> ImageRow | None:
            if not is_captions and fields.get(key) is not None:
                fields = {**fields, key: {self.language: fields[key]}}
            said = list(filter(None, CaptionsRow.parse(fields, place, {"caption": key}).caption))
            if not said:
                raise BadRecord(place, f"no text in field {key}; write it, or remove the line")
            found.update(code for texts in said for code in texts)
            captions = joined(said, self.languages)
            if not captions:
                return None
            given = self.image(fields, place)
            image_frame(given, str(place))
            image: ImageLike = _InlineImage(place, self) if isinstance(given, bytes) else given
            aligned = is_captions and len(said) == 1
            aligned = aligned and all(len(texts) == 1 for texts in captions.values())
            texts = (captions, {}) if aligned else ({}, captions)
            return ImageRow(str(place), _key(given), image, *texts)

        return list(self.lines(path, skips, use, None if heldout else found))

    def read_sentences(self, skips: Skips) -> Sentences:
        """Reads lines of format parallel."""

        def use(place: Place, fields: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
            row = ParallelRow.parse(fields, place, dict(self.keys))
            return str(place), (row.source, row.target)

        languages = (self.source_language, self.target_language)
        return Sentences(languages, self.lines(self.path, skips, use))

    def lines(
        self,
        path: str,
        skips: Skips,
        use: Callable[[Place, Any], T | None],
        languages: set[str] | None = None,
    ) -> Iterator[T]:
        """Yields what `use` makes of all files' lines.

        Args:
          languages: of all texts, which `use` collects; None where they do not matter.

        Raises:
          DataError: at the end, if that is nothing, or a chosen language is not among them.
        """
        place = pathlib.Path(path)
        if not place.exists():
            raise DataError(f"{path}: no such file or folder; correct path in the config")
        files = [place] if place.is_file() else sorted(place.iterdir())
        files = [file for file in files if file.is_file() and file.name[0] not in "._"]
        rows = (row for file in files for row in read_objects(file, MAX_LINE_BYTES))
        made = None
        for made in skips.usable(rows, use, path):
            yield made
        if languages is not None:
            check_languages(f"{path}: languages", self.languages, sorted(languages))
        if made is None:
            raise DataError(f"{path}: no line to use; check path, format, keys and languages")

    def image(self, fields: Mapping[str, Any], place: Place) -> pathlib.Path | bytes:
        """The image of a line: its path or the encoded image.

        Raises:
          BadRecord: missing, or neither.
          DataError: within a gzip file.
        """
        key = self.keys.image
        if not self.root and place.offset is None:
            raise DataError(
                f"{place}: an image within a gzip file cannot be read at random; unpack it first"
            )
        given = ImageField.parse(fields, place, {"image": key}).image
        if self.root:
            return path_inside(os.path.realpath(self.root), key, given, place)
        try:
            return base64.b64decode("".join(given.split()), validate=True)
        except ValueError as error:
            problem = (
                f"field {key} is not base64 ({error}); encode the image file anew, or set root"
            )
            raise BadRecord(place, f"{problem} in the config if this is a path") from error


@dataclasses.dataclass(frozen=True, slots=True)
class _InlineImage:
    """Returns the encoded image of a line when called."""

    place: Place
    source: CCLMSource

    def __call__(self) -> pathlib.Path | bytes:
        return self.source.image(self.place.read_object(), self.place)


class RegionSource:
    """Images with captions of their parts (a `Source` of kind region).

    Lines are read anew when they are asked for, as their texts may take more memory than there is.
    """

    def __init__(self, source: CCLMSource, skips: Skips):
        self._source = source
        self._rows: list[tuple[Place, int, int, dict | None]] = []  # with fields where gzipped
        self._elements = 0
        self._images: dict[int, int] = {}
        self._lists = KeyLists()
        found: set[str] = set()

        def use(place: Place, fields: dict) -> tuple[Place, int, int, dict | None] | None:
            image = source.image(fields, place)
            record = region_record(place, fields, source, image)
            lost = len(fields[source.keys.elements]) - len(record.elements)
            skips.leave_out(place, "regions without a caption or a visible box", lost)
            for about in (record.texts, *(element.texts for element in record.elements)):
                found.update(about)
            record = _in_languages(record, source.languages)
            if not record.elements:
                return None
            group = self._images.setdefault(key := _key(image), len(self._images))
            texts = itertools.chain(*record.texts.values())
            self._lists.add(group, key, captions=texts)
            first, self._elements = self._elements, self._elements + len(record.elements)
            return place, group, first, fields if place.offset is None else None

        self._rows.extend(source.lines(source.path, skips, use, found))
        self.groups = len(self._images) + self._elements
        # Each text of a row draws a language of its own.
        self.pairs: dict[LanguagePair, range] = {(): range(len(self._rows))}

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Record:
        place, group, first, fields = self._rows[index]
        if fields is None:
            fields = place.read_object()
        record = region_record(place, fields, self._source, self._source.image(fields, place))
        record = _in_languages(record, self._source.languages)
        return dataclasses.replace(record, group=group, element_group=len(self._images) + first)

    def keys(self) -> GroupKeys:
        """Images by their paths or contents, and the captions about them as a whole."""
        return self._lists.keys()


def _key(image: pathlib.Path | bytes) -> int:
    return image_key(image if isinstance(image, bytes) else str(image))


def region_record(
    place: Place, fields: Mapping[str, Any], source: CCLMSource, image: pathlib.Path | bytes
) -> Record:
    """The record of a line, in group 0, with those of its regions that can be used.

    Regions without a caption, without area, or with half of their box or more outside of the image
    are left out.

    Raises:
      BadRecord: no region is left, or something is not what the format says.
    """
    frame = image_frame(image, str(place))
    names = dict(source.keys)
    row = RegionsRow.parse(fields, place, names)
    given = [ElementRow.parse(element, place, names) for element in row.elements]
    corners = np.array([[x, y, x + w, y + h] for x, y, w, h in (one.box for one in given)])
    boxes, size = upright_fractions(corners.reshape(-1, 4), str(place), frame)
    elements = []
    for box, element in zip(boxes, given, strict=True):
        visible = _visible_box(box)
        if visible and (texts := joined(element.caption)):
            elements.append(Element(visible, texts, joined(element.attributes)))
    if not elements:
        raise BadRecord(
            place,
            f"none of the {len(given)} regions has a caption and more than half of its box "
            f"inside of the image ({size[0]} x {size[1]}); mend them, or remove the line",
        )
    return Record(str(place), 0, joined(row.caption), image, elements=tuple(elements))


def _in_languages(record: Record, languages: Sequence[str]) -> Record:
    """A region record with its texts in some languages, and the regions that have one."""
    elements = (
        Element(e.box, joined([e.texts], languages), joined([e.attributes], languages))
        for e in record.elements
    )
    return dataclasses.replace(
        record,
        texts=joined([record.texts], languages),
        elements=tuple(element for element in elements if element.texts),
    )


def _visible_box(box: np.ndarray) -> tuple[float, float, float, float] | None:
    """A box, as fractions, cut to the image; None where not more than half of it is there."""
    x1, y1, x2, y2 = np.clip(box, 0, 1).tolist()
    area = (box[2] - box[0]) * (box[3] - box[1])
    if np.any(box[2:] <= box[:2]) or (x2 - x1) * (y2 - y1) <= area / 2:
        return None
    return x1, y1, x2, y2
