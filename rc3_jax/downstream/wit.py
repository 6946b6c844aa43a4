"""WIT: retrieval by the captions of images in Wikipedia (Srinivasan et al. 2021), as in IGLUE.

    {"image_url": "https://upload.wikimedia.org/...jpg", "caption_reference_description": "...",
     "language": "ar", "page_url": "...", "wit_ix": "wit-test_3", ...}

Several captions may share an image, whose identity is `image_url`, in all languages alike. Its file
is looked for as `<wit_ix>` and as the SHA-256 sum of `image_url` (64 hexadecimal digits), each with
one of ENDINGS. Vector drawings (`.svg`) have to be rendered.
"""

from __future__ import annotations

import hashlib
import re

from rc3_jax.data.record import BadRecord
from rc3_jax.data.sources.rows import shown
from rc3_jax.downstream.layout import AnnotationFile
from rc3_jax.downstream.pictures import Wanted
from rc3_jax.downstream.reading import Line, Task, check_row_language, text_field

ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".tif", ".tiff", ".bmp")


class _Reader:
    """Reads rows, and remembers the address of each image."""

    def __init__(self):
        self._urls: dict[str, str] = {}

    def __call__(self, row: dict, where: str, file: AnnotationFile) -> list[Line]:
        check_row_language(row, file, where)
        name = text_field(row, "wit_ix", where)
        url = text_field(row, "image_url", where)
        if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
            raise BadRecord(f"{where}: wit_ix {shown(name)} is not like wit-test_3; correct it")
        first = self._urls.setdefault(name, url)
        if first.split("://")[-1] != url.split("://")[-1]:  # http and https are both in use
            raise BadRecord(
                f"{where}: image_url {shown(url)} of {name}, which was {first[:200]} before; "
                "remove one of them"
            )
        stems = (name, hashlib.sha256(url.encode()).hexdigest())
        paths = tuple(stem + ending for stem in stems for ending in ENDINGS)
        text = text_field(row, "caption_reference_description", where)
        return [Line(text, (Wanted(first, paths),))]


def wit() -> Task:
    """The task."""
    return Task("WIT", _Reader())
