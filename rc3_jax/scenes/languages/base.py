"""What scenes need of a language, and what several languages share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from rc3_jax.scenes.scene import COLOURS, PLACES, SHAPES, SIZES, Mention

QUESTIONS = ("colour", "shape", "place", "count", "exists")
"""What is asked of the one object mentioned; or how many there are, or whether there is one."""
STATEMENTS = ("both", "neither", "only left", "only right")
"""Which of two pictures show what is mentioned."""
FRAMES = 4
"""Wordings of a caption: "there is ...", two that speak of the picture or a viewer, and the bare
phrase."""
PLAIN_FRAMES = (0, 3)
"""The frames that do not claim that something can be seen."""

Words = Mapping[str | None, str]
Forms = Callable[[Mention], dict[str, str]]
Sentence = Callable[[list[Mention], list[Mention], int], str]


@dataclasses.dataclass(frozen=True)
class Language:
    """A language of generated scenes.

    Attributes:
      forms: returns the noun phrase of a mention by form, such as "definite".
      sentence: returns the caption of mentions with a place, and of others without one, in a
        frame; at least one of the two lists is not empty.
      templates: each of QUESTIONS and STATEMENTS, with the form that it asks for in braces.
    """

    forms: Forms
    sentence: Sentence
    templates: Mapping[str, str]

    def caption(self, mentions: Sequence[Mention], frame: int = 0) -> str:
        """Says one or more different mentions, and nothing else, in one sentence.

        Those that name a place come first, so that in "a circle at the top left and a star" the
        place belongs to the circle alone.
        """
        placed = [mention for mention in mentions if mention.place]
        return self.sentence(placed, [m for m in mentions if not m.place], frame)

    def ask(self, kind: str, mention: Mention) -> str:
        """One of QUESTIONS or STATEMENTS.

        The mention of a statement, or of a question on number or existence, has no place.
        """
        return self.templates[kind].format(**self.forms(mention))


def listing(
    forms: Forms, conjunction: str, frames: Sequence[str], several: Mapping[int, str] | None = None
) -> Sentence:
    """Captions that are templates around a list of noun phrases.

    Args:
      conjunction: stands before the last of several objects.
      frames: FRAMES templates.
      several: frame → its template before several objects, where that differs.
    """

    def sentence(placed: list[Mention], others: list[Mention], frame: int) -> str:
        phrases = [forms(mention) for mention in placed + others]
        listed = {f: join([p[f] for p in phrases], ", ", conjunction) for f in phrases[0]}
        template = (len(phrases) > 1 and several and several.get(frame)) or frames[frame]
        text = template.format(**listed)
        return text[0].upper() + text[1:]

    return sentence


def by_shape(words: str) -> Words:
    """A row of words: one for an object whose shape is not named, then one for each of SHAPES."""
    return dict(zip((None, *SHAPES), words.split(), strict=True))


def by_adjective(words: str) -> Words:
    """A row of words: one for each of SIZES, then one for each of COLOURS."""
    return dict(zip(SIZES + COLOURS, words.split(), strict=True))


def by_place(words: str) -> Words:
    """A row of phrases between commas, one for each of PLACES."""
    return dict(zip(PLACES, words.split(", "), strict=True))


def spaced(*words: str | None) -> str:
    """The words that there are, with spaces between them."""
    return " ".join(word for word in words if word)


def join(phrases: Sequence[str], comma: str, conjunction: str) -> str:
    """`a`, `a and b`, `a, b and c`."""
    *first, last = phrases
    return comma.join(first) + conjunction + last if first else last
