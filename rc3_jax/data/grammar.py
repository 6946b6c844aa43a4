"""A caption grammar for scenes of coloured shapes in English, German, French, Czech, Chinese
and Japanese.

A caption is one sentence that joins the mentions of one to four objects. Each language is a
table of words, a function from a mention to a noun phrase, and a few sentence frames.
Mentions that name a place come first, so that in "a circle at the top left and a star" the
place belongs to the circle alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

SHAPES = ("circle", "square", "triangle", "star", "cross")
COLOURS = ("red", "green", "blue", "yellow", "black", "orange")
SIZES = ("small", "large")
PLACES = ("top left", "top right", "bottom left", "bottom right")
ATTRIBUTES = ("shape", "colour", "size", "place")
VALUES = {"shape": SHAPES, "colour": COLOURS, "size": SIZES, "place": PLACES}
LANGUAGES = ("en", "de", "fr", "cs", "zh", "ja")


@dataclasses.dataclass(frozen=True)
class Mention:
    """What a caption says about one object; None is what it leaves out.

    Raises ValueError when every attribute is left out or a value is unknown.
    """

    shape: str | None = None
    colour: str | None = None
    size: str | None = None
    place: str | None = None

    def __post_init__(self):
        named = {a: getattr(self, a) for a in ATTRIBUTES if getattr(self, a) is not None}
        if not named:
            raise ValueError("a mention names nothing; give a shape, colour, size or place")
        for attribute, value in named.items():
            if value not in VALUES[attribute]:
                known = ", ".join(VALUES[attribute])
                raise ValueError(f"unknown {attribute} {value!r}; choose one of: {known}")


def caption(language: str, mentions: Sequence[Mention], frame: int = 0) -> str:
    """Says the mentions, and nothing else, in one sentence.

    Args:
      language: one of LANGUAGES.
      mentions: 1 to 4, all different.
      frame: which sentence frame, in [0, frame_count(language)).
    Raises:
      ValueError: on an unknown language or frame, on no or too many mentions, and on two
        mentions that say the same ("a star and a star" is no sentence to train on).
    """
    frames = frame_count(language)
    if not 0 <= frame < frames:
        raise ValueError(f"{language} has no sentence frame {frame}; choose 0 to {frames - 1}")
    if not 1 <= len(mentions) <= len(PLACES):
        raise ValueError(f"a caption mentions 1 to {len(PLACES)} objects, not {len(mentions)}")
    if len(set(mentions)) < len(mentions):
        raise ValueError("two mentions say the same; name the place of each")
    placed = [m for m in mentions if m.place]
    unplaced = [m for m in mentions if not m.place]
    if language == "zh":
        return _chinese_sentence(placed, unplaced, _FRAMES["zh"][frame])
    if language == "ja":
        return _japanese_sentence(placed, unplaced, _FRAMES["ja"][frame])
    return _european_sentence(language, placed + unplaced, _FRAMES[language][frame])


def frame_count(language: str) -> int:
    """The number of sentence frames of a language; raises ValueError if it has no grammar."""
    if language not in LANGUAGES:
        known = ", ".join(LANGUAGES)
        raise ValueError(f"no caption grammar for language {language!r}; choose from: {known}")
    return len(_FRAMES[language])


def _by_shape(words: str) -> dict[str | None, str]:
    """A row of nouns or of what goes with them: the general noun, then one word a shape."""
    return dict(zip((None, *SHAPES), words.split(), strict=True))


def _by_adjective(words: str) -> dict[str, str]:
    """A row of adjectives: small, large, red, green, blue, yellow, black, orange."""
    return dict(zip(SIZES + COLOURS, words.split(), strict=True))


def _by_place(words: str) -> dict[str, str]:
    """A row of places: top left, top right, bottom left, bottom right."""
    return dict(zip(PLACES, words.split(", "), strict=True))


def _join(phrases: Sequence[str], comma: str, conjunction: str) -> str:
    """`a`, `a and b`, `a, b and c`."""
    *first, last = phrases
    return comma.join(first) + conjunction + last if first else last


def _spaced(*words: str | None) -> str:
    return " ".join(word for word in words if word)


def _english(mention: Mention, case: str) -> str:
    words = _spaced(mention.size, mention.colour, mention.shape or "shape")
    article = "an" if words[0] in "aeiou" else "a"
    return _spaced(article, words, mention.place and f"at the {mention.place}")


# German. After "ein" the adjective itself shows gender and case (mixed declension).
# "orange" takes no ending in written German, "orangefarben" is inflected like the others.

_DE_NOUNS = _by_shape("  Form Kreis Quadrat Dreieck Stern Kreuz")
_DE_GENDERS = _by_shape("f    m     n       n       m     n")
_DE_ADJECTIVES = _by_adjective("klein groß rot grün blau gelb schwarz orangefarben")
_DE_PLACES = _by_place("oben links, oben rechts, unten links, unten rechts")
_DE_ARTICLE_AND_ENDING = {
    ("m", "nominative"): ("ein", "er"),
    ("m", "accusative"): ("einen", "en"),
    ("n", "nominative"): ("ein", "es"),
    ("n", "accusative"): ("ein", "es"),
    ("f", "nominative"): ("eine", "e"),
    ("f", "accusative"): ("eine", "e"),
}


def _german(mention: Mention, case: str) -> str:
    article, ending = _DE_ARTICLE_AND_ENDING[_DE_GENDERS[mention.shape], case]
    adjectives = [_DE_ADJECTIVES[a] + ending for a in (mention.size, mention.colour) if a]
    return _spaced(article, *adjectives, _DE_NOUNS[mention.shape], _DE_PLACES.get(mention.place))


# French. Sizes stand before the noun, colours after it; "orange", the fruit, is invariable.

_FR_NOUNS = _by_shape("  forme cercle carré triangle étoile croix")
_FR_GENDERS = _by_shape("f     m      m     m        f      f")
_FR_PLACES = _by_place("en haut à gauche, en haut à droite, en bas à gauche, en bas à droite")
_FR_ARTICLES = {"m": "un", "f": "une"}
_FR_ADJECTIVES = {
    "m": _by_adjective("petit  grand  rouge vert  bleu  jaune noir  orange"),
    "f": _by_adjective("petite grande rouge verte bleue jaune noire orange"),
}


def _french(mention: Mention, case: str) -> str:
    gender = _FR_GENDERS[mention.shape]
    size = _FR_ADJECTIVES[gender].get(mention.size)
    colour = _FR_ADJECTIVES[gender].get(mention.colour)
    noun = _FR_NOUNS[mention.shape]
    return _spaced(_FR_ARTICLES[gender], size, noun, colour, _FR_PLACES.get(mention.place))


# Czech. The masculine nouns are inanimate, so their accusative is their nominative.

_CS_NOUNS = {
    "nominative": _by_shape("tvar kruh čtverec trojúhelník hvězda kříž"),
    "accusative": _by_shape("tvar kruh čtverec trojúhelník hvězdu kříž"),
}
_CS_GENDERS = _by_shape("    m    m    m       m           f      m")
_CS_ADJECTIVES = _by_adjective("mal velk červen zelen modr žlut čern oranžov")
_CS_PLACES = _by_place("vlevo nahoře, vpravo nahoře, vlevo dole, vpravo dole")
_CS_ENDINGS = {
    ("m", "nominative"): "ý",
    ("m", "accusative"): "ý",
    ("f", "nominative"): "á",
    ("f", "accusative"): "ou",
}


def _czech(mention: Mention, case: str) -> str:
    ending = _CS_ENDINGS[_CS_GENDERS[mention.shape], case]
    adjectives = [_CS_ADJECTIVES[a] + ending for a in (mention.size, mention.colour) if a]
    return _spaced(*adjectives, _CS_NOUNS[case][mention.shape], _CS_PLACES.get(mention.place))


class _Frame(NamedTuple):
    """How a sentence opens before one object, the case it asks for, how it opens before
    several where that differs, and how it ends."""

    opening: str
    case: str = "nominative"
    opening_of_several: str | None = None
    end: str = "."


_NOUN_PHRASES = {"en": _english, "de": _german, "fr": _french, "cs": _czech}
_CONJUNCTIONS = {"en": " and ", "de": " und ", "fr": " et ", "cs": " a "}


def _european_sentence(language: str, mentions: Sequence[Mention], frame: _Frame) -> str:
    phrases = [_NOUN_PHRASES[language](mention, frame.case) for mention in mentions]
    several = len(mentions) > 1 and frame.opening_of_several
    objects = _join(phrases, ", ", _CONJUNCTIONS[language])
    sentence = _spaced(several or frame.opening, objects) + frame.end
    return sentence[0].upper() + sentence[1:]


# Chinese. A place opens its own clause; objects without a place share one clause.

_ZH_NOUNS = _by_shape("        图形 圆形 正方形 三角形 五角星 十字形")
_ZH_MEASURE_WORDS = _by_shape("个   个   个     个     颗     个")
_ZH_ADJECTIVES = _by_adjective("小 大 红色的 绿色的 蓝色的 黄色的 黑色的 橙色的")
_ZH_PLACES = _by_place("左上角, 右上角, 左下角, 右下角")


class _ChineseFrame(NamedTuple):
    """What opens the sentence before a place, that place's verb, what opens it without one."""

    before_place: str
    verb: str
    before_object: str


def _chinese(mention: Mention) -> str:
    size = _ZH_ADJECTIVES.get(mention.size, "")
    colour = _ZH_ADJECTIVES.get(mention.colour, "")
    return f"一{_ZH_MEASURE_WORDS[mention.shape]}{colour}{size}{_ZH_NOUNS[mention.shape]}"


def _chinese_sentence(
    placed: Sequence[Mention], others: Sequence[Mention], frame: _ChineseFrame
) -> str:
    clauses = [_ZH_PLACES[m.place] + frame.verb + _chinese(m) for m in placed]
    if others:
        opening = "另外还有" if placed else frame.before_object
        clauses.append(opening + _join([_chinese(m) for m in others], "、", "和"))
    return (frame.before_place if placed else "") + "，".join(clauses) + "。"


# Japanese. A place opens its object's phrase, and one verb closes the sentence.

_JA_NOUNS = _by_shape("図形 丸 四角 三角 星 十字")
_JA_ADJECTIVES = _by_adjective("小さな 大きな 赤い 緑の 青い 黄色い 黒い オレンジ色の")
_JA_PLACES = _by_place("左上, 右上, 左下, 右下")


class _JapaneseFrame(NamedTuple):
    """Openings before a place and without one; the end; the link to "besides" and its end."""

    before_place: str
    before_object: str
    end: str
    link: str
    besides_end: str


def _japanese(mention: Mention) -> str:
    adjectives = [_JA_ADJECTIVES[a] for a in (mention.size, mention.colour) if a]
    return "".join([*adjectives, _JA_NOUNS[mention.shape]])


def _japanese_sentence(
    placed: Sequence[Mention], others: Sequence[Mention], frame: _JapaneseFrame
) -> str:
    first = "、".join(f"{_JA_PLACES[m.place]}に{_japanese(m)}" for m in placed)
    if not others:
        return frame.before_place + first + frame.end
    # In "赤い丸と星" the star could be red too; in "星と赤い丸" it is not.
    plain_first = sorted(others, key=lambda m: bool(m.size or m.colour))
    rest = _join([_japanese(m) for m in plain_first], "、", "と" if len(others) == 2 else "、")
    if not placed:
        return frame.before_object + rest + frame.end
    return frame.before_place + first + frame.link + rest + frame.besides_end


_FRAMES = {
    "en": tuple(map(_Frame, ("there is", "the picture shows", "you can see", ""))),
    "de": (
        _Frame("es gibt", "accusative"),
        _Frame("das Bild zeigt", "accusative"),
        _Frame("auf dem Bild ist", "nominative", "auf dem Bild sind", " zu sehen."),
        _Frame("", "nominative"),
    ),
    "fr": tuple(map(_Frame, ("il y a", "l'image montre", "on voit", ""))),
    # A Czech verb before several subjects agrees with the nearest: "je kruh a hvězda".
    "cs": (
        _Frame("na obrázku je", "nominative"),
        _Frame("na obrázku vidíme", "accusative"),
        _Frame("obrázek ukazuje", "accusative"),
        _Frame("", "nominative"),
    ),
    "zh": (
        _ChineseFrame("", "有", "图中有"),
        _ChineseFrame("图片的", "有", "图片里有"),
        _ChineseFrame("可以看到", "有", "可以看到"),
        _ChineseFrame("画面", "是", "画面中有"),
    ),
    "ja": (
        _JapaneseFrame("", "", "があります。", "があり、ほかに", "もあります。"),
        _JapaneseFrame("画像の", "画像には", "があります。", "があり、ほかに", "もあります。"),
        _JapaneseFrame("", "", "が描かれています。", "が描かれていて、ほかに", "もあります。"),
        _JapaneseFrame("", "", "。", "、ほかに", "。"),
    ),
}
