"""XVNLI: does a photograph entail a hypothesis (Bugliarello et al. 2022, IGLUE)?

    {"gold_label": "neutral", "sentence1": "...", "sentence2": "A man sleeps.",
     "captionID": "759822302.jpg#2", "pairID": "759822302.jpg#2r1n", "Flikr30kID": "759822302"}

The photograph of Flickr30k takes the place of the premise: `sentence1`, its caption, is not read.
The gold label `-` (annotators disagree) is no class, so that no prediction is right.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from rc3_jax.data.jsonl import Identity, Name, Row
from rc3_jax.scenes.tasks import miniature
from rc3_jax.tasks.base import CCLM, Annotation, Baseline, RowContext, Task, TaskFiles
from rc3_jax.tasks.images import flickr_image


class XVNLIRow(Row):
    """A hypothesis about a photograph."""

    gold_label: Literal["contradiction", "neutral", "entailment", "-"]
    sentence2: str
    pairID: Name
    Flikr30kID: Annotated[Identity, Field(pattern=r"^[0-9]+(\.jpg)?$")]


def read(row: XVNLIRow, context: RowContext) -> list[Annotation]:
    """The hypothesis."""
    image = flickr_image(f"{row.Flikr30kID.removesuffix('.jpg')}.jpg")
    return [Annotation(row.sentence2, (image,), row.pairID, row.gold_label)]


XVNLI = Task(
    name="xvnli",
    order=1,
    files=TaskFiles(folder="xvnli", rows=(XVNLIRow,), read=read),
    classes=("contradiction", "neutral", "entailment"),
    batch_size=128,
    miniature=miniature,
    baselines=(  # English, zero-shot, translate-test, few-shot
        Baseline("mUNITER", (76.38,), (53.69,), (73.09,), (53.95,)),
        Baseline("xUNITER", (75.77,), (58.48,), (72.83,), (60.55,)),
        Baseline("UC2", (76.38,), (62.05,), (73.67,), (63.68,)),
        Baseline("M3P", (76.89,), (58.25,), (73.37,), (59.36,)),
        Baseline("CCLM-3M", None, (74.64,), None, (75.15,), CCLM),
        Baseline("CCLM-4M", None, (73.32,), None, (74.19,), CCLM),
    ),
    shots="48",
    by_language={"UC2": {"accuracy": dict(ar=56.19, es=57.47, fr=69.67, ru=64.86)}},
)
