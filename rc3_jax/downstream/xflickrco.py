"""Retrieval by captions: xFlickr&CO, Flickr30k, and folders such as Multi30K and COCO.

    {"sentences": ["Basketballspieler."], "id": "3497238310", "img_path": "3497238310.jpg"}
    {"sentences": ["..."], "id": 369771, "img_path": "COCO_val2014_000000369771.jpg"}

Photographs are looked for as `<img_path>`, those of Flickr also in `flickr30k-images`, those of
COCO also in a folder of their set (`val2014`). Test sets have one caption an image, the English
training set five.

Japanese captions of Flickr photographs hold the numbers of phrases, which are part of the benchmark
as published ("1男が、3メガネを": they are left from Flickr30kEnt-JP) and which readers may strip.

Other data is read from a `captions.jsonl` (or `.jsonl.gz`) whose lines have `image`, `split`
(`val` and `valid` mean `dev`), `translations` and `captions` as in sources of type `folder`
(docs/data.md). Each text of a language, translation or caption, is one example. Boxes in the file
are not read.
"""

from __future__ import annotations

import functools
import re

from rc3_jax.data.record import BadRecord
from rc3_jax.data.sources.rows import checked_texts, shown, texts_of_kind
from rc3_jax.downstream.layout import AnnotationFile
from rc3_jax.downstream.pictures import Wanted
from rc3_jax.downstream.reading import Line, Task, text_field
from rc3_jax.downstream.xvnli import flickr_photograph

_SPLITS = {"val": "dev", "valid": "dev"}


def xflickrco(strip_phrase_numbers: bool = False) -> Task:
    """The task.

    Args:
      strip_phrase_numbers: take the numbers of phrases out of Japanese captions. Of these, numbers
        in ASCII digits; numbers of things are in other ones (２人, 二人).
    """
    return Task("Flickr30k or xFlickr&CO", functools.partial(_lines, strip_phrase_numbers))


def flickr30k() -> Task:
    """English captions, on which models for xFlickr&CO are fine-tuned."""
    return Task("Flickr30k or xFlickr&CO", functools.partial(_lines, False), language="en")


def captions_folder() -> Task:
    """Captions in the format of `folder` sources."""
    return Task("captions of a folder", _lines_of_folder, captions_file=True)


def _lines(strip: bool, row: dict, where: str, file: AnnotationFile) -> list[Line]:
    name = text_field(row, "img_path", where)
    match = re.fullmatch(r"COCO_([a-z]+[0-9]+)_[0-9]+\.jpg", name)
    picture = Wanted(name, (name, f"{match[1]}/{name}")) if match else flickr_photograph(name)
    sentences = row.get("sentences")
    if not isinstance(sentences, list) or not sentences:
        raise BadRecord(
            f"{where}: sentences is {shown(sentences)}, not a list of texts; correct it"
        )
    if strip and file.language == "ja" and not match:
        sentences = [re.sub("[0-9]+", "", s) if isinstance(s, str) else s for s in sentences]
    return [Line(sentence, (picture,)) for sentence in sentences]


def _lines_of_folder(row: dict, where: str, file: AnnotationFile) -> list[Line]:
    name = text_field(row, "image", where)
    split = text_field(row, "split", where)
    texts = texts_of_kind(
        "captioned",
        checked_texts("translations", row.get("translations"), where),
        checked_texts("captions", row.get("captions"), where),
    )
    if texts is None:
        raise BadRecord(f"{where}: no text; give captions or translations")
    picture = Wanted(name, (name,))
    return [
        Line(text, (picture,), split=_SPLITS.get(split, split), language=language)
        for language, of_language in texts.items()
        for text in of_language
    ]
