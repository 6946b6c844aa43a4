"""French. Sizes stand before the noun, colours after it."""

from rc3_jax.scenes.languages.base import (
    Language,
    by_adjective,
    by_place,
    by_shape,
    listing,
    spaced,
)
from rc3_jax.scenes.scene import Mention

_NOUNS = by_shape("  forme  cercle  carré  triangle  étoile  croix")
_PLURALS = by_shape("formes cercles carrés triangles étoiles croix")
_GENDERS = by_shape("f      m       m      m         f       f")
_ADJECTIVES = {
    "m": by_adjective("petit  grand  rouge vert  bleu  jaune noir  orange"),
    "f": by_adjective("petite grande rouge verte bleue jaune noire orange"),
}
_PLACES = by_place("en haut à gauche, en haut à droite, en bas à gauche, en bas à droite")
_ARTICLES = {"m": ("un", "le"), "f": ("une", "la")}


def _forms(mention: Mention) -> dict[str, str]:
    gender = _GENDERS[mention.shape]
    size, colour = map(_ADJECTIVES[gender].get, (mention.size, mention.colour))
    words = spaced(size, _NOUNS[mention.shape], colour, _PLACES.get(mention.place))
    indefinite, definite = _ARTICLES[gender]
    colours = colour if colour in (None, "orange") else f"{colour}s"  # a fruit: invariable
    return {
        "indefinite": f"{indefinite} {words}",
        "definite": _elided(definite, words),
        "of_singular": _elided("de", words),
        "of_plural": _elided("de", spaced(_PLURALS[mention.shape], colours)),
    }


def _elided(particle: str, words: str) -> str:
    """Puts le, la or de before a word; "étoile" alone begins with a vowel."""
    return f"{particle[:-1]}'{words}" if words.startswith("é") else f"{particle} {words}"


_FRAMES = (
    "Il y a {indefinite}.",
    "L'image montre {indefinite}.",
    "On voit {indefinite}.",
    "{indefinite}.",
)
_TEMPLATES = {  # a question mark has a plain space before it, at which tokenizers split
    "colour": "De quelle couleur est {definite} ?",
    "shape": "Quelle est {definite} ?",
    "place": "Où est {definite} ?",
    "count": "Combien {of_plural} y a-t-il ?",
    "exists": "Y a-t-il {indefinite} ?",
    "both": "Les deux images montrent {indefinite}.",
    "neither": "Aucune des deux images ne montre {of_singular}.",
    "only left": "Seule l'image de gauche montre {indefinite}.",
    "only right": "Seule l'image de droite montre {indefinite}.",
}
LANGUAGE = Language(_forms, listing(_forms, " et ", _FRAMES), _TEMPLATES)
