"""Rows in the formats that the benchmark publishes, and what tests read them with."""

from __future__ import annotations

import gzip
import json
import pathlib

from rc3_jax.downstream.examples import Picture
from rc3_jax.downstream.pictures import ImageFinder, Wanted


def xvnli(number=1, label="neutral", **fields):
    return {
        "gold_label": label,
        "sentence1": "Boys with their backs against a wave.",
        "sentence2": f"Hypothesis {number}.",
        "captionID": f"{number}.jpg#3",
        "pairID": f"{number}.jpg#3r1n",
        "Flikr30kID": f"{number}",
        **fields,
    }


def xgqa(image="n1", answer="no", **fields):
    return {
        "semantic": [{"operation": "select", "dependencies": [], "argument": "cars (8)"}],
        "question": "Ist es?",
        "imageId": image,
        "isBalanced": True,
        "answer": answer,
        "fullAnswer": "No.",
        **fields,
    }


def gqa(number=1, **fields):
    return {
        "img_id": "n1",
        "label": {"no": 1.0},
        "question_id": f"{number}",
        "sent": "Is it?",
    } | fields


def marvl(number=0, label=True, **fields):
    return {
        "concept": "39-Panci",
        "language": "id",
        "caption": "Terdapat panci.",
        "left_img": "39-0.jpg",
        "right_img": "39-11.jpg",
        "annotator_info": {"annotator_id": "id_01", "age": 31},
        "chapter": "Basic actions and technology",
        "id": f"id-{number}",
        "label": label,
        **fields,
    }


def nlvr2(identifier="dev-850-0-0", label="True", **fields):
    return {
        "validation": {"61": "False"},
        "sentence": "The right image shows a walkway.",
        "left_url": "https://a/b.jpg",
        "label": label,
        "identifier": identifier,
        **fields,
    }


def flickr(number=1, *sentences, **fields):
    texts = list(sentences) or ["Ein Hund."]
    return {"sentences": texts, "id": f"{number}", "img_path": f"{number}.jpg", **fields}


def coco(*sentences):
    name = "COCO_val2014_000000369771.jpg"
    return {"sentences": list(sentences), "id": 369771, "img_path": name}


def wit(number=3, text="Rathaus", **fields):
    return {
        "image_idx": 19,
        "image_url": f"https://upload.wikimedia.org/{number}.jpg",
        "meta_url": "http://commons.wikimedia.org/wiki/File:BNRATHAU.jpg",
        "caption_reference_description": text,
        "language": "ar",
        "page_url": "https://ar.wikipedia.org/",
        "wit_ix": f"wit-test_{number}",
        **fields,
    }


def folder_row(**fields):
    return {"image": "1.jpg", "split": "val", "captions": {"en": ["A dog.", "A cat."]}, **fields}


class AllFound(ImageFinder):
    """Finds every image that has a path within a folder."""

    def __init__(self):
        super().__init__(pathlib.Path(__file__).parent)

    def find(self, wanted: Wanted, where: str):
        super().find(Wanted("never kept", wanted.paths), where)
        self.missing.clear()
        picture = Picture(wanted.name, pathlib.Path(wanted.paths[0]))
        return self.found.setdefault(wanted.name, picture)


def write(path: pathlib.Path, *rows) -> pathlib.Path:
    """Writes rows, or lines of bytes, as JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    content = b"".join(line + b"\n" for line in lines)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def write_json(path: pathlib.Path, content) -> pathlib.Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def touch(root: pathlib.Path, *names: str) -> ImageFinder:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    return ImageFinder(root)


def counts(data) -> dict:
    return {
        (split, language): len(examples)
        for split, by_language in data.splits.items()
        for language, examples in by_language.items()
    }


def texts(data, split, language) -> list[str]:
    return [example.text for example in data.splits[split][language]]
