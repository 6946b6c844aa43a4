"""GQA and xGQA: questions about photographs (Hudson and Manning 2019; Pfeiffer et al. 2022).

xGQA has one object of GQA's records a language, and English answers in all of them:

    {"2076819": {"question": "Wie sehen die Autos aus?", "imageId": "n214497", "answer": "dense",
                 ...}, ...}

IGLUE rewrites GQA as a list, in which `label` may be absent or empty where answers are secret:

    [{"img_id": "n161313", "label": {"no": 1.0}, "question_id": "201307251", "sent": "Is it?"}]

The classes are a closed list of answers, `trainval_ans2label.json`. An answer that is not in it is
no class: no prediction is right.
"""

from __future__ import annotations

import functools
import math
import pathlib
from collections.abc import Mapping

from rc3_jax.data.record import BadRecord, DataError
from rc3_jax.data.sources.rows import shown
from rc3_jax.downstream.layout import AnnotationFile
from rc3_jax.downstream.pictures import Wanted
from rc3_jax.downstream.reading import Line, Task, identity_field, load_json, text_field

ANSWERS_FILE = "trainval_ans2label.json"
_FOLDERS = ("", "annotations", "GQA", "gqa", "gqa/annotations")


def gqa(folder: pathlib.Path, answers: pathlib.Path | None) -> Task:
    """The English task; see `xgqa`."""
    return _task(folder, answers, "en")


def xgqa(folder: pathlib.Path, answers: pathlib.Path | None) -> Task:
    """The task.

    Args:
      answers: the list of answers; None: the `trainval_ans2label.json` of the folder, or of the
        folder of GQA beside it.

    Raises:
      DataError: there is none, or it does not number its answers.
    """
    return _task(folder, answers, None)


def read_answers(path: pathlib.Path) -> tuple[str, ...]:
    """The answers in the order of their numbers, from an object answer → number or a list.

    Raises:
      DataError: unreadable, or not numbers 0, 1, ... of distinct texts.
    """
    content = load_json(path)
    if isinstance(content, dict):
        numbers = content.values()
        if all(type(number) is int for number in numbers):
            if sorted(numbers) != list(range(len(content))):
                raise DataError(f"{path}: answers are not numbered 0, 1, ...; download it again")
            content = sorted(content, key=content.get)
    is_list = isinstance(content, list) and all(isinstance(one, str) for one in content)
    if not is_list or not content or len(set(content)) < len(content):
        raise DataError(f"{path}: no list of answers; take {ANSWERS_FILE} of the benchmark")
    return tuple(content)


def _task(folder: pathlib.Path, answers: pathlib.Path | None, language: str | None) -> Task:
    classes = read_answers(pathlib.Path(answers) if answers else _answers_file(folder))
    numbers = {answer: number for number, answer in enumerate(classes)}
    return Task("GQA or xGQA", functools.partial(_lines, numbers), classes, language)


def _answers_file(folder: pathlib.Path) -> pathlib.Path:
    for base in (folder, folder.resolve().parent):
        for name in _FOLDERS:
            path = base / name / ANSWERS_FILE
            if path.is_file():
                return path
    raise DataError(
        f"{folder}: no {ANSWERS_FILE} here or in a folder GQA beside it; give its path as answers "
        "(its .pkl twin is not read: unpickling a file runs whatever program is in it)"
    )


def _lines(numbers: Mapping[str, int], row: dict, where: str, file: AnnotationFile) -> list[Line]:
    if "sent" in row or "img_id" in row:
        question, image, answer = "sent", "img_id", _likeliest(row.get("label"), where)
    else:
        question, image, answer = "question", "imageId", text_field(row, "answer", where)
    name = f"{identity_field(row, image, where)}.jpg"
    return [
        Line(
            text_field(row, question, where),
            (Wanted(name, (name,)),),
            identity_field(row, "question_id", where),
            numbers.get(answer),
        )
    ]


def _likeliest(label: object, where: str) -> str | None:
    """The answer of the greatest weight, the first of equals; None where there is none."""
    if label in (None, {}):
        return None
    weights = label.values() if isinstance(label, dict) else [None]
    if not all(type(weight) in (int, float) and math.isfinite(weight) for weight in weights):
        raise BadRecord(f"{where}: label {shown(label)} is not answer: weight; correct it")
    return max(label, key=label.get)
