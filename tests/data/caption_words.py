"""Reads captions back into facts with word lists written by hand, apart from the grammar."""

import re

TL, TR, BL, BR = "top left", "top right", "bottom left", "bottom right"

# How each value is said, and where one object's words end and the next one's begin.
WORDS = {
    "en": {
        "circle": "circle", "square": "square", "triangle": "triangle", "star": "star",
        "cross": "cross", "red": "red", "green": "green", "blue": "blue", "yellow": "yellow",
        "black": "black", "orange": "orange", "small": "small", "large": "large",
        TL: "at the top left", TR: "at the top right", BL: "at the bottom left",
        BR: "at the bottom right",
    },
    "de": {
        "circle": "Kreis", "square": "Quadrat", "triangle": "Dreieck", "star": "Stern",
        "cross": "Kreuz", "red": "rote[nrs]?", "green": "grüne[nrs]?", "blue": "blaue[nrs]?",
        "yellow": "gelbe[nrs]?", "black": "schwarze[nrs]?", "orange": "orangefarbene[nrs]?",
        "small": "kleine[nrs]?", "large": "große[nrs]?", TL: "oben links", TR: "oben rechts",
        BL: "unten links", BR: "unten rechts",
    },
    "fr": {
        "circle": "cercle", "square": "carré", "triangle": "triangle", "star": "étoile",
        "cross": "croix", "red": "rouge", "green": "verte?", "blue": "bleue?", "yellow": "jaune",
        "black": "noire?", "orange": "orange", "small": "petite?", "large": "grande?",
        TL: "en haut à gauche", TR: "en haut à droite", BL: "en bas à gauche",
        BR: "en bas à droite",
    },
    "cs": {
        "circle": "kruh", "square": "čtverec", "triangle": "trojúhelník", "star": "hvězd[au]",
        "cross": "kříž", "red": "červen(?:ý|á|ou)", "green": "zelen(?:ý|á|ou)",
        "blue": "modr(?:ý|á|ou)", "yellow": "žlut(?:ý|á|ou)", "black": "čern(?:ý|á|ou)",
        "orange": "oranžov(?:ý|á|ou)", "small": "mal(?:ý|á|ou)", "large": "velk(?:ý|á|ou)",
        TL: "vlevo nahoře", TR: "vpravo nahoře", BL: "vlevo dole", BR: "vpravo dole",
    },
    "zh": {
        "circle": "圆", "square": "方", "triangle": "三", "star": "星", "cross": "十",
        "red": "红", "green": "绿", "blue": "蓝", "yellow": "黄", "black": "黑", "orange": "橙",
        "small": "小", "large": "大", TL: "左上", TR: "右上", BL: "左下", BR: "右下",
    },
    "ja": {
        "circle": "丸", "square": "四", "triangle": "三", "star": "星", "cross": "十",
        "red": "赤", "green": "緑", "blue": "青", "yellow": "黄", "black": "黒",
        "orange": "オレンジ", "small": "小", "large": "大", TL: "左上", TR: "右上", BL: "左下",
        BR: "右下",
    },
}  # fmt: skip
SEPARATORS = {
    "en": ", | and ", "de": ", | und ", "fr": ", | et ", "cs": ", | a ",
    "zh": "，|、|和", "ja": "、|と",
}  # fmt: skip


def said(language: str, text: str) -> list[frozenset[str]]:
    """The values that a text states about each object, read off with the lists above."""
    edge = "" if language in ("zh", "ja") else r"\b"
    found = []
    for part in re.split(SEPARATORS[language], text):
        patterns = WORDS[language].items()
        hits = [v for v, p in patterns for _ in re.findall(edge + p + edge, part, re.IGNORECASE)]
        assert len(hits) == len(set(hits)), f"said twice in {part!r}"
        found.append(frozenset(hits))
    return found
