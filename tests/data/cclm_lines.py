"""Lines in the published formats of CCLM, written to files and read back."""

from __future__ import annotations

import base64
import gzip
import io
import json

from PIL import Image

from rc3_jax.data.image import decode
from rc3_jax.data.sources.cclm import Layout, read_captions, read_sentences
from rc3_jax.data.sources.cclm_regions import read_regions

TEXTS = {"en": "A dog.", "de": "Ein Hund."}
REGION = {"bb": [10, 5, 20, 10], "caption": {"en": "dog"}}


def encoded(red: int = 0, size=(40, 20)) -> str:
    file = io.BytesIO()
    Image.new("RGB", size, (red, 0, 0)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def captioned(red: int = 0, **fields) -> dict:
    return {"binary": encoded(red), "caption": TEXTS, **fields}


def regions(*elements, red: int = 0, **fields) -> dict:
    return {"binary": encoded(red), "elems": list(elements) or [REGION], **fields}


def write(path, *lines):
    data = b"\n".join(x if isinstance(x, bytes) else json.dumps(x).encode() for x in lines)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def described(**fields) -> dict:
    return {"binary": encoded(), "desc": "A dog.", **fields}


READERS = dict(
    captions=read_captions,
    descriptions=read_captions,
    regions=read_regions,
    parallel=read_sentences,
)


def read(path, format="captions", skips=None, **settings):
    return READERS[format](path, Layout(format, **settings), skips)


def colour(record) -> int:
    return int(decode(record.image, record.where)[0, 0, 0])
