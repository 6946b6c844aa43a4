"""Chinese. A place opens a clause of its own; objects without a place share a clause."""

from rc3_jax.scenes.languages.base import Language, by_adjective, by_place, by_shape, join
from rc3_jax.scenes.scene import Mention

_NOUNS = by_shape("        图形 圆形 正方形 三角形 五角星 十字形")
_MEASURE_WORDS = by_shape("个   个   个     个     颗     个")
_ADJECTIVES = by_adjective("小 大 红色的 绿色的 蓝色的 黄色的 黑色的 橙色的")
_PLACES = by_place("左上角, 右上角, 左下角, 右下角")


def _forms(mention: Mention) -> dict[str, str]:
    colour = _ADJECTIVES.get(mention.colour, "")
    noun = _ADJECTIVES.get(mention.size, "") + _NOUNS[mention.shape]
    place = _PLACES.get(mention.place)
    after_place = colour.removesuffix("的") + noun  # one 的 is enough
    return {
        "bare": colour + noun,
        "measured": _MEASURE_WORDS[mention.shape] + colour + noun,
        "definite": f"{place}的{after_place}" if place else colour + noun,
    }


def _sentence(placed: list[Mention], others: list[Mention], frame: int) -> str:
    before_place, verb, before_object = _FRAMES[frame]
    clauses = [_PLACES[m.place] + verb + "一" + _forms(m)["measured"] for m in placed]
    if others:
        objects = ["一" + _forms(mention)["measured"] for mention in others]
        clauses.append(("另外还有" if placed else before_object) + join(objects, "、", "和"))
    return (before_place if placed else "") + "，".join(clauses) + "。"


_FRAMES = (  # what stands before a place, a place's verb, what stands before an object without one
    ("", "有", "图中有"),
    ("图片的", "有", "图片里有"),
    ("可以看到", "有", "可以看到"),
    ("画面", "是", "画面中有"),
)
_TEMPLATES = {
    "colour": "{definite}是什么颜色的？",
    "shape": "{definite}是什么？",
    "place": "{definite}在哪里？",
    "count": "图中有几{measured}？",
    "exists": "图中有{bare}吗？",
    "both": "两张图片中都有{bare}。",
    "neither": "两张图片中都没有{bare}。",
    "only left": "只有左边的图片中有{bare}。",
    "only right": "只有右边的图片中有{bare}。",
}
LANGUAGE = Language(_forms, _sentence, _TEMPLATES)
