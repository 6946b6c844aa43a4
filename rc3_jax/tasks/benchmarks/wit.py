"""WIT: retrieval by the captions of images in Wikipedia (Srinivasan et al. 2021), as in IGLUE.

    {"image_url": "https://upload.wikimedia.org/...jpg", "caption_reference_description": "...",
     "language": "ar", "page_url": "...", "wit_ix": "wit-test_3", ...}

Several captions may share an image, whose identity is `image_url`, in all languages alike. Its file
is looked for as `<wit_ix>` and as the SHA-256 sum of `image_url` (64 hexadecimal digits), each with
one of ENDINGS. Vector drawings (`.svg`) have to be rendered.
"""

from __future__ import annotations

import hashlib
from typing import Annotated

from pydantic import Field

from rc3_jax.data.jsonl import Name, Row, preview
from rc3_jax.data.record import BadRecord
from rc3_jax.scenes.tasks import miniature
from rc3_jax.tasks.base import CCLM, Annotation, Baseline, ImageRef, RowContext, Task, TaskFiles

ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".tif", ".tiff", ".bmp")


class WITRow(Row):
    """An image and a caption of it."""

    wit_ix: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")]
    image_url: Name
    caption_reference_description: str


def read(row: WITRow, context: RowContext) -> list[Annotation]:
    """The caption. Rows of one `wit_ix` must have one address; http and https are both in use."""
    url = context.memory.setdefault(row.wit_ix, row.image_url)
    if url.split("://")[-1] != row.image_url.split("://")[-1]:
        problem = (
            f"image_url {preview(row.image_url)} of {row.wit_ix}, which was {url[:200]} before"
        )
        raise BadRecord(context.where, f"{problem}; remove one of them")
    stems = (row.wit_ix, hashlib.sha256(row.image_url.encode()).hexdigest())
    image = ImageRef(url, tuple(stem + ending for stem in stems for ending in ENDINGS))
    return [Annotation(row.caption_reference_description, (image,))]


WIT = Task(
    name="wit",
    order=5,
    files=TaskFiles(folder="wit", rows=(WITRow,), read=read),
    scores=("IR@1", "TR@1"),
    epochs=2,
    miniature=miniature,
    miniature_epochs=2,
    baselines=(  # English, zero-shot, translate-test, few-shot
        Baseline("mUNITER", (19.90, 22.34), (9.16, 10.48), (16.25, 16.64), None),
        Baseline("xUNITER", (16.70, 18.54), (8.72, 9.81), (13.01, 14.20), None),
        Baseline("UC2", (17.90, 19.71), (7.83, 9.09), (12.70, 14.11), None),
        Baseline("M3P", (15.50, 15.33), (8.12, 9.98), (11.53, 13.63), None),
        Baseline("CCLM-3M", None, (27.46, 28.66), None, None, CCLM),
        Baseline("CCLM-4M", None, (27.48, 28.75), None, None, CCLM),
    ),
)
