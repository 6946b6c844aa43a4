"""Lines of CCLM's region format (cclm.py): images with captions of their parts."""

from __future__ import annotations

import pathlib

import numpy as np

from rc3_jax.data.image import image_size
from rc3_jax.data.record import BadRecord, Element, Record, Skips
from rc3_jax.data.sources.cclm import Layout, alternatives, joined, line_image, scan
from rc3_jax.data.sources.lines import Place, parsed_object
from rc3_jax.data.sources.rows import shown

_MOST_PIXELS = 1e6  # along a side of a box


def read_regions(
    path: pathlib.Path | str, layout: Layout, skips: Skips | None = None
) -> RegionSource:
    """Lines of format regions; raises as `read_captions`."""
    source = RegionSource(layout)

    def use(place: Place, fields: dict) -> bool:
        source.add(place, fields)
        return True

    scan(path, skips, use)
    return source


class RegionSource:
    """Images with captions of their parts (a `Source` of kind region).

    Lines are read anew when they are asked for, as their texts may take more memory than there is.
    """

    def __init__(self, layout: Layout):
        self._layout = layout
        self._rows: list[tuple[Place, int, dict | None]] = []  # with its fields where gzipped
        self.groups = 0

    def add(self, place: Place, fields: dict) -> None:
        """Adds a line; raises BadRecord if it cannot be used."""
        record = region_record(place, fields, self._layout, self.groups)
        self._rows.append((place, self.groups, fields if place.offset is None else None))
        self.groups += 1 + len(record.elements)

    @property
    def pairs(self) -> dict[tuple[()], range]:
        """As in `Source`; each text of a row draws a language of its own."""
        return {(): range(len(self._rows))}

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Record:
        place, group, fields = self._rows[index]
        if fields is None:
            fields = parsed_object(place.read(), str(place)) or {}
        return region_record(place, fields, self._layout, group)


def region_record(place: Place, fields: dict, layout: Layout, group: int) -> Record:
    """The record of a line, with those of its regions that can be used.

    Regions without a caption, without area, or with half of their box or more outside of the image
    are left out.

    Raises:
      BadRecord: no region is left, or something is not what the format says.
    """
    where = str(place)
    image = line_image(fields, layout, place)
    size = image_size(image, where)
    key = layout.key("elements")
    if not isinstance(fields.get(key), list):
        raise BadRecord(f"{where}: {key} is {shown(fields.get(key))}; give a list of regions")
    found = [_element(given, size, layout, where) for given in fields[key]]
    elements = tuple(element for element in found if element is not None)
    if not elements:
        raise BadRecord(
            f"{where}: none of the {len(found)} regions has a caption and more than half of its "
            f"box inside of the image ({size[0]} x {size[1]}); mend them, or remove the line"
        )
    texts = _texts(fields, "caption", layout, where)
    return Record(where, group, texts, image, elements=elements)


def _element(given: object, size: tuple[int, int], layout: Layout, where: str) -> Element | None:
    if not isinstance(given, dict):
        raise BadRecord(f"{where}: region is {shown(given)}; write an object")
    box = _box(given.get(layout.key("box")), size, where)
    texts = _texts(given, "caption", layout, where)
    attributes = _texts(given, "attributes", layout, where)
    return Element(box, texts, attributes) if box and texts else None


def _texts(fields: dict, content: str, layout: Layout, where: str) -> dict[str, tuple[str, ...]]:
    key = layout.key(content)
    return joined(alternatives(_without_blank(fields.get(key)), key, where), layout.languages)


def _without_blank(given: object) -> object:
    """Texts without those left blank: a region may have no attribute, an image no caption."""
    if isinstance(given, list):
        return [_without_blank(one) for one in given]
    if not isinstance(given, dict):
        return given
    return {code: said for code, said in given.items() if said not in ("", [])}


def _box(given: object, size: tuple[int, int], where: str) -> tuple[float, ...] | None:
    """Returns x1, y1, x2, y2 as fractions; None where not more than half is in the image."""
    if not (
        isinstance(given, list)
        and len(given) == 4
        and all(type(number) in (int, float) and abs(number) < _MOST_PIXELS for number in given)
    ):
        raise BadRecord(f"{where}: box is {shown(given)}; give x, y, width and height in pixels")
    x, y, box_width, box_height = given
    if box_width <= 0 or box_height <= 0:
        return None
    width, height = size
    x1, x2 = np.clip([x, x + box_width], 0, width)
    y1, y2 = np.clip([y, y + box_height], 0, height)
    if (x2 - x1) * (y2 - y1) <= box_width * box_height / 2:
        return None
    return float(x1 / width), float(y1 / height), float(x2 / width), float(y2 / height)
