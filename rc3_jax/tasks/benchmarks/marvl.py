"""MaRVL and NLVR2: is a statement about two images true (Liu et al. 2021; Suhr et al. 2019)?

    {"concept": "39-Panci", "language": "id", "caption": "...", "left_img": "39-0.jpg",
     "right_img": "39-11.jpg", "chapter": "...", "id": "id-0", "label": true}
    {"sentence": "...", "label": "True", "identifier": "dev-850-0-0", "left_url": "...", ...}

MaRVL numbers its images within each language, and its few-shot rows name them with the folder of
the concept, `39-Panci/39-n-5.jpg`. They are looked for in this order:
`<language>/images/<concept>/<file>` (as published), `<language>/<concept>/<file>`,
`<language>/images/<file>`, `<language>/<file>`, `<concept>/<file>` and, for folders of one
language, `<file>`. Images of NLVR2, such as `dev-850-0-img0.png`, are looked for by their name
alone, in a folder of the set (`dev`, `test1`) and, for training rows, in `train/<directory>`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from rc3_jax.data.jsonl import Name, Row
from rc3_jax.scenes.tasks import miniature
from rc3_jax.tasks.base import CCLM, Annotation, Baseline, ImageRef, RowContext, Task, TaskFiles

Truth = bool | Literal["True", "False"]


class MaRVLRow(Row):
    """A statement in another language than English."""

    concept: Name
    caption: str
    left_img: Name
    right_img: Name
    id: Name
    label: Truth


class NLVR2Row(Row):
    """An English statement."""

    sentence: str
    identifier: Annotated[str, Field(pattern=r"^[a-z]+[0-9]*(-[0-9]+){3}$")]
    label: Truth
    directory: object = None
    """Number of the folder that holds the images of a training row."""


def read_marvl(row: MaRVLRow, context: RowContext) -> list[Annotation]:
    """The statement."""
    images = []
    for path in (row.left_img, row.right_img):
        name = path.removeprefix(f"{row.concept}/")
        within, language = f"{row.concept}/{name}", context.language
        places = [f"{language}/images/{within}", f"{language}/{within}"]
        places += [f"{language}/images/{name}", f"{language}/{name}", within, name]
        images.append(ImageRef(f"{language}/{within}", tuple(places)))
    return [Annotation(row.caption, tuple(images), row.id, str(row.label).lower())]


def read_nlvr2(row: NLVR2Row, context: RowContext) -> list[Annotation]:
    """The statement."""
    pair = row.identifier.rsplit("-", 1)[0]
    part = pair.split("-")[0]
    folders = ["", f"{part}/"]
    if str(row.directory).isdecimal():
        folders.append(f"{part}/{row.directory}/")
    images = []
    for name in (f"{pair}-img0.png", f"{pair}-img1.png"):
        images.append(ImageRef(name, tuple(folder + name for folder in folders)))
    return [Annotation(row.sentence, tuple(images), row.identifier, str(row.label).lower())]


MARVL = Task(
    name="marvl",
    order=3,
    files=TaskFiles(folder="marvl", rows=(MaRVLRow,), read=read_marvl, split="test"),
    english=TaskFiles(folder="nlvr2", rows=(NLVR2Row,), read=read_nlvr2, language="en"),
    classes=("false", "true"),
    pictures=2,
    epochs=20,
    lr=1e-5,
    # It is hard to learn: new examples help more than further epochs.
    miniature=miniature,
    miniature_train=9000,
    miniature_epochs=3,
    baselines=(  # English, zero-shot, translate-test, few-shot
        Baseline("mUNITER", (71.91,), (53.72,), (63.82,), (53.41,)),
        Baseline("xUNITER", (71.55,), (54.59,), (64.04,), (57.46,)),
        Baseline("UC2", (70.56,), (57.28,), (63.09,), (58.32,)),
        Baseline("M3P", (68.22,), (56.00,), (62.52,), (49.79,)),
        Baseline("CCLM-3M", None, (65.91,), None, (70.53,), CCLM),
        Baseline("CCLM-4M", None, (67.17,), None, (72.57,), CCLM),
    ),
    shots="10x2",
    by_language={"UC2": {"accuracy": dict(id=56.74, sw=52.62, ta=60.47, tr=56.70, zh=59.88)}},
)
