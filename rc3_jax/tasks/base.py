"""What a task is: its examples, the form of its files, and all that is specific to it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import ml_collections
import numpy as np

from rc3_jax.data.jsonl import Row
from rc3_jax.data.record import ImageLike

ENGLISH = "en"
IGLUE = "Bugliarello et al., IGLUE, ICML 2022"
CCLM = "Zeng et al., Cross-View Language Modeling, ACL 2023, Table 1"
"""Sources of published scores: the results of IGLUE's repository; means of three seeds."""


@dataclasses.dataclass(frozen=True, slots=True)
class Picture:
    """An image of a task."""

    name: str  # its identity within the task; equal names are one image
    image: ImageLike
    boxes: np.ndarray | None = None
    """float32 `[regions, 4]`: x1, y1, x2, y2 as fractions of width and height."""
    features: np.ndarray | None = None
    """float32 `[regions, feature_size]` of a detector, row for row with `boxes`."""


@dataclasses.dataclass(frozen=True, slots=True)
class Example:
    """A text of a task with its images."""

    where: str  # file and line for messages
    identity: str  # question, pair or caption; unique within a split
    text: str  # hypothesis, question, statement or caption
    pictures: tuple[Picture, ...]  # one; the left and the right one in tasks about two
    label: int | None = None
    """Number of the right class; None, which no prediction gets right, where it is no class."""


@dataclasses.dataclass(frozen=True, slots=True)
class TaskData:
    """The examples of a task."""

    classes: tuple[str, ...]  # in the order of their numbers; empty for retrieval
    splits: Mapping[str, Mapping[str, Sequence[Example]]]
    """Split (`train`, `dev`, `test`, `train_48`, ...) → language → examples."""
    left_out: Mapping[str, Mapping[str, int]] = dataclasses.field(default_factory=dict)
    """Split → language → number of rows that cannot be used, themselves or their images."""

    def examples(self) -> Iterator[Example]:
        """Yields the examples of all splits and languages."""
        for languages in self.splits.values():
            for examples in languages.values():
                yield from examples

    def pictures(self) -> dict[str, Picture]:
        """Name → picture, for all examples."""
        return {picture.name: picture for e in self.examples() for picture in e.pictures}


def checksum(chosen: Mapping[str, Mapping[str, Sequence[Example]]], classes: Sequence[str]) -> str:
    """SHA-256 of classes, and of examples by split and language: all but what the images show.

    It does not depend on how the files are written.
    """
    digest = hashlib.sha256(json.dumps(list(classes)).encode())
    for split, languages in sorted(chosen.items()):
        for language, examples in sorted(languages.items()):
            for e in examples:
                row = [split, language, e.identity, e.text, e.label, [p.name for p in e.pictures]]
                digest.update(json.dumps(row).encode())
    return digest.hexdigest()


class ImageRef(NamedTuple):
    """An image that a row names."""

    name: str  # its identity within the task
    paths: tuple[str, ...]  # relative paths that its file may have, the likeliest first


class Annotation(NamedTuple):
    """A text that a row holds, before its images are looked up."""

    text: str  # as the row has it; the loader leaves out those that `usable_text` refuses
    images: tuple[ImageRef, ...]
    identity: str | None = None  # None for captions, which are numbered within their image
    label: str | None = None  # name of the right class; any other name and None are no class
    split: str | None = None  # None: that of the file, and likewise
    language: str | None = None


class RowContext(NamedTuple):
    """What a reader knows besides the row."""

    where: object  # file and line, for messages
    language: str  # of the file; empty where each row states its own
    config: ml_collections.ConfigDict  # see `FinetuneSettings`
    memory: dict[str, str]  # kept from row to row of all files, for what rows must agree on


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskFiles:
    """The annotation files of a task, or of the English task that models for it are trained on."""

    folder: str  # usual name of their folder, in lower case
    rows: tuple[type[Row], ...]  # forms of a row; it has the first whose required fields it has
    read: Callable[[Any, RowContext], Sequence[Annotation]]  # texts of a row; raises BadRecord
    split: str = ""  # of files whose path names none
    language: str = ""  # likewise
    names: tuple[str, ...] = ()  # names of the only file; by default `files.py` finds many
    key_field: str = ""  # field of a row that is its key in a JSON document
    is_english: Callable[[str], bool] | None = None
    """Whether a text is English beyond doubt: files of another language that mostly hold such texts
    are refused."""


class Baseline(NamedTuple):
    """Published scores of a model in percent, one for each of the task's `scores`.

    All but `english` are means over the other languages. None was not published.
    """

    model: str
    english: tuple[float, ...] | None
    zero_shot: tuple[float, ...] | None
    translate_test: tuple[float, ...] | None
    few_shot: tuple[float, ...] | None
    source: str = IGLUE


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """All that is specific to a task.

    The defaults of fine-tuning are those of IGLUE's baselines (Bugliarello et al., ICML 2022) where
    it has the task.
    """

    name: str  # value of `config.task`, and name of the file in configs/downstream
    order: int = 100  # place in lists and tables
    files: TaskFiles
    english: TaskFiles | None = None  # of the English task that models are trained on, if another
    classes: tuple[str, ...] = ()  # in the order of their numbers; none in retrieval
    read_classes: Callable[[ml_collections.ConfigDict], tuple[str, ...]] | None = None
    pictures: int = 1  # images of a text, 1 or 2
    heads: tuple[str, ...] = ("class",)  # values that `config.head` may have
    scores: tuple[str, ...] = ("accuracy",)  # the scores that count, the first one most
    submission: tuple[str, str] | None = None  # names of identity and answer in its own format
    epochs: int = 10
    lr: float = 2e-5
    batch_size: int = 64
    max_length: int = 80
    miniature: Callable[[str, Mapping[str, int]], TaskData] | None = None
    """Generates the task from scenes, from its name and split → number of examples."""
    miniature_train: int = 3000  # examples to train on
    miniature_epochs: int = 6
    baselines: tuple[Baseline, ...] = ()
    shots: str = ""  # of the published few-shot scores
    by_language: Mapping[str, Mapping[str, Mapping[str, float]]] = dataclasses.field(
        default_factory=dict
    )
    """Model → score → language → published zero-shot score in percent."""

    @property
    def retrieval(self) -> bool:
        """Whether texts and images are searched for one another; otherwise a text has a class."""
        return not self.classes and self.read_classes is None

    def all_files(self, config: ml_collections.ConfigDict) -> Iterator[tuple[str, TaskFiles]]:
        """Yields the folders that a configuration names, each with the files expected there."""
        yield config.annotations, self.files
        if config.english and self.english:
            yield config.english, self.english
