"""Hypotheses, questions, statements and captions about scenes: what each says in six languages,
and what is true of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

from rc3_jax.data import grammar
from rc3_jax.data.grammar import Mention
from rc3_jax.data.scenes import Scene, SceneObject
from rc3_jax.downstream import phrases

VERDICTS = ("contradiction", "neutral", "entailment")
QUESTIONS = ("colour", "shape", "place", "count", "exists")
ANSWERS = (
    *("no", "yes"),
    *map(str, range(len(grammar.PLACES) + 1)),
    *grammar.COLOURS,
    *grammar.SHAPES,
    *grammar.PLACES,
)
PLAIN_FRAMES = (0, 3)
"""Those of a caption that do not say that one sees it: "there is ..." and the bare phrase."""


def matches(mention: Mention, item: SceneObject) -> bool:
    """Whether all that a mention names is true of an object."""
    named = {a: getattr(mention, a) for a in grammar.ATTRIBUTES if getattr(mention, a)}
    return all(getattr(item, attribute) == value for attribute, value in named.items())


def matching(mention: Mention, scene: Scene) -> list[SceneObject]:
    """The objects of a scene that a mention is true of."""
    return [item for item in scene.objects if matches(mention, item)]


@dataclasses.dataclass(frozen=True)
class Caption:
    """A caption of its own in each language.

    Attributes:
      mentions: language → what its caption mentions.
      frame: number of the sentence frame, the same in every language.
    """

    mentions: Mapping[str, tuple[Mention, ...]]
    frame: int

    def text(self, language: str) -> str:
        """The caption in a language."""
        return grammar.caption(language, self.mentions[language], self.frame)


@dataclasses.dataclass(frozen=True)
class Hypothesis:
    """Says of an object, and of its place, what may be true, false or hidden.

    Attributes:
      mention: names a place and something else.
      frame: one of PLAIN_FRAMES.
    """

    mention: Mention
    frame: int

    def text(self, language: str) -> str:
        """The hypothesis in a language."""
        return grammar.caption(language, [self.mention], self.frame)

    def verdict(self, scene: Scene, covered: str) -> str:
        """Which of VERDICTS is right when the quadrant `covered` of the scene is not shown."""
        if self.mention.place == covered:
            return "neutral"
        return "entailment" if matching(self.mention, scene) else "contradiction"


@dataclasses.dataclass(frozen=True)
class Question:
    """A question about one picture.

    Attributes:
      kind: one of QUESTIONS; of the first three, what it asks of the one object mentioned.
      mention: of "count" and "exists", a shape or colour or both.
    """

    kind: str
    mention: Mention

    def text(self, language: str) -> str:
        """The question in a language."""
        return _sentence(_QUESTIONS, self.kind, language, self.mention)

    def answer(self, scene: Scene) -> str:
        """Which of ANSWERS is right; raises ValueError unless one object is meant."""
        found = matching(self.mention, scene)
        if self.kind == "count":
            return str(len(found))
        if self.kind == "exists":
            return "yes" if found else "no"
        if len(found) != 1:
            raise ValueError(f"{len(found)} objects fit {self.mention}; mention one alone")
        return getattr(found[0], self.kind)


@dataclasses.dataclass(frozen=True)
class Statement:
    """A statement about two pictures.

    Attributes:
      kind: one of STATEMENTS.
      mention: a shape or a colour.
    """

    kind: str
    mention: Mention

    def text(self, language: str) -> str:
        """The statement in a language."""
        return _sentence(_STATEMENTS, self.kind, language, self.mention)

    def holds(self, left: Scene, right: Scene) -> bool:
        """Whether it is true."""
        return self.holds_of(len(matching(self.mention, left)), len(matching(self.mention, right)))

    def holds_of(self, left: int, right: int) -> bool:
        """Whether it is true of pictures with that many of the objects mentioned."""
        return _HOLDS[self.kind](left, right)


_HOLDS: Mapping[str, Callable[[int, int], bool]] = {
    "both": lambda left, right: left > 0 and right > 0,
    "neither": lambda left, right: left == right == 0,
    "only left": lambda left, right: left > 0 and right == 0,
    "only right": lambda left, right: left == 0 and right > 0,
}
STATEMENTS = tuple(_HOLDS)

# A sentence is a template around one noun phrase of the form that it asks for.
_Phrase = Callable[[str, Mention], str]
_Template = tuple[str, _Phrase]
_indefinite, _accusative = phrases.indefinite, phrases.accusative
_definite, _quantity = phrases.definite, phrases.quantity


def _sentence(
    templates: Mapping[str, Mapping[str, _Template]], kind: str, language: str, mention: Mention
) -> str:
    template, phrase = templates[kind][language]
    return template.format(phrase(language, mention))


# A French question mark has a space before it; the plain one, which tokenizers split at.
_QUESTIONS: Mapping[str, Mapping[str, _Template]] = {
    "colour": {
        "en": ("What colour is {}?", _definite),
        "de": ("Welche Farbe hat {}?", _definite),
        "fr": ("De quelle couleur est {} ?", _definite),
        "cs": ("Jakou barvu má {}?", _definite),
        "zh": ("{}是什么颜色的？", _definite),
        "ja": ("{}は何色ですか？", _definite),
    },
    "shape": {
        "en": ("What is {}?", _definite),
        "de": ("Was ist {}?", _definite),
        "fr": ("Quelle est {} ?", _definite),
        "cs": ("Co je to za {}?", _indefinite),
        "zh": ("{}是什么？", _definite),
        "ja": ("{}は何ですか？", _definite),
    },
    "place": {
        "en": ("Where is {}?", _definite),
        "de": ("Wo ist {}?", _definite),
        "fr": ("Où est {} ?", _definite),
        "cs": ("Kde je {}?", _definite),
        "zh": ("{}在哪里？", _definite),
        "ja": ("{}はどこにありますか？", _definite),
    },
    "count": {
        "en": ("How many {} are there?", _quantity),
        "de": ("Wie viele {} gibt es?", _quantity),
        "fr": ("Combien {} y a-t-il ?", _quantity),
        "cs": ("Kolik {} je na obrázku?", _quantity),
        "zh": ("图中有几{}？", _quantity),
        "ja": ("{}はいくつありますか？", _quantity),
    },
    "exists": {
        "en": ("Is there {}?", _indefinite),
        "de": ("Gibt es {}?", _accusative),
        "fr": ("Y a-t-il {} ?", _indefinite),
        "cs": ("Je na obrázku {}?", _indefinite),
        "zh": ("图中有{}吗？", _indefinite),
        "ja": ("{}はありますか？", _indefinite),
    },
}

_STATEMENTS: Mapping[str, Mapping[str, _Template]] = {
    "both": {
        "en": ("Both pictures show {}.", _indefinite),
        "de": ("Beide Bilder zeigen {}.", _accusative),
        "fr": ("Les deux images montrent {}.", _indefinite),
        "cs": ("Oba obrázky ukazují {}.", _accusative),
        "zh": ("两张图片中都有{}。", _indefinite),
        "ja": ("どちらの画像にも{}があります。", _indefinite),
    },
    "neither": {
        "en": ("Neither picture shows {}.", _indefinite),
        "de": ("Keines der beiden Bilder zeigt {}.", _accusative),
        "fr": ("Aucune des deux images ne montre {}.", phrases.french_negated),
        "cs": ("Žádný z obou obrázků neukazuje {}.", _accusative),
        "zh": ("两张图片中都没有{}。", _indefinite),
        "ja": ("どちらの画像にも{}はありません。", _indefinite),
    },
    "only left": {
        "en": ("Only the left picture shows {}.", _indefinite),
        "de": ("Nur das linke Bild zeigt {}.", _accusative),
        "fr": ("Seule l'image de gauche montre {}.", _indefinite),
        "cs": ("Jen levý obrázek ukazuje {}.", _accusative),
        "zh": ("只有左边的图片中有{}。", _indefinite),
        "ja": ("左の画像だけに{}があります。", _indefinite),
    },
    "only right": {
        "en": ("Only the right picture shows {}.", _indefinite),
        "de": ("Nur das rechte Bild zeigt {}.", _accusative),
        "fr": ("Seule l'image de droite montre {}.", _indefinite),
        "cs": ("Jen pravý obrázek ukazuje {}.", _accusative),
        "zh": ("只有右边的图片中有{}。", _indefinite),
        "ja": ("右の画像だけに{}があります。", _indefinite),
    },
}
