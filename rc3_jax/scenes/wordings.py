"""Sentences that only test splits say, and questions and statements as text to learn from.

A model that shall answer in a language must have met its words, yet not the sentence itself. So of
all ways to say something, one is withheld from pre-training, and the tests of the tasks say it that way.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from rc3_jax.scenes.languages.base import FRAMES, PLAIN_FRAMES, QUESTIONS, STATEMENTS
from rc3_jax.scenes.scene import ATTRIBUTES, Mention, one_of, random_names

SORT = ("shape", "colour")  # what hypotheses, statements, and questions of number speak of
_ONE_IN = {kind: 2 if kind in STATEMENTS else 4 for kind in QUESTIONS + STATEMENTS}  # is withheld


class Asked(NamedTuple):
    """A question, or a statement about two pictures."""

    kind: str
    mention: Mention


def withheld_frame(mentions: Sequence[Mention]) -> int:
    """The frame in which only test splits say these mentions: one of PLAIN_FRAMES."""
    said = " ".join(sorted(map(str, mentions)))
    return PLAIN_FRAMES[zlib.crc32(said.encode()) % len(PLAIN_FRAMES)]


def other_plain_frame(frame: int) -> int:
    """The other one of PLAIN_FRAMES."""
    return sum(PLAIN_FRAMES) - frame


def random_frame(rng: np.random.Generator, mentions: Sequence[Mention]) -> int:
    """One of the frames that are not withheld for these mentions."""
    frame = int(rng.integers(FRAMES))
    return frame ^ 1 if frame == withheld_frame(mentions) else frame  # 0 to 1, 3 to 2


def is_withheld(asked: Asked) -> bool:
    """Whether only test splits ask or state this."""
    return zlib.crc32(str(asked).encode()) % _ONE_IN[asked.kind] == 0


def random_mention(rng: np.random.Generator, *choices: Sequence[str]) -> Mention:
    """Names one of several sets of attributes."""
    return Mention(**{name: one_of(rng, ATTRIBUTES[name]) for name in one_of(rng, choices)})


def random_asked(rng: np.random.Generator) -> Asked:
    """A question or a statement that is not withheld, about nothing in particular."""
    while True:
        kind = one_of(rng, QUESTIONS + STATEMENTS)
        if kind in STATEMENTS:
            mention = random_mention(rng, SORT[:1], SORT[1:])
        elif kind in ("count", "exists"):
            mention = random_mention(rng, SORT[:1], SORT[1:], SORT)
        else:
            others = [name for name in ATTRIBUTES if name != kind]
            mention = random_mention(rng, random_names(rng, others, 0.5))
        if not is_withheld(asked := Asked(kind, mention)):
            return asked
