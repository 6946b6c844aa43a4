"""xGQA and GQA: questions about photographs (Pfeiffer et al. 2022; Hudson and Manning 2019).

xGQA has one object of GQA's records a language, and English answers in all of them:

    {"2076819": {"question": "Wie sehen die Autos aus?", "imageId": "n214497", "answer": "dense",
                 ...}, ...}

IGLUE rewrites GQA as a list, in which `label` may be absent or empty where answers are secret:

    [{"img_id": "n161313", "label": {"no": 1.0}, "question_id": "201307251", "sent": "Is it?"}]

The classes are a closed list of answers, `trainval_ans2label.json`. An answer that is not in it is
no class, so that no prediction is right; capital letters and spaces around an answer do not count.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import re

import ml_collections

from rc3_jax.data.jsonl import Identity, Row, read_json
from rc3_jax.data.record import DataError
from rc3_jax.scenes.tasks import miniature
from rc3_jax.tasks.base import CCLM, Annotation, Baseline, ImageRef, RowContext, Task, TaskFiles

ANSWERS_FILE = "trainval_ans2label.json"
_FOLDERS = ("", "annotations", "GQA", "gqa", "gqa/annotations")


class XGQARow(Row):
    """A question, as GQA and xGQA publish it."""

    question_id: Identity
    question: str
    imageId: Identity
    answer: str


class GQARow(Row):
    """A question, as IGLUE rewrites GQA; `label` is answer → weight."""

    question_id: Identity
    sent: str
    img_id: Identity
    label: dict[str, float] | None = None


_ENGLISH = re.compile(
    r"\s*((what|which|whose|who|where|how|why|does|did)\b"
    r"|(is|are|was|were|do) (it|he|she|they|you|the|there|this|that|these|those)\b)",
    re.IGNORECASE,
)
"""How questions in English begin, and those in other languages do not."""


def is_english(question: str) -> bool:
    """Whether a question begins as only English ones do."""
    return _ENGLISH.match(question) is not None


def read(row: XGQARow | GQARow, context: RowContext) -> list[Annotation]:
    """The question; its class is the answer of the greatest weight, the first of equal ones."""
    answer: str | None = None
    if isinstance(row, XGQARow):
        text, name, answer = row.question, f"{row.imageId}.jpg", row.answer
    else:
        text, name = row.sent, f"{row.img_id}.jpg"
        if row.label:
            answer = max(row.label, key=row.label.__getitem__)
    return [Annotation(text, (ImageRef(name, (name,)),), row.question_id, answer)]


def read_answers(config: ml_collections.ConfigDict) -> tuple[str, ...]:
    """Reads the closed list: a JSON object answer → number, or a list.

    It is `config.answers`, or the ANSWERS_FILE of a folder of annotations or of a GQA beside it.

    Raises:
      DataError: there is none, or it does not number distinct answers 0, 1, ...
    """
    path = pathlib.Path(config.answers) if config.answers else _find_answers(config)
    content = read_json(path)
    pairs = list(content.items()) if isinstance(content, dict) else []
    if isinstance(content, list):
        pairs = [(answer, number) for number, answer in enumerate(content)]
    answers = {n: answer for answer, n in pairs if type(n) is int and type(answer) is str}
    distinct = len(set(answers.values())) == len(answers)
    if not answers or not distinct or sorted(answers) != list(range(len(pairs))):
        raise DataError(f"{path}: no answers numbered 0, 1, ...; download {ANSWERS_FILE} again")
    return tuple(answers[number] for number in sorted(answers))


def _find_answers(config: ml_collections.ConfigDict) -> pathlib.Path:
    named = [path for path in (config.annotations, config.english) if path]
    # Of a link, what stands beside the link itself counts.
    folders = [pathlib.Path(os.path.abspath(path)) for path in named]
    for base in (*folders, *(folder.parent for folder in folders)):
        for name in _FOLDERS:
            if (path := base / name / ANSWERS_FILE).is_file():
                return path
    raise DataError(
        f"{config.annotations}: no {ANSWERS_FILE} here or in a folder GQA beside it; give its path "
        "as answers (a .pkl is not read, since unpickling runs whatever program is in it)"
    )


FILES = TaskFiles(
    folder="xgqa",
    rows=(GQARow, XGQARow),
    read=read,
    key_field="question_id",
    is_english=is_english,
)
XGQA = Task(
    name="xgqa",
    order=2,
    files=FILES,
    english=dataclasses.replace(FILES, folder="gqa", language="en"),
    read_classes=read_answers,
    heads=("class", "decoder"),
    submission=("questionId", "prediction"),
    epochs=5,
    lr=4e-5,
    batch_size=256,
    max_length=40,
    miniature=miniature,
    baselines=(  # English, zero-shot, translate-test, few-shot
        Baseline("mUNITER", (54.68,), (9.97,), (49.05,), (37.21,)),
        Baseline("xUNITER", (54.83,), (21.72,), (49.15,), (40.68,)),
        Baseline("UC2", (55.19,), (29.35,), (50.19,), (42.95,)),
        Baseline("M3P", (53.75,), (28.17,), (48.83,), (41.04,)),
        Baseline("CCLM-3M", None, (42.36,), None, (50.94,), CCLM),
        Baseline("CCLM-4M", None, (46.24,), None, (55.11,), CCLM),
    ),
    shots="48",
    by_language={
        "UC2": {
            "accuracy": dict(bn=19.99, de=42.85, id=28.67, ko=21.36, pt=30.42, ru=31.00, zh=31.16)
        }
    },
)
