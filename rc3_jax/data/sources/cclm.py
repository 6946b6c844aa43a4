"""The line formats that CCLM was published with (CCLM.md section 3.1), as they are.

A source is one file or a folder of many, one JSON object a line:

    captions      {"binary": "<image>", "caption": {"en": "A dog.", "de": "Ein Hund."}}
    descriptions  {"binary": "<image>", "desc": "A dog."}
    regions       {"binary": "<image>", "caption": {"en": "Two dogs."},
                   "elems": [{"bb": [10, 20, 100, 70], "caption": {"en": "dog"},
                              "attributes": {"en": "brown"}}]}
    parallel      {"source_text": "A dog.", "target_text": "Ein Hund."}

`<image>` is the encoded image in base64 or, with `root`, a path. In place of a mapping of texts
there may be a list of such mappings, in place of a description a list of descriptions.
"""

from __future__ import annotations

import base64
import dataclasses
import functools
import hashlib
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence

from rc3_jax.data.image import image_size
from rc3_jax.data.record import BadRecord, DataError, Skips, check_language
from rc3_jax.data.sources.lines import Place, parsed_object, path_inside, placed_lines
from rc3_jax.data.sources.parallel import Sentences, checked_sentence
from rc3_jax.data.sources.rows import ImageRow, Texts, check_text, checked_texts

FORMATS = ("captions", "descriptions", "regions", "parallel")
KEYS = dict(
    image="binary",
    caption="caption",
    description="desc",
    elements="elems",
    box="bb",
    attributes="attributes",
    source="source_text",
    target="target_text",
)
"""What a field holds → its published name."""
MAX_LINE_BYTES = 2**26
"""Longer lines are refused; an image of 10 MB takes 13 MB in base64."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """How the lines of a source are written.

    Attributes:
      format: one of FORMATS.
      root: the folder that images are relative to; None: lines hold them in base64.
      languages: captions in other languages are passed over; empty: none are.
      language: of descriptions, which do not say it.
      source_language, target_language: of parallel text, which does not say them either.
      keys: what a field holds → its name, for those that differ from `KEYS`.

    Raises DataError where one is none of these.
    """

    format: str
    root: str | None = None
    languages: Sequence[str] = ()
    language: str = "und"
    source_language: str = "und"
    target_language: str = "und"
    keys: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if self.format not in FORMATS:
            raise DataError(f"format={self.format!r} is unknown; use one of {', '.join(FORMATS)}")
        unknown = self.keys.keys() - KEYS.keys()
        if unknown:
            raise DataError(f"keys: {', '.join(unknown)} unknown; use {', '.join(KEYS)}")
        if self.root is not None and not os.path.isdir(self.root):
            raise DataError(f"{self.root}: no such folder of images; check root in the config")
        codes = (self.language, self.source_language, self.target_language, *self.languages)
        for code in codes:
            check_language(code, "data.sources")

    def key(self, content: str) -> str:
        """The name of the field that holds this."""
        return self.keys.get(content, KEYS[content])

    @functools.cached_property
    def real_root(self) -> str | None:
        """`root` without symbolic links."""
        return self.root and os.path.realpath(self.root)


def read_captions(
    path: pathlib.Path | str, layout: Layout, skips: Skips | None = None
) -> list[ImageRow]:
    """Lines of format captions or descriptions, for `ImageTextSource`s of any kind.

    One mapping of captions is taken for translations of one another, several for captions. Images
    within lines are read when they are asked for.

    Raises:
      DataError: nothing to read, no usable line, more bad ones than `skips` allows, or images
        within gzip files, which cannot be read at random.
    """
    described = layout.format == "descriptions"
    groups: dict[str | bytes, int] = {}
    rows: list[ImageRow] = []

    def use(place: Place, fields: dict) -> bool:
        where = str(place)
        key = layout.key("description" if described else "caption")
        given = fields.get(key)
        if described and given is not None:
            given = {layout.language: given}
        said = alternatives(given, key, where)
        if not said:
            raise BadRecord(f"{where}: no text in field {key}; write it, or remove the line")
        captions = joined(said, layout.languages)
        if not captions:
            return False
        image = line_image(fields, layout, place)
        image_size(image, where)
        identity = str(image)
        if isinstance(image, bytes):
            identity = hashlib.blake2b(image, digest_size=16).digest()
            image = _InlineImage(place, layout.key("image"))
        group = groups.setdefault(identity, len(groups))
        alone = not described and len(said) == 1 and all(len(c) == 1 for c in captions.values())
        texts = (captions, {}) if alone else ({}, captions)
        rows.append(ImageRow(where, group, image, *texts))
        return True

    scan(path, skips, use)
    return rows


def read_sentences(
    path: pathlib.Path | str, layout: Layout, skips: Skips | None = None
) -> Sentences:
    """Lines of format parallel; raises as `read_captions`."""
    sentences = Sentences((layout.source_language, layout.target_language))

    def use(place: Place, fields: dict) -> bool:
        texts = []
        for key in (layout.key("source"), layout.key("target")):
            where = f"{place}: {key}"
            check_text(fields.get(key), where)
            texts.append(checked_sentence(fields[key], where))
        sentences.add(str(place), texts)
        return True

    scan(path, skips, use)
    sentences.close()
    return sentences


@dataclasses.dataclass(frozen=True, slots=True)
class _InlineImage:
    """Returns the encoded image of a line when called."""

    place: Place
    key: str

    def __call__(self) -> bytes:
        fields = parsed_object(self.place.read(), str(self.place)) or {}
        return _image_bytes(fields.get(self.key), self.key, str(self.place))


def scan(path: pathlib.Path | str, skips: Skips | None, use: Callable[[Place, dict], bool]) -> None:
    """Hands the object on every line to `use`, which returns whether it is of interest.

    Args:
      path: a file, or a folder, of which all files are read in the order of their names but those
        that begin with a dot or an underscore.
    """
    path = pathlib.Path(path)
    if not path.exists():
        raise DataError(f"{path}: no such file or folder; check path in the config")
    files = [path] if path.is_file() else sorted(path.iterdir())
    files = [file for file in files if file.is_file() and file.name[0] not in "._"]
    bad = Skips((skips or Skips()).limit)
    used = 0
    for file in files:
        for place, line in placed_lines(file, MAX_LINE_BYTES):
            try:
                fields = parsed_object(line, str(place))
                used += fields is not None and use(place, fields)
            except BadRecord as error:
                bad.add(str(place), str(error))
    bad.hand_over(skips, used + len(bad.reasons), str(path))
    if not used:
        raise DataError(f"{path}: no line to use; check path, format, keys and languages")


def line_image(fields: dict, layout: Layout, place: Place) -> pathlib.Path | bytes:
    """The image of a line: its path or the encoded image.

    Raises:
      BadRecord: missing, or neither.
      DataError: within a gzip file.
    """
    key = layout.key("image")
    if layout.real_root is not None:
        return path_inside(layout.real_root, key, fields.get(key), str(place))
    if place.offset is None:
        raise DataError(
            f"{place}: an image within a gzip file cannot be read at random; unpack it with gunzip"
        )
    return _image_bytes(fields.get(key), key, str(place))


def _image_bytes(given: object, key: str, where: str) -> bytes:
    if not isinstance(given, str) or not given:
        raise BadRecord(f"{where}: field {key} is missing or not a text; give an image in base64")
    try:
        return base64.b64decode(given)
    except ValueError as error:
        raise BadRecord(
            f"{where}: field {key} is not base64 ({error}); encode the image file anew, or set root "
            "in the config if this is a path"
        ) from error


def alternatives(given: object, field: str, where: str) -> list[Texts]:
    """The mappings language → texts that a field holds, without empty ones.

    Raises:
      BadRecord: see `checked_texts`.
    """
    mappings = given if isinstance(given, list) else [given]
    checked = [checked_texts(field, texts, where) for texts in mappings]
    return [texts for texts in checked if texts]


def joined(mappings: Sequence[Texts], languages: Sequence[str] = ()) -> Texts:
    """Language → the distinct texts of all mappings; in these languages only, if any are named."""
    codes = dict.fromkeys(code for texts in mappings for code in texts)
    return {
        code: tuple(dict.fromkeys(text for texts in mappings for text in texts.get(code, ())))
        for code in codes
        if not languages or code in languages
    }
