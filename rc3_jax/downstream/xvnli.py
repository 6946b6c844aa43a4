"""XVNLI: does a photograph entail a hypothesis (Bugliarello et al. 2022, IGLUE)?

    {"gold_label": "neutral", "sentence1": "...", "sentence2": "A man sleeps.",
     "captionID": "759822302.jpg#2", "pairID": "759822302.jpg#2r1n", "Flikr30kID": "759822302"}

The photograph of Flickr30k takes the place of the premise: `sentence1`, its caption, is not read.
A gold label `-` (annotators disagree) is no class: no prediction is right.
"""

from __future__ import annotations

from rc3_jax.data.record import BadRecord
from rc3_jax.data.sources.rows import shown
from rc3_jax.downstream.layout import AnnotationFile
from rc3_jax.downstream.pictures import Wanted
from rc3_jax.downstream.reading import Line, Task, identity_field, text_field

CLASSES = ("contradiction", "neutral", "entailment")


def xvnli() -> Task:
    """The task."""
    return Task("XVNLI", _lines, CLASSES)


def flickr_photograph(file_name: str) -> Wanted:
    """A photograph of Flickr30k by its file name, such as `1007129816.jpg`."""
    return Wanted(file_name, (file_name, f"flickr30k-images/{file_name}"))


def _lines(row: dict, where: str, file: AnnotationFile) -> list[Line]:
    label = text_field(row, "gold_label", where)
    if label not in (*CLASSES, "-"):
        raise BadRecord(
            f"{where}: gold_label {shown(label)} is none of {', '.join(CLASSES)} and -; correct it"
        )
    photograph = identity_field(row, "Flikr30kID", where).removesuffix(".jpg")
    if not photograph.isdecimal():
        raise BadRecord(f"{where}: Flikr30kID {shown(photograph)} is no number; correct it")
    return [
        Line(
            text_field(row, "sentence2", where),
            (flickr_photograph(f"{photograph}.jpg"),),
            text_field(row, "pairID", where),
            None if label == "-" else CLASSES.index(label),
        )
    ]
