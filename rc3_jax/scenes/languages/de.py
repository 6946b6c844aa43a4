"""German. Articles and adjectives agree in gender and case."""

from rc3_jax.scenes.languages.base import (
    Language,
    by_adjective,
    by_place,
    by_shape,
    listing,
    spaced,
)
from rc3_jax.scenes.scene import Mention

_NOUNS = by_shape("  Form   Kreis  Quadrat  Dreieck  Stern  Kreuz")
_PLURALS = by_shape("Formen Kreise Quadrate Dreiecke Sterne Kreuze")
_GENDERS = by_shape("f      m      n        n        m      n")
# "orange" takes no ending in written German, "orangefarben" is inflected like the others.
_ADJECTIVES = by_adjective("klein groß rot grün blau gelb schwarz orangefarben")
_PLACES = by_place("oben links, oben rechts, unten links, unten rechts")
# By gender, the article of each form and its adjectives' ending.
_INFLECTION = {
    "m": {"nominative": ("ein", "er"), "accusative": ("einen", "en"), "definite": ("der", "e")},
    "f": {"nominative": ("eine", "e"), "accusative": ("eine", "e"), "definite": ("die", "e")},
    "n": {"nominative": ("ein", "es"), "accusative": ("ein", "es"), "definite": ("das", "e")},
}


def _forms(mention: Mention) -> dict[str, str]:
    noun = spaced(_NOUNS[mention.shape], _PLACES.get(mention.place))
    stems = [_ADJECTIVES[word] for word in (mention.size, mention.colour) if word]
    phrases = {
        form: spaced(article, *(stem + ending for stem in stems), noun)
        for form, (article, ending) in _INFLECTION[_GENDERS[mention.shape]].items()
    }
    colour = mention.colour and _ADJECTIVES[mention.colour] + "e"
    return phrases | {"plural": spaced(colour, _PLURALS[mention.shape])}


_FRAMES = (
    "Es gibt {accusative}.",
    "Das Bild zeigt {accusative}.",
    "Auf dem Bild ist {nominative} zu sehen.",
    "{nominative}.",
)
_SEVERAL = {2: "Auf dem Bild sind {nominative} zu sehen."}
_TEMPLATES = {
    "colour": "Welche Farbe hat {definite}?",
    "shape": "Was ist {definite}?",
    "place": "Wo ist {definite}?",
    "count": "Wie viele {plural} gibt es?",
    "exists": "Gibt es {accusative}?",
    "both": "Beide Bilder zeigen {accusative}.",
    "neither": "Keines der beiden Bilder zeigt {accusative}.",
    "only left": "Nur das linke Bild zeigt {accusative}.",
    "only right": "Nur das rechte Bild zeigt {accusative}.",
}
LANGUAGE = Language(_forms, listing(_forms, " und ", _FRAMES, _SEVERAL), _TEMPLATES)
