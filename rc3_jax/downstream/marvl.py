"""MaRVL and NLVR2: is a statement about two images true (Liu et al. 2021; Suhr et al. 2019)?

    {"concept": "39-Panci", "language": "id", "caption": "...", "left_img": "39-0.jpg",
     "right_img": "39-11.jpg", "chapter": "...", "id": "id-0", "label": true}
    {"sentence": "...", "label": "True", "identifier": "dev-850-0-0", "left_url": "...", ...}

MaRVL numbers its images within each language, and its few-shot rows name them with the folder of
the concept, `39-Panci/39-n-5.jpg`. So these are looked for, in this order:
`<language>/images/<concept>/<file>` (as published), `<language>/<concept>/<file>`,
`<language>/images/<file>`, `<language>/<file>`, `<concept>/<file>` and, for folders of one
language, `<file>`. Of NLVR2, `dev-850-0-img0.png` and `dev-850-0-img1.png` are looked for as they
are, in a folder of the set (`dev`, `test1`) and, of training rows, in `train/<directory>`.
"""

from __future__ import annotations

import re

from rc3_jax.data.record import BadRecord
from rc3_jax.data.sources.rows import shown
from rc3_jax.downstream.layout import AnnotationFile
from rc3_jax.downstream.pictures import Wanted
from rc3_jax.downstream.reading import Line, Task, check_row_language, text_field, truth

CLASSES = ("false", "true")


def marvl() -> Task:
    """Statements in other languages than English; `marvl-id.jsonl` is the test set."""
    return Task("MaRVL", _marvl_lines, CLASSES, split="test")


def nlvr2() -> Task:
    """English statements, on which models for MaRVL are fine-tuned."""
    return Task("NLVR2", _nlvr2_lines, CLASSES, language="en")


def _marvl_lines(row: dict, where: str, file: AnnotationFile) -> list[Line]:
    check_row_language(row, file, where)
    concept = text_field(row, "concept", where)
    pictures = []
    for side in ("left_img", "right_img"):
        path = text_field(row, side, where)
        name = path.removeprefix(f"{concept}/")
        within = f"{concept}/{name}"
        language = file.language
        paths = (
            f"{language}/images/{within}",
            f"{language}/{within}",
            f"{language}/images/{name}",
            f"{language}/{name}",
            within,
            name,
        )
        pictures.append(Wanted(f"{language}/{within}", paths))
    return [
        Line(
            text_field(row, "caption", where),
            tuple(pictures),
            text_field(row, "id", where),
            truth(row.get("label"), where),
        )
    ]


def _nlvr2_lines(row: dict, where: str, file: AnnotationFile) -> list[Line]:
    identifier = text_field(row, "identifier", where)
    if not re.fullmatch(r"[a-z]+[0-9]*(-[0-9]+){3}", identifier):
        raise BadRecord(
            f"{where}: identifier {shown(identifier)} is not like dev-850-0-0; correct it"
        )
    pair = identifier.rsplit("-", 1)[0]
    of_set = pair.split("-")[0]
    pictures = []
    for side in (0, 1):
        name = f"{pair}-img{side}.png"
        paths = [name, f"{of_set}/{name}"]
        if str(row.get("directory")).isdecimal():  # of the training set
            paths.append(f"{of_set}/{row['directory']}/{name}")
        pictures.append(Wanted(name, tuple(paths)))
    return [
        Line(
            text_field(row, "sentence", where),
            tuple(pictures),
            identifier,
            truth(row.get("label"), where),
        )
    ]
