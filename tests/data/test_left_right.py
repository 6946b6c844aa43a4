"""Texts that speak of left and right, in every language with a list of such words."""

from __future__ import annotations

import unicodedata

import pytest

from rc3_jax.data.jsonl import read_objects
from rc3_jax.data.left_right import speaks_of_sides

SIDED = {
    "en": ["A man on the left.", "Turn RIGHT!", "her right-hand side", "the leftmost dog"],
    "de": ["Ein Mann links im Bild.", "mit der rechten Hand", "Der linke Schuh", "rechts"],
    "fr": ["à gauche de l'arbre", "la main droite", "Un bras droit levé"],
    "cs": ["pes vlevo", "levou rukou", "na pravé straně", "Zprava přichází muž"],
    "zh": ["男人在左边", "右手拿着球"],
    "ja": ["左の犬", "右側に立つ", "ひだりて"],
    "es": ["a la izquierda", "mano derecha", "el zurdo"],
    "pt": ["à esquerda", "mão direita"],
    "it": ["a sinistra", "la mano destra"],
    "nl": ["links van de boom", "zijn rechterhand", "de linker schoen"],
    "pl": ["po lewej stronie", "prawa ręka", "w prawo"],
    "ru": ["слева от дерева", "правой рукой", "левая нога"],
    "uk": ["ліворуч від дерева", "правою рукою", "зліва"],
    "bg": ["вляво от дървото", "дясната ръка", "лявата"],
    "el": ["στα αριστερά", "το δεξί χέρι", "δεξιά"],
    "tr": ["sol elinde", "solda bir adam", "sağdaki köpek"],
    "ar": ["على اليسار", "يده اليمنى", "إلى اليمين"],
    "fa": ["سمت راست", "دست چپ"],
    "he": ["בצד שמאל", "ביד ימין"],
    "hi": ["बाईं ओर", "दाएँ हाथ में", "दाहिनी तरफ"],
    "bn": ["বাম দিকে", "ডান হাতে"],
    "ta": ["இடது பக்கம்", "வலது கையில்"],
    "sw": ["upande wa kushoto", "mkono wa kulia"],
    "id": ["di sebelah kiri", "tangan kanan"],
    "ko": ["왼쪽에 있는 남자", "오른손"],
    "vi": ["bên trái", "tay phải"],
    "th": ["ด้านซ้าย", "มือขวา"],
    "et": ["vasakul pool", "parem käsi"],
    "fi": ["vasemmalla", "oikea käsi", "vasen jalka"],
    "sv": ["till vänster", "höger hand", "högra foten"],
    "da": ["til venstre", "højre hånd"],
    "hu": ["a bal oldalon", "jobbra fordul"],
    "ro": ["în stânga", "mâna dreaptă"],
}
NOT_SIDED = {
    "en": ["A bright day.", "Leftovers on a frightened cat's plate.", "An upright copyright sign"],
    "de": ["Eine rechteckige Linse.", "Zwei Männer verlinken etwas.", "ein gerechter Link"],
    "fr": ["Un adroit jongleur.", "Deux chiens courent."],
    "cs": ["Lev leží v trávě.", "Levná zpráva o opravě.", "Muž pravděpodobně spí."],
    "zh": ["一个男人在跑步"],
    "es": ["Un hombre destruye una casa."],
    "pt": ["O furacão destruiu a casa."],
    "nl": ["Een rechthoekige tafel."],
    "pl": ["Lew i prawie pusta ulica."],
    "ru": ["Лев лежит на траве.", "правило"],
    "id": ["Seorang pria makan makanan."],
    "tr": ["Sola olmayan: soluk bir köpek"[6:]],
    "sv": ["En hög byggnad, högre än trädet."],
    "fi": ["Koira juoksee rannalla."],
    "hu": ["Egy balerina táncol."],
}


@pytest.mark.parametrize("language", SIDED)
def test_left_and_right_are_noticed(language):
    for text in SIDED[language]:
        for form in ("NFC", "NFD"):
            assert speaks_of_sides({language: [unicodedata.normalize(form, text)]}), text


@pytest.mark.parametrize("language", NOT_SIDED)
def test_words_that_only_look_alike_are_not(language):
    for text in NOT_SIDED[language]:
        assert not speaks_of_sides({language: [text]}), text


def test_one_text_in_one_language_suffices():
    assert not speaks_of_sides({"en": ("A dog.", "A cat."), "zh": ("一只狗",)})
    assert speaks_of_sides({"en": ("A dog.", "A cat."), "zh": ("一只狗", "左边的狗")})
    assert not speaks_of_sides({})


def test_languages_without_a_list_are_never_mirrored_and_regions_of_one_share_it():
    assert speaks_of_sides({"is": ["Hundur."]})
    assert not speaks_of_sides({"pt-BR": ["Um cão."], "zh-Hant": ["一隻狗"]})
    assert speaks_of_sides({"pt-BR": ["à esquerda"]})


def test_captions_of_real_photographs(shared_data):
    """People translated these: sides in the English are nearly always in the others, too."""
    file = shared_data / "flickr8k" / "captions.jsonl.gz"
    rows = [row["translations"] for _, row in read_objects(file) if row["split"] == "train"]
    sided = {
        language: {i for i, row in enumerate(rows) if speaks_of_sides(only(row, language))}
        for language in ("en", "de", "fr", "cs")
    }
    assert 10 < len(sided["en"]) < 0.01 * len(rows)
    for language in ("de", "fr", "cs"):
        assert len(sided["en"] - sided[language]) <= 4  # "left behind", "right behind"
        assert len(sided[language] - sided["en"]) <= 4


def only(row, language):
    return {language: [row[language]]}
