"""English. Its words are those that scenes have for their attributes."""

from rc3_jax.scenes.languages.base import Language, by_shape, listing, spaced
from rc3_jax.scenes.scene import Mention

_PLURALS = by_shape("shapes circles squares triangles stars crosses")


def _forms(mention: Mention) -> dict[str, str]:
    place = mention.place and f"at the {mention.place}"
    words = spaced(mention.size, mention.colour, mention.shape or "shape", place)
    return {
        "indefinite": f"{'an' if words[0] in 'aeiou' else 'a'} {words}",
        "definite": f"the {words}",
        "plural": spaced(mention.colour, _PLURALS[mention.shape]),
    }


_FRAMES = (
    "There is {indefinite}.",
    "The picture shows {indefinite}.",
    "You can see {indefinite}.",
    "{indefinite}.",
)
_TEMPLATES = {
    "colour": "What colour is {definite}?",
    "shape": "What is {definite}?",
    "place": "Where is {definite}?",
    "count": "How many {plural} are there?",
    "exists": "Is there {indefinite}?",
    "both": "Both pictures show {indefinite}.",
    "neither": "Neither picture shows {indefinite}.",
    "only left": "Only the left picture shows {indefinite}.",
    "only right": "Only the right picture shows {indefinite}.",
}
LANGUAGE = Language(_forms, listing(_forms, " and ", _FRAMES), _TEMPLATES)
