"""Lines of regions, as CCLM was published with: images with captions of their parts."""

from __future__ import annotations

import array
import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rc3_jax.data.groups import GroupKeys, KeyLists
from rc3_jax.data.image import image_frame
from rc3_jax.data.jsonl import read_again
from rc3_jax.data.kinds import LanguagePair, joined
from rc3_jax.data.lines import Lines, Place
from rc3_jax.data.record import BadRecord, Element, Record, Skips
from rc3_jax.data.regions import upright_fractions
from rc3_jax.data.sources.cclm_rows import ElementRow, RegionsRow

if TYPE_CHECKING:
    from rc3_jax.data.sources.cclm import CCLMSource


class RegionSource:
    """Images with captions of their parts (a `Source` of kind region).

    Lines are read again when they are asked for.
    """

    def __init__(self, source: CCLMSource, skips: Skips):
        self._source = source
        self._places, self._keys = Lines(), KeyLists()
        self._groups, self._firsts = array.array("i"), array.array("i")  # of image, of elements
        elements = 0
        images: dict[int, int] = {}
        found: set[str] = set()
        files = source.listing()

        def use(place: Place, fields: dict) -> bool | None:
            nonlocal elements
            image = source.image(fields, place, files)
            record = region_record(place, fields, source, image)
            lost = len(fields[source.keys.elements]) - len(record.elements)
            skips.leave_out(place, "regions without a caption or a visible box", lost)
            for about in (record.texts, *(element.texts for element in record.elements)):
                found.update(about)
            record = _in_languages(record, source.languages)
            if not record.elements:
                return None
            group = images.setdefault(key := source.key(image, place), len(images))
            self._keys.add(group, key)
            self._places.append(place)
            self._groups.append(group)
            self._firsts.append(elements)
            elements += len(record.elements)
            return True

        for _ in source.lines(source.path, skips, use, found):
            pass
        self._images, self.groups = len(images), len(images) + elements
        # Each text of a row draws a language of its own.
        self.pairs: dict[LanguagePair, range] = {(): range(len(self._places))}

    def __getstate__(self) -> dict[str, Any]:
        """All but the images' keys, which no other process needs."""
        return self.__dict__ | {"_keys": KeyLists()}

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> Record:
        place = self._places[index]
        fields = read_again(place)
        record = region_record(place, fields, self._source, self._source.image(fields, place))
        record = _in_languages(record, self._source.languages)
        first, *following = self._firsts[index : index + 2]
        end = following[0] if following else self.groups - self._images
        if len(record.elements) != end - first:
            raise BadRecord(place, "the image has changed since the start; start again")
        first += self._images
        return dataclasses.replace(record, group=self._groups[index], element_group=first)

    def keys(self) -> GroupKeys:
        """Images by their paths or contents."""
        return self._keys.keys()


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
