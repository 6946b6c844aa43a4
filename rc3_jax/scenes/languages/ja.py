"""Japanese. A place opens its object's phrase, and one verb closes the sentence."""

from rc3_jax.scenes.languages.base import Language, by_adjective, by_place, by_shape, join
from rc3_jax.scenes.scene import Mention

_NOUNS = by_shape("図形 丸 四角 三角 星 十字")
_ADJECTIVES = by_adjective("小さな 大きな 赤い 緑の 青い 黄色い 黒い オレンジ色の")
_PLACES = by_place("左上, 右上, 左下, 右下")


def _forms(mention: Mention) -> dict[str, str]:
    place = f"{_PLACES[mention.place]}の" if mention.place else ""
    adjectives = [_ADJECTIVES[word] for word in (mention.size, mention.colour) if word]
    bare = "".join([*adjectives, _NOUNS[mention.shape]])
    return {"bare": bare, "placed": place + bare}


def _sentence(placed: list[Mention], others: list[Mention], frame: int) -> str:
    before_place, before_object, end, link, end_of_others = _FRAMES[frame]
    first = "、".join(f"{_PLACES[mention.place]}に{_forms(mention)['bare']}" for mention in placed)
    if not others:
        return before_place + first + end
    # In "赤い丸と星" the star could be red too; in "星と赤い丸" it is not.
    plain_first = sorted(others, key=lambda mention: bool(mention.size or mention.colour))
    objects = [_forms(mention)["bare"] for mention in plain_first]
    rest = join(objects, "、", "と" if len(objects) == 2 else "、")
    if not placed:
        return before_object + rest + end
    return before_place + first + link + rest + end_of_others


# What stands before a place and before an object without one, and the end; between objects with a
# place and those without one, and the end of both together.
_FRAMES = (
    ("", "", "があります。", "があり、ほかに", "もあります。"),
    ("画像の", "画像には", "があります。", "があり、ほかに", "もあります。"),
    ("", "", "が描かれています。", "が描かれていて、ほかに", "もあります。"),
    ("", "", "。", "、ほかに", "。"),
)
_TEMPLATES = {
    "colour": "{placed}は何色ですか？",
    "shape": "{placed}は何ですか？",
    "place": "{placed}はどこにありますか？",
    "count": "{bare}はいくつありますか？",
    "exists": "{bare}はありますか？",
    "both": "どちらの画像にも{bare}があります。",
    "neither": "どちらの画像にも{bare}はありません。",
    "only left": "左の画像だけに{bare}があります。",
    "only right": "右の画像だけに{bare}があります。",
}
LANGUAGE = Language(_forms, _sentence, _TEMPLATES)
