"""Does a text speak of left and right? Then its image must not be mirrored."""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Iterable, Mapping

# Language → regular expression of whole words. Too many are better than too few: a needless
# match only costs one flip. Words that merely contain these letters (bright, leftover) do not
# match.
_WORDS = {
    "bg": r"ляв\w*|леви\w*|вляво|наляво|отляво|десн\w*|дясн\w*|вдясно|надясно|отдясно",
    "cs": r"lev(?:ý|á|é|í|ou)\w*|(?:v|na|z|do)lev[oa]|levic\w*|levo\w+|"
    r"prav(?:ý|á|é|í|ou)\w*|(?:v|na|z|do)prav[oa]|pravic\w*|pravo\w+",
    "da": r"venstre\w*|højre\w*",
    "de": r"link[se]\w*|rechts\w*|rechte[mnrs]?|rechterhand",
    "el": r"αριστερ\w*|δεξι\w*|δεξί\w*",
    "en": r"left|right|(?:left|right)(?:most|wards?|hand(?:ed|er)?|side)|lefty|righty|"
    r"(?:counter|anti)?clockwise",
    "es": r"izquierd\w*|izq|derech\w*|zurd\w*|diestr\w*",
    "et": r"vasak\w*|parem\w*",
    "fa": r"چپ\w*|راست\w*",
    "fi": r"vase[nm]\w*|vasuri\w*|oike\w*",
    "fr": r"gauch\w*|droit\w*",
    "hu": r"(?:bal|jobb)(?:ra|ról|on|ján|ja|oldal\w*|kez\w*|láb\w*|os)?",
    "id": r"(?:di|ke|ter|pe)?(?:kiri|kanan)\w*",
    "it": r"sinistr\w*|destr\w*|mancin\w*",
    "nl": r"links\w*|linker\w*|rechts\w*|rechter\w*",
    "pl": r"lew(?:y|a|e|ą|ej|ego|emu|ym|ych|ymi|o)|praw(?:y|a|e|ą|ej|ego|emu|ym|ych|ymi|o)|"
    r"lew[os]\w+|praw[os]\w+",
    "pt": r"esquerd\w*|direit\w*|canhot\w*|destr[oa]s?",
    "ro": r"stâng\w*|stîng\w*|stang\w*|dreapt\w*|drept\w*",
    "ru": r"лев(?:ый|ая|ое|ые|ого|ой|ому|ую|ым|ом|ых|ыми|ее)|слева|налево|влево|левш\w*|"
    r"лево\w+|прав(?:ый|ая|ое|ые|ого|ой|ому|ую|ым|ом|ых|ыми|ее)|справа|направо|вправо|"
    r"правш\w*|право\w+",
    "sv": r"vänst\w*|höger\w*|högra",
    "sw": r"kushoto\w*|shoto|kulia\w*",
    "tr": r"sol(?:u|a|da|dan|un|unda|undan|una|daki|undaki|umda|ak)?|"
    r"sağ(?:ı|a|da|dan|ın|ında|ından|ına|daki|ındaki|ımda|lak)?",
    "uk": r"лів(?:ий|а|е|і|ого|ої|ій|ому|у|им|ою|их|ими)|зліва|наліво|вліво|ліво\w+|лівш\w*|"
    r"прав(?:ий|а|е|і|ого|ої|ій|ому|у|им|ою|их|ими)|справа|направо|вправо|право\w+|правш\w*",
    "vi": r"trái|phải",
}
# The same where words are not set apart by spaces, take prefixes, or are spelt with combining
# signs, so that a match may stand anywhere.
_ANYWHERE = {
    "ar": r"يسار|يمين|أيسر|ايسر|أيمن|ايمن|يسرى|يسري|يمنى|اليمني",
    "bn": r"বাম|বাঁ|ডান",
    "he": r"שמאל|ימין|ימני",
    "hi": r"बाए|बाये|बायी|बाया|बाईं|बाँय|बांय|दाए|दाये|दायी|दाया|दाईं|दाँय|दांय|दाहिन",
    "ja": r"左|右|ひだり|みぎ|ヒダリ|ミギ",
    "ko": r"왼|오른|좌측|우측|좌회전|우회전|좌우",
    "ta": r"இடது|வலது|இடப்ப|வலப்ப|இடக்|வலக்",
    "th": r"ซ้าย|ขวา",
    "zh": r"左|右",
}


def speaks_of_sides(texts: Mapping[str, Iterable[str]]) -> bool:
    """Returns whether mirroring the image could make any of its texts false.

    Args:
      texts: language code → texts, as in `Record.texts`.

    True also for a language without a word list: not mirroring is always safe.
    """
    return any(
        (pattern := _pattern(language)) is None or pattern.search(_normal(text))
        for language, in_language in texts.items()
        for text in in_language
    )


@functools.cache
def _pattern(language: str) -> re.Pattern[str] | None:
    """Returns what to search for in a language such as `pt` or `pt-BR`; None if unknown."""
    language = language.lower().replace("_", "-").split("-")[0]
    if language in _WORDS:
        return re.compile(rf"\b(?:{_normal(_WORDS[language])})\b")
    return re.compile(_normal(_ANYWHERE[language])) if language in _ANYWHERE else None


def _normal(text: str) -> str:
    return unicodedata.normalize("NFC", text).lower()
