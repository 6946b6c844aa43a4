"""Rows in the formats that the benchmarks publish, and what tests write and read them with."""

from __future__ import annotations

import gzip
import io
import json
import pathlib

from PIL import Image

from rc3_jax.tasks.base import Picture, TaskData
from rc3_jax.tasks.config import finetune_config
from rc3_jax.tasks.images import ImageFinder
from rc3_jax.tasks.load import available_splits, read_task


def xvnli(number=1, label="neutral", **fields):
    row = {"gold_label": label, "sentence1": "Boys.", "sentence2": f"Hypothesis {number}."}
    row |= {"captionID": f"{number}.jpg#3", "pairID": f"{number}.jpg#3r1n"}
    return row | {"Flikr30kID": f"{number}"} | fields


def xgqa(image="n1", answer="no", **fields):
    row = {"question": "Ist es?", "imageId": image, "isBalanced": True, "answer": answer}
    return row | {"semantic": [{"operation": "select", "argument": "cars (8)"}]} | fields


def gqa(number=1, **fields):
    row = {"img_id": "n1", "label": {"no": 1.0}, "question_id": f"{number}", "sent": "Is it?"}
    return row | fields


def marvl(number=0, label=True, **fields):
    row = {"concept": "39-Panci", "language": "id", "caption": "Terdapat panci."}
    row |= {"left_img": "39-0.jpg", "right_img": "39-11.jpg", "annotator_info": {"age": 31}}
    return row | {"id": f"id-{number}", "label": label} | fields


def nlvr2(identifier="dev-850-0-0", label="True", **fields):
    row = {"sentence": "The right image shows a walkway.", "left_url": "https://a/b.jpg"}
    return row | {"label": label, "identifier": identifier} | fields


def flickr(number=1, *sentences, **fields):
    texts = list(sentences) or ["Ein Hund."]
    return {"sentences": texts, "id": f"{number}", "img_path": f"{number}.jpg", **fields}


def coco(*sentences):
    name = "COCO_val2014_000000369771.jpg"
    return {"sentences": list(sentences), "id": 369771, "img_path": name}


def wit(number=3, text="Rathaus", **fields):
    row = {"image_url": f"https://upload.wikimedia.org/{number}.jpg", "language": "ar"}
    row |= {"caption_reference_description": text, "wit_ix": f"wit-test_{number}"}
    return row | fields


def captions(**fields):
    return {"image": "1.jpg", "split": "val", "captions": {"en": ["A dog.", "A cat."]}, **fields}


class AllFound(ImageFinder):
    """Finds every image that has a path within a folder."""

    def __init__(self):
        super().__init__([pathlib.Path(__file__).parent])

    def find(self, ref, where):
        super().find(ref, where)
        self.missing.clear()
        return self.found.setdefault(ref.name, Picture(ref.name, pathlib.Path(ref.paths[0])))

    def unreadable(self, threads):
        return {}


def task_config(task, folder, **settings):
    config = finetune_config(task)
    config.update(dict(annotations=str(folder)) | settings)
    return config


def read(task, folder, images=None, splits=(), notes=None, **settings) -> TaskData:
    """Reads splits of a task, by default all that there are; gathers notes on what is left out."""
    config, said = task_config(task, folder, **settings), []
    data = read_task(config, images or AllFound(), splits or available_splits(config), said.append)
    if notes is not None:
        notes += [line for line in said if line.startswith("note: ")]
    return data


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


def draw(root: pathlib.Path, *names: str) -> ImageFinder:
    """Writes an image under each name."""
    content = io.BytesIO()
    Image.new("RGB", (40, 20), "red").save(content, "PNG")
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content.getvalue())
    return ImageFinder([root])


def counts(data: TaskData) -> dict[str, int]:
    """`split/language` → number of examples."""
    return {
        f"{split}/{language}": len(examples)
        for split, by_language in data.splits.items()
        for language, examples in by_language.items()
    }


def texts(data: TaskData, split: str, language: str) -> list[str]:
    return [example.text for example in data.splits[split][language]]


def images(data: TaskData, split: str, language: str) -> list[list[str]]:
    """The paths of each example's images."""
    return [[str(p.image) for p in e.pictures] for e in data.splits[split][language]]
