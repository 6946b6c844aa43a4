"""The line formats that CCLM was published with (CCLM.md section 3.1); docs/data.md shows them.

A source is one file or a folder of many, one JSON object a line. An image is encoded in base64 or,
with `root`, a path. In place of a mapping of texts there may be a list of such mappings, in place
of a description a list of descriptions.
"""

from __future__ import annotations

import base64
import dataclasses
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeVar

import pydantic

from rc3_jax.data.coverage import check_languages
from rc3_jax.data.files import Listing, path_inside
from rc3_jax.data.groups import image_key
from rc3_jax.data.image import image_frame
from rc3_jax.data.jsonl import Language, RowsOfLines, read_again, read_objects
from rc3_jax.data.kinds import Texts, joined, wanted
from rc3_jax.data.lines import MAX_IMAGE_LINE_BYTES, Place
from rc3_jax.data.record import BadRecord, DataError, Kinds, Skips
from rc3_jax.data.sources.cclm_regions import RegionSource
from rc3_jax.data.sources.cclm_rows import CaptionsRow, ImageField, ParallelRow
from rc3_jax.data.sources.images import (
    ImageIdentity,
    ImageRow,
    ImageRows,
    heldout_kinds,
    identity,
    image_text_kinds,
)
from rc3_jax.data.sources.parallel import SentenceRow, Sentences, SentenceTexts
from rc3_jax.settings import Settings

T = TypeVar("T")


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
    image_identity: ImageIdentity = "path"
    """What tells that images in `root` are the same: their paths, or their files' bytes, which are then
    read at the start. Those within lines are told apart by their bytes."""
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
            within gzip files, which are not unpacked for lack of room.
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

    def read_captions(self, path: str, skips: Skips, heldout: bool = False) -> ImageRows:
        """Reads lines of format captions or descriptions.

        Lines are read again when they are asked for. Held-out images need not have texts in all
        chosen languages.
        """
        found: set[str] = set()
        files = self.listing()
        lines = RowsOfLines(self.image_row)
        rows = ImageRows(lines)

        def use(place: Place, fields: Mapping[str, Any]) -> bool | None:
            said = self.captions(fields, place)
            found.update(code for texts in said for code in texts)
            if not joined(said, self.languages):
                return None
            given = self.image(fields, place, files)
            if isinstance(given, bytes):
                image_frame(given, str(place))
            rows.add(self.key(given, place), *self.texts(said))
            lines.places.append(place)
            return True

        for _ in self.lines(path, skips, use, None if heldout else found):
            pass
        return rows

    def image_row(self, place: Place, fields: Mapping[str, Any]) -> ImageRow:
        """The row of a line of captions or descriptions; an image within it is read when needed."""
        texts = self.texts(self.captions(fields, place))
        image = self.image(fields, place) if self.root else _InlineImage(place, self)
        return ImageRow(str(place), image, *texts)

    def captions(self, fields: Mapping[str, Any], place: Place) -> list[Texts]:
        """What a line of captions or descriptions says; raises BadRecord if that is nothing."""
        key = self.keys.caption
        if self.format == "descriptions":
            key = self.keys.description
            if fields.get(key) is not None:
                fields = {**fields, key: {self.language: fields[key]}}
        said = CaptionsRow.parse(fields, place, {"caption": key}).caption
        if not any(said):
            raise BadRecord(place, f"no text in field {key}; write it, or remove the line")
        return [texts for texts in said if texts]

    def texts(self, said: Sequence[Texts]) -> tuple[Texts, Texts]:
        """Translations and captions in the chosen languages.

        One mapping of captions is taken for translations of one another, several for captions.
        """
        captions = joined(said, self.languages)
        aligned = self.format == "captions" and len(said) == 1
        aligned = aligned and all(len(texts) == 1 for texts in captions.values())
        return (captions, {}) if aligned else ({}, captions)

    def read_sentences(self, skips: Skips) -> Sentences:
        """Reads lines of format parallel, and again when they are asked for."""
        read = RowsOfLines(self.sentence_row)

        def use(place: Place, fields: Mapping[str, Any]) -> SentenceTexts:
            texts = self.sentences(fields, place)
            read.places.append(place)
            return texts

        languages = (self.source_language, self.target_language)
        return Sentences(languages, self.lines(self.path, skips, use), read)

    def sentence_row(self, place: Place, fields: Mapping[str, Any]) -> SentenceRow:
        """Place and texts of a line of format parallel."""
        return str(place), self.sentences(fields, place)

    def sentences(self, fields: Mapping[str, Any], place: Place) -> SentenceTexts:
        """The texts of a line of format parallel."""
        row = ParallelRow.parse(fields, place, dict(self.keys))
        return row.source, row.target

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
        rows = (row for file in files for row in read_objects(file, MAX_IMAGE_LINE_BYTES, True))
        made = None
        for made in skips.usable(rows, use, path):
            yield made
        if languages is not None:
            check_languages(f"{path}: languages", self.languages, sorted(languages))
        if made is None:
            raise DataError(f"{path}: no line to use; check path, format, keys and languages")

    def key(self, image: pathlib.Path | bytes, place: Place) -> int:
        """The `image_key` of the image of a line."""
        if isinstance(image, bytes):
            return image_key(image)
        return image_key(identity(image, str(place), self.image_identity))

    def listing(self) -> Listing | None:
        """Finds images by their paths; None where lines hold them."""
        return Listing(os.path.realpath(self.root)) if self.root else None

    def image(
        self, fields: Mapping[str, Any], place: Place, files: Listing | None = None
    ) -> pathlib.Path | bytes:
        """The image of a line: its path, or the encoded image.

        Args:
          files: finds many paths faster; None for one.

        Raises:
          BadRecord: missing, or neither.
          DataError: within a gzip file.
        """
        key = self.keys.image
        if not self.root and (place.file is None or place.file.is_unpacked):
            raise DataError(
                f"{place}: gzip files that hold images are not unpacked, for lack of room; unpack it"
            )
        given = ImageField.parse(fields, place, {"image": key}).image
        if self.root:
            if files:
                return pathlib.Path(files.path(key, given, place))
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
        return self.source.image(read_again(self.place), self.place)
