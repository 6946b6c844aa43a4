"""Images and lines of JSON, written to files; lines of CCLM's formats."""

from __future__ import annotations

import base64
import gzip
import io
import json

from hypothesis import strategies as st
from PIL import Image

from rc3_jax.data.image import decode

TEXTS = {"en": "A dog.", "de": "Ein Hund."}
REGION = {"bb": [10, 5, 20, 10], "caption": {"en": "dog"}}


def png(red: int = 0, size=(40, 20)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, (red, 0, 0)).save(file, "PNG")
    return file.getvalue()


def encoded(red: int = 0, size=(40, 20)) -> str:
    return base64.b64encode(png(red, size)).decode()


def write(path, *lines):
    """Writes objects, or bytes as they are, one a line; gzipped where the name says so."""
    data = b"\n".join(x if isinstance(x, bytes) else json.dumps(x).encode() for x in lines)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def colour(record) -> int:
    return int(decode(record.image, record.where)[0, 0, 0])


def pairs(source) -> dict:
    """Language pair → numbers of its records."""
    return {pair: list(numbers) for pair, numbers in source.pairs.items()}


def captioned(red: int = 0, **fields) -> dict:
    return {"binary": encoded(red), "caption": TEXTS, **fields}


def described(**fields) -> dict:
    return {"binary": encoded(), "desc": "A dog.", **fields}


def regions(*elements, red: int = 0, **fields) -> dict:
    return {"binary": encoded(red), "elems": list(elements) or [REGION], **fields}


def sentences(**fields) -> dict:
    return {"source_text": "a", "target_text": "b", **fields}


@st.composite
def boxes(draw, most=6):
    """Boxes at whole pixels of a picture of 60 x 40."""
    found = []
    for _ in range(draw(st.integers(1, most))):
        x1, y1 = draw(st.integers(0, 56)), draw(st.integers(0, 36))
        x2, y2 = draw(st.integers(x1 + 2, 60)), draw(st.integers(y1 + 2, 40))
        found.append((x1 / 60, y1 / 40, x2 / 60, y2 / 40))
    return found
