"""Files of rows: lines of text, JSON objects on lines or in one document, and typed rows of them.

    read_lines, read_objects -> (place, fields) -> Row.parse -> typed row -> a source's Record

A reader of another format yields the same pairs. It cannot raise and go on, so that it yields a
BadRecord in place of a row that cannot be read; `Skips.usable` counts these.
"""

from __future__ import annotations

import collections
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Self, TypeVar

import pydantic

from rc3_jax.data.lines import MAX_LINE_BYTES, Lines, Place, read_lines
from rc3_jax.data.record import BadRecord, DataError, checked_language
from rc3_jax.data.text import usable_text

R = TypeVar("R")

MAX_JSON_BYTES = 2**31
"""Larger JSON documents are refused, since they are read whole."""


def read_objects(
    path: pathlib.Path | str, max_bytes: int = MAX_LINE_BYTES, again: bool = False
) -> Iterator[tuple[Place, dict[str, Any] | BadRecord]]:
    """Yields the JSON objects of a file, one a line; blank lines are passed over.

    Args:
      again: see `read_lines`.

    Raises:
      DataError: as `read_lines`.
    """
    for place, line in read_lines(path, max_bytes, again):
        if isinstance(line, BadRecord) or line.strip():
            try:
                yield place, parse_object(line, place)
            except BadRecord as error:
                yield place, error


def read_items(
    path: pathlib.Path | str, key_field: str = ""
) -> Iterator[tuple[Place, dict[str, Any] | BadRecord]]:
    """Yields the elements of the list, or the values of the object, that a JSON document holds.

    Args:
      key_field: a field to which the keys of such an object are added.

    Raises:
      DataError: the file cannot be read, or is no such document.
    """
    path = pathlib.Path(path)
    content = read_json(path)
    if isinstance(content, list):
        content, key_field = dict(enumerate(content)), ""
    if not isinstance(content, dict):
        raise DataError(f"{path}: {preview(content)} is no list or object of rows")
    for key, item in content.items():
        place = Place(path, f"[{key!r}]")
        if isinstance(item, dict):
            yield place, item | ({key_field: key} if key_field else {})
        else:
            yield place, BadRecord(place, f"{preview(item)} is not a row; write {{...}}")


def read_again(place: Place) -> dict[str, Any]:
    """The JSON object on a line, read again; raises BadRecord if that fails."""
    return parse_object(place.read_line(), place)


class RowsOfLines(Sequence[R]):
    """Rows of lines that are read again when they are asked for.

    Args:
      use: makes a row of a line's place and object; may raise BadRecord.

    Attributes:
      places: of the lines; who reads the file adds them.
    """

    def __init__(self, use: Callable[[Place, dict[str, Any]], R]):
        self._use = use
        self.places = Lines()

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index):
        place = self.places[index]
        return self._use(place, read_again(place))


def parse_object(text: str | BadRecord, where: object) -> dict[str, Any]:
    """The JSON object that a text holds; raises BadRecord if it is anything else."""
    if isinstance(text, BadRecord):
        raise text
    try:
        fields = _DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        raise BadRecord(where, f"not JSON ({error}); write one object a line") from error
    if not isinstance(fields, dict):
        raise BadRecord(where, f"{preview(fields)} is not a JSON object; write {{...}}")
    return fields


def read_json(path: pathlib.Path | str) -> Any:
    """The content of a JSON document; its path may be in an object store.

    Raises:
      DataError: missing, too large, not JSON in UTF-8, or a key twice in one object.
    """
    path = pathlib.Path(path) if isinstance(path, str) else path
    try:
        if isinstance(path, pathlib.Path) and path.stat().st_size > MAX_JSON_BYTES:
            raise ValueError(f"larger than {MAX_JSON_BYTES} bytes")
        return _DECODER.decode(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not usable JSON ({error}); download it again") from error


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        [(key, _)] = collections.Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"key {key[:100]!r} stands twice in one object")
    return fields


_DECODER = json.JSONDecoder(object_pairs_hook=_unique_keys)


class Row(pydantic.BaseModel):
    """A row's fields with their types. Subclasses declare those they need; others are ignored."""

    model_config = pydantic.ConfigDict(
        frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    @classmethod
    def parse(
        cls, fields: Mapping[str, Any], where: object, names: Mapping[str, str] | None = None
    ) -> Self:
        """Checks fields as a file gives them.

        Args:
          where: file and line, with which messages begin.
          names: field of the class → its name in the file, where that differs.

        Raises:
          BadRecord: a field is missing or not of its type; the message names it.
        """
        given = fields
        if names:
            named = ((field, names.get(field, field)) for field in cls.model_fields)
            given = {field: fields[name] for field, name in named if name in fields}
        try:
            return cls.model_validate(given)
        except pydantic.ValidationError as error:
            problem = error.errors(include_url=False, include_context=False)[0]
            raise BadRecord(where, _described(problem, names or {})) from error


def _described(problem: Any, names: Mapping[str, str]) -> str:
    """What is wrong with which field, in one line."""
    message = problem["msg"].removeprefix("Value error, ").replace("valid tuple", "valid list")
    field, *keys = problem["loc"] or ("",)
    if not field:
        return message
    name = names.get(field, field) + "".join(f"[{key!r}]" for key in keys if key != "[key]")
    if problem["type"] == "missing":
        return f"field {name} is missing; add it"
    if problem["type"] == "value_error":
        return f"field {name}: {message}"
    return f"field {name}: {message[0].lower()}{message[1:]}, not {preview(problem['input'])}"


def preview(value: object) -> str:
    """The type and the start of a value's representation; all of it may be a megabyte."""
    return f"{type(value).__name__} {repr(value)[:40]}"


def _not_blank(name: str) -> str:
    name.encode()  # half of a surrogate pair is a ValueError
    if not (name := name.strip()):
        raise ValueError("empty; write it, or remove the row")
    return name


def _tuples(given: object) -> object:
    """Language → tuple of texts, where a file may have one text, a list of texts or nothing."""
    if not isinstance(given, Mapping):
        return {} if given is None else given
    several = {code: [texts] if isinstance(texts, str) else texts for code, texts in given.items()}
    return {code: tuple(t) if isinstance(t, list) else t for code, t in several.items()}


def _distinct(texts: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    return {code: tuple(dict.fromkeys(several)) for code, several in texts.items() if several}


def plain_captions(given: object) -> dict[str, tuple[str, ...]] | None:
    """What `Captions` makes of usable texts, several times as fast; None where that is to check."""
    if given is None:
        return {}
    if type(given) is not dict:
        return None
    found: dict[str, tuple[str, ...]] = {}
    try:
        for code, texts in given.items():
            checked_language(code)
            if type(texts) is str:
                found[code] = (usable_text(texts),)
            elif type(texts) is not list:
                return None
            elif usable := dict.fromkeys([usable_text(text) for text in texts]):
                found[code] = tuple(usable)
    except (ValueError, AttributeError, TypeError):  # AttributeError: it is no text
        return None
    return found


def _if_plain(given: object, otherwise: pydantic.ValidatorFunctionWrapHandler) -> Any:
    found = plain_captions(given)
    return otherwise(given) if found is None else found


def _one_each(texts: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    if several := [code for code, in_language in texts.items() if len(in_language) > 1]:
        raise ValueError(f"several texts in {several[0]}; give one, or call them captions")
    return texts


Text = Annotated[str, pydantic.AfterValidator(usable_text)]
"""A text with at least one word; see `usable_text`."""
Name = Annotated[str, pydantic.AfterValidator(_not_blank)]
"""What names something, such as a path or an id: not empty, stripped, otherwise as it is."""
Identity = Annotated[
    Name, pydantic.BeforeValidator(lambda given: str(given) if type(given) is int else given)
]
"""A name or a whole number, as a name."""
Language = Annotated[str, pydantic.AfterValidator(checked_language)]
"""A BCP 47 tag in standard form."""
Captions = Annotated[
    dict[Language, tuple[Text, ...]],
    pydantic.BeforeValidator(_tuples),
    pydantic.AfterValidator(_distinct),
    pydantic.WrapValidator(_if_plain),
]
"""Language → its distinct texts, from language → text or list of texts; null is no text."""
RawCaptions = Annotated[
    dict[Language, tuple[Annotated[str, pydantic.AfterValidator(str.strip)], ...]],
    pydantic.BeforeValidator(_tuples),
    pydantic.AfterValidator(_distinct),
]
"""Captions whose texts are still to be checked, one by one."""
Translations = Annotated[Captions, pydantic.AfterValidator(_one_each)]
"""Captions with at most one text a language."""
