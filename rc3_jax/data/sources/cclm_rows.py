"""The fields of CCLM's lines with their types (CCLM.md section 3.1)."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from rc3_jax.data.jsonl import Captions, Row, Text


def _list(given: object) -> object:
    return () if given is None else tuple(given) if isinstance(given, list) else (given,)


def _without_blank(given: object) -> object:
    """Texts without those left blank: a region may have no attribute, an image no caption."""
    if isinstance(given, list):
        return [_without_blank(one) for one in given]
    if not isinstance(given, dict):
        return given
    return {code: said for code, said in given.items() if said not in ("", [])}


Alternatives = Annotated[tuple[Captions, ...], BeforeValidator(_list), Field(default=())]
"""A mapping language → texts, or a list of such."""
Optional = Annotated[Alternatives, BeforeValidator(_without_blank)]
"""Removes texts that are left blank."""
Pixels = Annotated[float, Field(gt=-1e6, lt=1e6)]


class ImageField(Row):
    """The image of a line, in base64 or a path."""

    image: str


class CaptionsRow(Row):
    """The texts of a line of captions or descriptions."""

    caption: Alternatives


class ParallelRow(Row):
    """A line of parallel text."""

    source: Text
    target: Text


class RegionsRow(Row):
    """A line of regions."""

    caption: Optional
    elements: list[dict[str, Any]]


class ElementRow(Row):
    """A region: x, y, width and height of its box, and its texts."""

    box: Annotated[list[Pixels], Field(min_length=4, max_length=4)]
    caption: Optional
    attributes: Optional
