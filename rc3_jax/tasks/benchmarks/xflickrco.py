"""xFlickr&CO and Flickr30k: retrieval by captions (Bugliarello et al. 2022; Young et al. 2014).

    {"sentences": ["Basketballspieler."], "id": "3497238310", "img_path": "3497238310.jpg"}
    {"sentences": ["..."], "id": 369771, "img_path": "COCO_val2014_000000369771.jpg"}

Photographs are looked for as `<img_path>`, those of Flickr also in `flickr30k-images`, those of
COCO also in a folder of their set (`val2014`). Test sets have one caption an image, the English
training set five.

Japanese captions of Flickr photographs hold numbers of phrases, which are part of the benchmark as
published ("1男が、3メガネを": they are left from Flickr30kEnt-JP). `strip_phrase_numbers` removes
them; they are in ASCII digits, and numbers of things are not (２人, 二人).
"""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import Field

from rc3_jax.data.jsonl import Name, Row
from rc3_jax.scenes.tasks import miniature
from rc3_jax.tasks.base import CCLM, Annotation, Baseline, ImageRef, RowContext, Task, TaskFiles
from rc3_jax.tasks.images import flickr_image


class FlickrRow(Row):
    """An image and its captions in the language of the file."""

    img_path: Name
    sentences: Annotated[list[str], Field(min_length=1)]


def read(row: FlickrRow, context: RowContext) -> list[Annotation]:
    """The captions."""
    name, texts = row.img_path, row.sentences
    coco = re.fullmatch(r"COCO_([a-z]+[0-9]+)_[0-9]+\.jpg", name)
    image = ImageRef(name, (name, f"{coco[1]}/{name}")) if coco else flickr_image(name)
    if context.config.strip_phrase_numbers and context.language == "ja" and not coco:
        texts = [re.sub("[0-9]+", "", text) for text in texts]
    return [Annotation(text, (image,)) for text in texts]


XFLICKRCO = Task(
    name="xflickrco",
    order=4,
    files=TaskFiles(folder="xflickrco", rows=(FlickrRow,), read=read),
    english=TaskFiles(folder="flickr30k", rows=(FlickrRow,), read=read, language="en"),
    scores=("IR@1", "TR@1"),
    miniature=miniature,
    miniature_epochs=2,
    baselines=(  # English, zero-shot, translate-test, few-shot
        Baseline("mUNITER", (44.50, 40.90), (8.06, 8.86), (40.95, 36.78), (8.54, 9.32)),
        Baseline("xUNITER", (38.45, 32.05), (14.04, 13.51), (36.26, 30.29), (14.30, 13.54)),
        Baseline("UC2", (37.40, 34.55), (20.31, 17.89), (36.03, 30.37), (19.79, 17.59)),
        Baseline("M3P", (31.35, 24.60), (12.91, 11.90), (27.74, 21.29), (13.21, 12.26)),
        Baseline("CCLM-3M", None, (67.35, 65.37), None, (66.04, 68.15), CCLM),
        Baseline("CCLM-4M", None, (76.56, 73.46), None, (74.74, 75.85), CCLM),
    ),
    shots="100",
    by_language={
        "UC2": {
            "IR@1": dict(de=28.60, es=15.95, id=14.60, ja=24.25, ru=20.00, tr=7.15, zh=31.60),
        }
    },
)
