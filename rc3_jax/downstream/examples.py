"""What every task is made of: texts about one or two pictures, with a label or without."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from rc3_jax.data.record import ImageLike


@dataclasses.dataclass(frozen=True, slots=True)
class Picture:
    """An image of a task.

    Attributes:
      name: its identity within the task; equal names are one image.
      image: the picture.
      boxes: float32 `[regions, 4]`, x1, y1, x2, y2 as fractions of width and height.
      features: float32 `[regions, feature_size]` of a detector, row for row with `boxes`.
    """

    name: str
    image: ImageLike
    boxes: np.ndarray | None = None
    features: np.ndarray | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Example:
    """A text of a task.

    Attributes:
      where: file and line for messages.
      identity: question, pair or caption; unique within a split.
      text: hypothesis, question, statement or caption.
      pictures: one; of tasks about two, left and right.
      label: number of the right class; None where it is none of the task's classes, which no
        prediction gets right. Retrieval has no labels.
    """

    where: str
    identity: str
    text: str
    pictures: tuple[Picture, ...]
    label: int | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class TaskData:
    """The examples of a task.

    Attributes:
      classes: their names in the order of their numbers; empty for retrieval.
      splits: split (`train`, `dev`, `test`, `train_48`, ...) → language → examples.
      left_out: split → language → rows of the files that are no examples, because they or their
        pictures cannot be used.
    """

    classes: tuple[str, ...]
    splits: Mapping[str, Mapping[str, Sequence[Example]]]
    left_out: Mapping[str, Mapping[str, int]] = dataclasses.field(default_factory=dict)

    def examples(self) -> Iterator[Example]:
        """Those of all splits and languages."""
        for languages in self.splits.values():
            for examples in languages.values():
                yield from examples

    def pictures(self) -> dict[str, Picture]:
        """Those of all examples by their names."""
        return {picture.name: picture for e in self.examples() for picture in e.pictures}


def checksum(chosen: Mapping[str, Mapping[str, Sequence[Example]]], classes: Sequence[str]) -> str:
    """SHA-256 of classes, and of examples by split and language: all but what is in the pictures.

    It does not depend on how the files are written.
    """
    digest = hashlib.sha256(json.dumps(list(classes)).encode())
    for split, languages in sorted(chosen.items()):
        for language, examples in sorted(languages.items()):
            for e in examples:
                row = [split, language, e.identity, e.text, e.label, [p.name for p in e.pictures]]
                digest.update(json.dumps(row).encode())
    return digest.hexdigest()
