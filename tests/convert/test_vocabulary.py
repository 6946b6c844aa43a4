"""Vocabularies cut to the pieces that a corpus needs, and their word tables."""

from __future__ import annotations

import functools
import io
import itertools
import pathlib
import unicodedata

import hypothesis
import hypothesis.strategies as st
import ml_dtypes
import numpy as np
import pytest
import sentencepiece
import tokenizers

from rc3_jax.convert.corpus_texts import corpus_texts
from rc3_jax.convert.vocabulary import Cut, cut_rows, cut_vocabulary, describe
from rc3_jax.data.grammar import LANGUAGES
from rc3_jax.data.record import DataError
from rc3_jax.data.scenes import SceneSource
from rc3_jax.data.text import clean_caption
from rc3_jax.data.tokenizer import Tokenizer, load_tokenizer, train_tokenizer
from tests.convert.vocabularies import LENGTH, check, check_exact, ids_of, pieces_of

CAPTIONS = {
    code: [record.texts[code][0] for record in SceneSource("retrieval", "train", 100, seed=0)]
    for code in LANGUAGES
}
ALL_TEXTS = list(itertools.chain(*CAPTIONS.values()))


def _from_sentencepiece(texts, vocab_size: int, folder: pathlib.Path) -> Tokenizer:
    """XLM-R's own kind: its SentencePiece settings, loaded by transformers."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        vocab_size=vocab_size,
        model_type="unigram",
        unk_id=0,
        bos_id=1,
        eos_id=2,
        num_threads=1,
        minloglevel=2,
    )
    (folder / "some.model").write_bytes(model.getvalue())
    return load_tokenizer(str(folder / "some.model"), LENGTH)


@functools.cache
def _trained() -> Tokenizer:
    return train_tokenizer(ALL_TEXTS, 600, LENGTH)


@pytest.fixture(scope="module", params=["trained", "sentencepiece"])
def old(request, tmp_path_factory):
    if request.param == "trained":
        return _trained()
    return _from_sentencepiece(ALL_TEXTS, 300, tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize("languages", [("en",), ("de", "zh"), ("cs", "fr", "ja"), LANGUAGES])
def test_texts_of_kept_languages_are_encoded_as_before(old, languages):
    texts = [text for code in languages for text in CAPTIONS[code]]
    assert (old.encode(texts)[:, -1] == 2).any()  # longer than max_length
    cut = cut_vocabulary(old, iter(texts))
    check_exact(old, cut, texts)
    assert (cut.share < 0.9) == (len(languages) < 6)
    # The stored vocabulary at its own length, cut off as the old one is.
    assert np.array_equal(cut.kept[cut.tokenizer.encode(texts)], old.encode(texts))
    for ids, before in zip(ids_of(cut.tokenizer, texts), ids_of(old, texts), strict=True):
        assert cut.tokenizer.decode(ids) == old.decode(before)


@hypothesis.settings(max_examples=40)
@hypothesis.given(
    st.lists(st.sampled_from(ALL_TEXTS), min_size=1, max_size=30),
    st.lists(st.sampled_from(ALL_TEXTS), max_size=5),
)
def test_any_texts_are_encoded_as_before_and_their_characters_are_never_unknown(texts, others):
    old = _trained()
    cut = cut_vocabulary(old, texts)
    check_exact(old, cut, texts)
    again = cut_vocabulary(cut.tokenizer, texts)
    assert np.array_equal(again.kept, np.arange(cut.tokenizer.vocab_size))
    assert again.tokenizer.to_json() == cut.tokenizer.to_json()
    seen = set(" ".join(texts))
    spelled = ["".join(c for c in text if c in seen) for text in others]
    for ids, text in zip(ids_of(cut.tokenizer, spelled), spelled, strict=True) if others else ():
        assert 3 not in ids
        assert cut.tokenizer.decode(ids).split() == unicodedata.normalize("NFKC", text).split()


def test_new_words_are_spelled_and_other_scripts_unknown(old):
    cut = cut_vocabulary(old, CAPTIONS["en"])
    assert 3 not in ids_of(cut.tokenizer, ["treble oral beetles blare"])
    for text in (CAPTIONS["zh"][0], "a \u2603"):
        assert 3 in ids_of(cut.tokenizer, [text])
    everything = cut_vocabulary(old, ALL_TEXTS)
    assert 3 not in ids_of(everything.tokenizer, [CAPTIONS["zh"][0]])


def test_rare_pieces_are_left_out_and_spelled(old):
    texts = CAPTIONS["en"][:30] + CAPTIONS["zh"][:3]
    cuts = [cut_vocabulary(old, texts, min_count) for min_count in (1, 4, 10**9)]
    for cut in cuts:
        check(old, cut)
        assert 3 not in ids_of(cut.tokenizer, texts)
        for ids, before in zip(ids_of(cut.tokenizer, texts), ids_of(old, texts), strict=True):
            assert cut.tokenizer.decode(ids) == old.decode(before)
    sizes = [len(cut.kept) for cut in cuts]
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == 3
    pieces = pieces_of(cuts[1].tokenizer)
    rare = [p for p, n in zip(pieces, cuts[1].counts, strict=True) if n < 4 and len(p) > 1]
    assert rare == ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    assert [p for p in pieces_of(cuts[2].tokenizer) if len(p) > 1] == rare


def test_texts_are_cleaned_first():
    cleaned = Tokenizer(
        tokenizers.Tokenizer.from_str(_trained().to_json()),
        LENGTH,
        functools.partial(clean_caption, max_words=3),
    )
    cut = cut_vocabulary(cleaned, ["A, a. (star)! zzz qqq"])
    assert cut.tokenizer.clean("A, a. (STAR)! zzz") == "a a star"
    check_exact(cleaned, cut, ["A, a. (star)! zzz qqq"])
    assert {"(", "!", ",", "q", "A"}.isdisjoint(pieces_of(cut.tokenizer))


def test_batches_are_bounded_and_progress_is_told(monkeypatch):
    monkeypatch.setattr("rc3_jax.convert.vocabulary._BATCH_CHARACTERS", 100)
    told = []
    texts = ["a star", "", "a" * 250, *["circle"] * 40]
    cut = cut_vocabulary(_trained(), texts, progress=told.append)
    assert told == [3, 18, 33, 43]
    check_exact(_trained(), cut, texts)


def test_without_texts_or_with_a_count_below_one_nothing_is_cut():
    for texts in ([], ["", ""]):
        with pytest.raises(DataError, match="the corpus holds no text; name other files"):
            cut_vocabulary(_trained(), texts)
    with pytest.raises(DataError, match="min_count=0: .* give 1 or more"):
        cut_vocabulary(_trained(), ["a"], 0)


@pytest.mark.parametrize("shape", [(), (7,)])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_rows_stay_bit_for_bit(shape, dtype):
    cut = cut_vocabulary(_trained(), CAPTIONS["en"])
    rng = np.random.default_rng(0)
    size = (_trained().vocab_size, *shape)
    table = rng.integers(256, size=(*size, np.dtype(dtype).itemsize), dtype=np.uint8)
    table = table.view(dtype).reshape(size)  # any bits: infinities and NaNs too
    rows = cut_rows(table, cut.kept)
    assert rows.dtype == dtype and rows.flags.c_contiguous and rows.flags.owndata
    assert rows.tobytes() == b"".join(table[i].tobytes() for i in cut.kept)
    with pytest.raises(DataError, match=r"rows, 6 more than .* cut table\[:"):
        cut_rows(np.concatenate([table, table[:6]]), cut.kept)
    with pytest.raises(DataError, match=r"rows, 1 less than .* the table was trained with"):
        cut_rows(table[:-1], cut.kept)


def test_the_report_tells_pieces_and_parameters():
    cut = Cut(None, np.zeros(41_234, np.int32), np.zeros(41_234, np.int64), 250_002)
    assert describe(cut, 768) == (
        "kept 41,234 of 250,002 pieces (16.5 %): word table from 192.0 to 31.7 million parameters"
    )


def test_real_captions(shared_data, tmp_path):
    captions = shared_data / "flickr8k" / "captions.jsonl.gz"
    old = _from_sentencepiece(
        itertools.islice(corpus_texts([captions], None), 30_000), 4000, tmp_path
    )
    texts = list(itertools.islice(corpus_texts([captions], ["de"]), 5000))
    texts += ["Ha" + "ha" * 90, "." * 99, "-" * 50]  # many equally good splits
    cut = cut_vocabulary(old, texts)
    check_exact(old, cut, texts)
    assert 0.2 < cut.share < 0.8
    parallel = shared_data / "parallel" / "multi30k" / "val.de.gz"
    unseen = list(corpus_texts([parallel], ["de"]))
    seen = set(unicodedata.normalize("NFKC", " ".join(texts)))
    unseen = [text for text in unseen if seen.issuperset(unicodedata.normalize("NFKC", text))]
    assert len(unseen) > 500
    before, after = ids_of(old, unseen), ids_of(cut.tokenizer, unseen)
    assert not ((after == 3).any(axis=1) & ~(before == 3).any(axis=1)).any()
    assert (cut.kept[after] == before).all(axis=1).mean() > 0.9
