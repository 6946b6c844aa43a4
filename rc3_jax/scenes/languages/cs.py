"""Czech. It has no articles; nouns and adjectives have cases."""

from rc3_jax.scenes.languages.base import (
    Language,
    by_adjective,
    by_place,
    by_shape,
    listing,
    spaced,
)
from rc3_jax.scenes.scene import Mention

# The masculine nouns are inanimate, so their accusative is their nominative.
_NOUNS = {
    "nominative": by_shape("     tvar  kruh  čtverec  trojúhelník  hvězda kříž"),
    "accusative": by_shape("     tvar  kruh  čtverec  trojúhelník  hvězdu kříž"),
    "genitive_plural": by_shape("tvarů kruhů čtverců  trojúhelníků hvězd  křížů"),
}
_GENDERS = by_shape("            m     m     m        m            f      m")
_ADJECTIVES = by_adjective("mal velk červen zelen modr žlut čern oranžov")
_ENDINGS = {
    "m": {"nominative": "ý", "accusative": "ý", "genitive_plural": "ých"},
    "f": {"nominative": "á", "accusative": "ou", "genitive_plural": "ých"},
}
_PLACES = by_place("vlevo nahoře, vpravo nahoře, vlevo dole, vpravo dole")


def _forms(mention: Mention) -> dict[str, str]:
    stems = [_ADJECTIVES[word] for word in (mention.size, mention.colour) if word]
    phrases = {}
    for case, ending in _ENDINGS[_GENDERS[mention.shape]].items():
        adjectives = [stem + ending for stem in stems]
        place = _PLACES.get(mention.place)
        phrases[case] = spaced(*adjectives, _NOUNS[case][mention.shape], place)
    return phrases


_FRAMES = (  # a verb before several subjects agrees with the nearest: "je kruh a hvězda"
    "Na obrázku je {nominative}.",
    "Na obrázku vidíme {accusative}.",
    "Obrázek ukazuje {accusative}.",
    "{nominative}.",
)
_TEMPLATES = {
    "colour": "Jakou barvu má {nominative}?",
    "shape": "Co je to za {nominative}?",
    "place": "Kde je {nominative}?",
    "count": "Kolik {genitive_plural} je na obrázku?",
    "exists": "Je na obrázku {nominative}?",
    "both": "Oba obrázky ukazují {accusative}.",
    "neither": "Žádný z obou obrázků neukazuje {accusative}.",
    "only left": "Jen levý obrázek ukazuje {accusative}.",
    "only right": "Jen pravý obrázek ukazuje {accusative}.",
}
LANGUAGE = Language(_forms, listing(_forms, " a ", _FRAMES), _TEMPLATES)
