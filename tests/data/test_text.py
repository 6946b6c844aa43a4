"""Which texts of a record are drawn, and which of their tokens are masked."""

from __future__ import annotations

import collections
import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from rc3_jax.data.kinds import language_pairs, row_languages
from rc3_jax.data.record import Record
from rc3_jax.data.text import (
    IGNORED,
    MAX_CHARACTERS,
    clean_caption,
    draw_texts,
    mask_tokens,
    usable_text,
)
from rc3_jax.data.tokenizer import FRAME_IDS, SPECIAL_TOKENS

UNKNOWN_ID = SPECIAL_TOKENS.index("<unk>")


def _rng(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(seed))


def _record(**texts) -> Record:
    return Record("captions.jsonl:7", 0, texts)


def test_a_record_offers_sorted_pairs_of_languages_or_two_texts_of_its_only_one():
    texts = {"fr": ("x",), "de": ("y", "z"), "cs": ("w",)}
    assert language_pairs(texts) == [("cs", "de"), ("cs", "fr"), ("de", "fr")]
    assert language_pairs({"de": ("y", "z")}) == [("de", "de")]
    assert language_pairs({"de": ("y",)}) == language_pairs({}) == []


def test_sides_are_swapped_half_of_the_time_and_every_text_is_drawn():
    record, rng = _record(en=("a", "b", "c"), de=("d",), fr=("e",)), _rng()
    draws = [draw_texts(record, ("de", "en"), rng) for _ in range(6000)]
    assert {language: text for language, text in draws[0]}.keys() == {"en", "de"}
    english_first = sum(first == "en" for (first, _), _ in draws)
    assert stats.binomtest(english_first, len(draws)).pvalue > 1e-3
    english = collections.Counter(dict(draw)["en"] for draw in draws)
    assert set(english) == {"a", "b", "c"}
    assert stats.chisquare(list(english.values())).pvalue > 1e-3
    assert {dict(draw)["de"] for draw in draws} == {"d"}


def test_a_record_in_one_language_gives_two_different_texts_in_any_order():
    record, rng = _record(zh=("a", "b", "c")), _rng()
    draws = collections.Counter(draw_texts(record, ("zh", "zh"), rng) for _ in range(6000))
    assert len(draws) == 6  # ordered pairs of three texts
    assert all(a == b == "zh" and one != other for (a, one), (b, other) in draws)
    assert stats.chisquare(list(draws.values())).pvalue > 1e-3


@st.composite
def _masking(draw):
    vocab_size = draw(st.integers(6, 40))
    words = st.integers(UNKNOWN_ID, vocab_size - 2)
    inner = draw(st.lists(words, max_size=30))
    ids = np.array([0, *inner, 2] + [1] * draw(st.integers(0, 4)), np.int32)
    share, span_chance = draw(st.floats(0, 1)), draw(st.floats(0, 1))
    options = dict(share=share, most=draw(st.integers(1, 15)), span_chance=span_chance)
    return ids, vocab_size, options, draw(st.integers(0, 2**32))


@given(_masking())
def test_masking_keeps_its_promises_for_any_text(case):
    ids, vocab_size, options, seed = case
    given_ids = ids.copy()
    masked, positions, labels = mask_tokens(ids, vocab_size, _rng(seed), **options)
    assert np.array_equal(ids, given_ids)
    assert masked.dtype == positions.dtype == labels.dtype == np.int32
    assert masked.shape == ids.shape
    assert positions.shape == labels.shape == (options["most"],)

    words = int(np.sum(ids > 2))
    wanted = max(1, round(options["share"] * words)) if words else 0
    count = int(np.sum(labels != IGNORED))
    assert count == min(options["most"], wanted)

    picked = positions[:count]
    assert len(set(picked.tolist())) == count
    assert not np.isin(ids[picked], FRAME_IDS).any()
    assert np.array_equal(labels[:count], ids[picked])
    assert np.all(labels[count:] == IGNORED) and np.all(positions[count:] == 0)

    untouched = np.delete(np.arange(len(ids)), picked)
    assert np.array_equal(masked[untouched], ids[untouched])
    replaced = masked[picked][masked[picked] != ids[picked]]
    assert np.all((replaced >= len(SPECIAL_TOKENS)) & (replaced < vocab_size))

    again = mask_tokens(ids, vocab_size, _rng(seed), **options)
    for first, second in zip((masked, positions, labels), again, strict=True):
        assert np.array_equal(first, second)


def test_masked_tokens_become_mask_word_or_stay():
    # A text of <unk>, which is never a replacement, so that what stays can be told apart.
    ids = np.array([0] + [UNKNOWN_ID] * 500 + [2], np.int32)
    vocab_size, rng = 12, _rng()
    fates = np.concatenate(
        [mask_tokens(ids, vocab_size, rng, share=1.0, most=500)[0][1:-1] for _ in range(40)]
    )
    counts = np.bincount(fates, minlength=vocab_size)
    assert counts[: len(SPECIAL_TOKENS)].tolist() == [0, 0, 0, counts[UNKNOWN_ID]]
    words = counts[len(SPECIAL_TOKENS) : -1]
    fate_counts = [counts[-1], words.sum(), counts[UNKNOWN_ID]]
    expected = [len(fates) * share for share in (0.8, 0.1, 0.1)]
    assert stats.chisquare(fate_counts, expected).pvalue > 1e-3
    assert stats.chisquare(words).pvalue > 1e-3


@pytest.mark.parametrize("span_chance", [0.0, 0.2, 1.0])
def test_spans_of_two_or_three_tokens_come_with_their_chance(span_chance):
    ids = np.array([0] + [5] * 1000 + [2], np.int32)
    rng, draws = _rng(), 1500
    two = three = 0
    for _ in range(draws):
        _, positions, _ = mask_tokens(ids, 9, rng, share=1.0, most=3, span_chance=span_chance)
        first, second, third = np.diff(positions, prepend=positions[0])
        assert first == 0
        two += second == 1
        three += second == third == 1
    # A position has two successors within 1000 by accident about once in 500 draws.
    assert two / draws == pytest.approx(span_chance, abs=0.04)
    assert three / draws == pytest.approx(0.5 * span_chance, abs=0.04)


def test_every_word_is_masked_equally_often():
    ids = np.array([0] + [5] * 10 + [2, 1, 1], np.int32)
    rng, counts = _rng(), np.zeros(len(ids), int)
    for _ in range(3000):
        _, positions, labels = mask_tokens(ids, 9, rng, share=0.4, span_chance=0.0)
        counts[positions[labels != IGNORED]] += 1
    assert counts.sum() == 4 * 3000
    assert counts[[0, 11, 12, 13]].sum() == 0
    assert stats.chisquare(counts[1:11]).pvalue > 1e-3


def test_a_row_of_one_text_takes_any_of_its_language():
    record, rng = _record(en=("a", "b"), de=("c",)), _rng()
    assert row_languages("captioned", record.texts) == [("de",), ("en",)]
    assert row_languages("weak", record.texts) == language_pairs(record.texts)
    assert row_languages("region", record.texts) == row_languages("region", {}) == [()]
    draws = collections.Counter(draw_texts(record, ("en",), rng) for _ in range(2000))
    assert set(draws) == {(("en", "a"),), (("en", "b"),)}
    assert stats.chisquare(list(draws.values())).pvalue > 1e-3


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("A man's <person> - hat/cap: 3.5, OK?", "a man s person hat cap 3 5 ok"),
        (" One\ttwo\n three ", "one two three"),
        ("?! ...", ""),
        ("", ""),
        ("Ein Hund; (braun) #1 ~ *so*", "ein hund braun 1 so"),
        ("一只狗，在草地上。", "一只狗，在草地上。"),
        ("a_b+c&d@e", "a_b+c&d@e"),
        ("ÉTÉ", "été"),
    ],
)
def test_captions_are_cleaned_as_published(text, cleaned):
    assert clean_caption(text, 40) == cleaned
    assert clean_caption(cleaned, 40) == cleaned


def test_cleaned_captions_are_cut_to_so_many_words():
    assert clean_caption("One, two three-four", 3) == "one two three"


def test_the_published_masking_may_replace_by_any_id_and_takes_the_end_of_a_text():
    ids, rng = np.array([0, 5, 5, 5, 2, 1], np.int32), _rng()
    seen, ends = set(), 0
    for _ in range(2000):
        masked, positions, labels = mask_tokens(ids, 9, rng, share=0.4, mask_eos=True)
        picked = positions[labels != IGNORED]
        assert len(picked) == 2 and 0 not in picked and 5 not in picked  # 40 % of 5
        seen |= set(masked[picked].tolist())
        ends += 4 in picked
    assert seen == set(range(9)) and ends > 500


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ("  ein Hund \n", "ein Hund"),
        ("a\tb\nc", "a b c"),
        ("cafe\u0301", "caf\u00e9"),
        ("\u202ereversed\u202c \u2066a\u2069\u200f", "reversed a"),
        ("nu\x00ll\x1b\x9c\ufeff", "null"),
        ("می\u200cخواهم", "می\u200cخواهم"),  # a non-joiner is spelling
        ("क्\u200dष", "क्\u200dष"),
        ("👩\u200d🚀", "👩\u200d🚀"),
        ("5", "5"),
        ("犬", "犬"),
        ("x" * MAX_CHARACTERS, "x" * MAX_CHARACTERS),
    ],
)
def test_texts_are_normalized_when_they_are_read(given, read):
    assert usable_text(given) == read


@pytest.mark.parametrize(
    "text",
    ["", " \n", ".", "...", "?!", "。", "…", "~", "\u200b", "\u200b\u2060\u00ad", "\x00\x1b"]
    + [
        "\u202e\u202c",
        "\u0301",
        "\ud800",
        "\u3164\u115f",
        "\u2800",
        "\ufffd",
        "x" * (MAX_CHARACTERS + 1),
    ],
)
def test_texts_without_words_and_endless_ones_are_refused(text):
    with pytest.raises(ValueError):
        usable_text(text)


@given(text=st.text(max_size=60))
def test_usable_texts_stay_as_they_are_and_outlive_cleaning(text):
    try:
        read = usable_text(text)
    except ValueError:
        return
    assert usable_text(read) == read
    assert clean_caption(read, 40)


CHARACTERS = "aé١½一🐕\u3164\u2800 \t\n\u00a0\u3000-.…\x00\x7f\u200b\u200e\u2028\ufeff\u0301\ud800"


@given(st.text(CHARACTERS, max_size=6) | st.text(max_size=6))
def test_usable_texts_are_those_with_a_word_and_lose_what_is_invisible(text):
    """By hand, character by character."""
    marks = "\u061c\u200e\u200f\ufeff" + "".join(
        map(chr, [*range(0x202A, 0x202F), *range(0x2066, 0x206A)])
    )
    kept = [
        " " if unicodedata.category(c) == "Cc" and c.isspace() else c
        for c in text
        if c not in marks and (unicodedata.category(c) != "Cc" or c.isspace())
    ]
    expected = unicodedata.normalize("NFC", "".join(kept)).strip()
    blank = 0x115F, 0x1160, 0x2800, 0x3164, 0xFFA0, 0xFFFC, 0xFFFD
    words = ("Lu", "Ll", "Lt", "Lm", "Lo", "Nd", "Nl", "No", "So")
    if "Cs" in map(unicodedata.category, text) or not any(
        unicodedata.category(c) in words for c in expected.translate(dict.fromkeys(blank))
    ):
        with pytest.raises(ValueError):
            usable_text(text)
    else:
        assert usable_text(text) == expected
