"""Noun phrases that questions and statements need and captions do not: definite ones, those
after a quantity, and those without an article. They share the words of `data.grammar`."""

from __future__ import annotations

from rc3_jax.data import grammar
from rc3_jax.data.grammar import Mention


def indefinite(language: str, mention: Mention, case: str = "nominative") -> str:
    """`a red circle`, in Chinese and Japanese without an article or measure word.

    Args:
      mention: without a place.
      case: nominative or accusative; only German and Czech tell them apart.
    """
    if language == "zh":
        return _chinese(mention)
    if language == "ja":
        return _japanese(mention)
    return grammar._NOUN_PHRASES[language](mention, case)


def accusative(language: str, mention: Mention) -> str:
    """`a red circle` as what a verb shows."""
    return indefinite(language, mention, "accusative")


def definite(language: str, mention: Mention) -> str:
    """`the small red star at the top left`, as a subject."""
    return _DEFINITE[language](mention)


def quantity(language: str, mention: Mention) -> str:
    """What follows "how many" and "more": `red stars`.

    French has its "de" in it, Chinese its measure word, and Czech is in the genitive.

    Args:
      mention: of a shape or colour or both.
    """
    return _QUANTITY[language](mention)


def french_negated(language: str, mention: Mention) -> str:
    """After a negation, where French has "de" for the article: `de cercle rouge`."""
    _, _, words = grammar._french(mention, "nominative").partition(" ")
    return _elided("de", words)


def chinese_of(language: str, mention: Mention) -> str:
    """After a 的, which the colour then goes without: `红色五角星`."""
    colour = grammar._ZH_ADJECTIVES.get(mention.colour, "").removesuffix("的")
    size = grammar._ZH_ADJECTIVES.get(mention.size, "")
    return colour + size + grammar._ZH_NOUNS[mention.shape]


def _english_definite(mention: Mention) -> str:
    _, _, words = grammar._english(mention, "nominative").partition(" ")
    return f"the {words}"


_EN_PLURALS = grammar._by_shape("shapes circles squares triangles stars crosses")


def _english_quantity(mention: Mention) -> str:
    return grammar._spaced(mention.colour, _EN_PLURALS[mention.shape])


# German. After "der", "die", "das" an adjective ends in -e, whatever the gender; after no
# article it does so in the plural.

_DE_ARTICLES = {"m": "der", "f": "die", "n": "das"}
_DE_PLURALS = grammar._by_shape("Formen Kreise Quadrate Dreiecke Sterne Kreuze")


def _german_definite(mention: Mention) -> str:
    article = _DE_ARTICLES[grammar._DE_GENDERS[mention.shape]]
    adjectives = [grammar._DE_ADJECTIVES[a] + "e" for a in (mention.size, mention.colour) if a]
    place = grammar._DE_PLACES.get(mention.place)
    return grammar._spaced(article, *adjectives, grammar._DE_NOUNS[mention.shape], place)


def _german_quantity(mention: Mention) -> str:
    colour = mention.colour and grammar._DE_ADJECTIVES[mention.colour] + "e"
    return grammar._spaced(colour, _DE_PLURALS[mention.shape])


_FR_ARTICLES = {"m": "le", "f": "la"}
_FR_PLURALS = grammar._by_shape("formes cercles carrés triangles étoiles croix")
_FR_INVARIABLE = "orange"


def _elided(particle: str, words: str) -> str:
    """Puts le, la or de before a word; of ours, "étoile" alone begins with a vowel."""
    return f"{particle[:-1]}'{words}" if words.startswith("é") else f"{particle} {words}"


def _french_definite(mention: Mention) -> str:
    _, _, words = grammar._french(mention, "nominative").partition(" ")
    return _elided(_FR_ARTICLES[grammar._FR_GENDERS[mention.shape]], words)


def _french_quantity(mention: Mention) -> str:
    colour = grammar._FR_ADJECTIVES[grammar._FR_GENDERS[mention.shape]].get(mention.colour)
    if colour and colour != _FR_INVARIABLE:
        colour += "s"
    return _elided("de", grammar._spaced(_FR_PLURALS[mention.shape], colour))


_CS_GENITIVE_PLURALS = grammar._by_shape("tvarů kruhů čtverců trojúhelníků hvězd křížů")


def _czech_definite(mention: Mention) -> str:
    return grammar._czech(mention, "nominative")  # Czech has no articles


def _czech_quantity(mention: Mention) -> str:
    colour = mention.colour and grammar._CS_ADJECTIVES[mention.colour] + "ých"
    return grammar._spaced(colour, _CS_GENITIVE_PLURALS[mention.shape])


def _chinese(mention: Mention) -> str:
    adjectives = [grammar._ZH_ADJECTIVES[a] for a in (mention.colour, mention.size) if a]
    return "".join([*adjectives, grammar._ZH_NOUNS[mention.shape]])


def _chinese_definite(mention: Mention) -> str:
    if mention.place:
        return f"{grammar._ZH_PLACES[mention.place]}的{chinese_of('zh', mention)}"
    return _chinese(mention)


def _chinese_quantity(mention: Mention) -> str:
    return grammar._ZH_MEASURE_WORDS[mention.shape] + _chinese(mention)


def _japanese(mention: Mention) -> str:
    place = f"{grammar._JA_PLACES[mention.place]}の" if mention.place else ""
    return place + grammar._japanese(mention)


_DEFINITE = {
    "en": _english_definite,
    "de": _german_definite,
    "fr": _french_definite,
    "cs": _czech_definite,
    "zh": _chinese_definite,
    "ja": _japanese,
}
_QUANTITY = {
    "en": _english_quantity,
    "de": _german_quantity,
    "fr": _french_quantity,
    "cs": _czech_quantity,
    "zh": _chinese_quantity,
    "ja": _japanese,
}
