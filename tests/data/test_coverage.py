"""What a vocabulary and a length lose of the texts of each language, and languages that are named."""

from __future__ import annotations

import functools
import re

import pytest

from rc3_jax.data.coverage import check_languages, coverage_lines, text_coverage
from rc3_jax.data.record import DataError
from rc3_jax.data.text import clean_caption
from rc3_jax.data.tokenizer import from_json, train_tokenizer

SENTENCE = "red dog runs over green grass while two children play with one ball near old house"
WORDS = SENTENCE.split()
TEXTS = {
    "en": [" ".join(WORDS[: n + 1]) for n in range(len(WORDS))],
    "ru": ["красная собака бежит", "два ребёнка"],
    "xx": [],
}


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS["en"] * 20, 300, 12)


def test_texts_that_are_cut_and_pieces_that_are_unknown_are_counted(tokenizer):
    coverage = text_coverage(tokenizer, TEXTS)
    whole = tokenizer.with_length(200)
    lengths = [int((whole.encode([text]) != 1).sum()) for text in TEXTS["en"]]
    assert 0 < sum(n > 12 for n in lengths) < len(lengths)
    assert coverage["en"].texts == len(WORDS)
    assert coverage["en"].cut == sum(n > 12 for n in lengths) / len(lengths)
    assert coverage["en"].unknown == 0
    ids = whole.encode(TEXTS["ru"])
    pieces = ids[ids > 2]
    assert coverage["ru"].unknown == (pieces == 3).mean() > 0.3
    assert coverage["xx"] == (0, 0.0, 0.0, 0.0)


def test_the_length_of_a_text_that_just_fits_is_no_cut(tokenizer):
    text = " ".join(WORDS[:6])
    length = int((tokenizer.with_length(200).encode([text]) != 1).sum())
    for room, cut in ((length, 0), (length - 1, 1)):
        assert text_coverage(tokenizer.with_length(room), {"en": [text]})["en"].cut == cut


def test_a_warning_names_the_setting_and_following_it_ends_the_warning(tokenizer):
    def warnings(length):
        coverage = text_coverage(tokenizer.with_length(length), {"en": TEXTS["en"]})
        _, *warned = coverage_lines(coverage, length, "data.max_length")
        return warned

    [warning] = warnings(12)
    assert "en" in warning and "raise data.max_length" in warning
    assert warnings(60) == []


def test_what_cannot_be_raised_is_not_advised(tokenizer):
    coverage = text_coverage(tokenizer, {"en": TEXTS["en"]})
    _, warning = coverage_lines(coverage, 12, "max_length", room=12)
    assert "raise max_length" not in warning and "12 tokens at most" in warning


def test_unknown_languages_of_a_vocabulary_are_warned_of(tokenizer):
    lines = coverage_lines(text_coverage(tokenizer, TEXTS), 12)
    assert [name for name in TEXTS if name in lines[0]] == list(TEXTS)
    [warning] = [line for line in lines if line.startswith("warning: ru")]
    assert "use a model whose vocabulary (data.tokenizer) was made from this language" in warning
    more = train_tokenizer([*TEXTS["en"], *TEXTS["ru"]] * 20, 300, 12)
    assert "unknown to" not in " ".join(coverage_lines(text_coverage(more, TEXTS), 12))


@pytest.mark.parametrize(
    "named, there, near",
    [
        (("jp",), ("en", "ja"), "ja"),
        (("zh",), ("en", "zh-CN"), "zh-CN"),
        (("en", "zh-CN"), ("en", "zh"), "zh"),
        (("EN",), ("de", "en"), "en"),
        (("zh-hant",), ("zh-Hant",), "zh-Hant"),
        (("cz",), ("cs", "de"), "cs"),
    ],
)
def test_near_languages_are_named(named, there, near):
    with pytest.raises(DataError, match=rf"data.languages.*mean {re.escape(near)}\?"):
        check_languages("data.languages", named, there)


def test_languages_that_are_there_pass():
    check_languages("data.languages", ("en",), ("en", "de"))
    check_languages("data.languages", (), ())
    with pytest.raises(DataError, match="there are none"):
        check_languages("data.languages", ("en",), ())


def test_texts_that_lose_words_when_they_are_cleaned_are_counted_and_warned_of(tokenizer):
    clean = functools.partial(clean_caption, max_words=3)
    cleaning = from_json(tokenizer.to_json(), 60, clean)
    coverage = text_coverage(cleaning, {"en": ["one, two", "one two three", "one two three four"]})
    assert coverage["en"].shortened == 1 / 3 and coverage["en"].cut == 0
    _, warning = coverage_lines(coverage, 60)
    assert "en" in warning and "data.max_words" in warning
    more = from_json(tokenizer.to_json(), 60, functools.partial(clean_caption, max_words=4))
    assert text_coverage(more, {"en": ["one two three four"]})["en"].shortened == 0


def test_both_settings_are_named_where_the_model_has_no_room(tokenizer):
    def warnings(length, room):
        coverage = text_coverage(tokenizer.with_length(length), {"en": TEXTS["en"]})
        return coverage_lines(coverage, length, room=room, room_setting="model.text.max_positions")

    _, warning = warnings(12, 12)
    assert "raise data.max_length and model.text.max_positions" in warning
    assert len(warnings(60, 60)) == 1
