"""Vocabularies cut to the pieces that a corpus needs, and their word tables."""

from __future__ import annotations

import functools
import itertools
import json
import unicodedata

import hypothesis
import hypothesis.strategies as st
import ml_dtypes
import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors

from rc3_jax.convert.corpus_texts import corpus_texts
from rc3_jax.convert.vocabulary import Cut, cut_rows, cut_vocabulary, describe
from rc3_jax.data.record import DataError
from rc3_jax.data.text import clean_caption
from rc3_jax.data.tokenizer import PAD_ID, Tokenizer, from_json, train_tokenizer
from tests.convert.exported import from_sentencepiece, scene_captions

LENGTH = 8
"""Of the vocabularies that are cut: shorter than the texts."""
LONG = 512
CAPTIONS = scene_captions("train", 100)
ALL_TEXTS = list(itertools.chain(*CAPTIONS.values()))
SPECIAL = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
UNKNOWN = 3


def ids_of(tokenizer: Tokenizer, texts) -> np.ndarray:
    """Ids of whole texts, with the vocabulary as a run stores it."""
    ids = from_json(tokenizer.to_json(), LONG, tokenizer.clean).encode(texts)
    assert (ids[:, -1] == PAD_ID).all()
    return ids


def pieces_of(tokenizer: Tokenizer) -> list[str]:
    """By id, added tokens included."""
    backend = tokenizers.Tokenizer.from_str(tokenizer.to_json())
    return [backend.id_to_token(i) for i in range(tokenizer.vocab_size)]


def check(old: Tokenizer, cut: Cut) -> None:
    """What holds for every cut."""
    old_pieces = pieces_of(old)
    assert cut.kept.dtype == np.int32 and cut.old_size == old.vocab_size
    assert len(cut.kept) == cut.tokenizer.vocab_size and (np.diff(cut.kept) > 0).all()
    assert cut.kept[:4].tolist() == [0, 1, 2, 3] and cut.kept[-1] == old.vocab_size - 1
    assert pieces_of(cut.tokenizer) == [old_pieces[i] for i in cut.kept]
    assert cut.tokenizer.max_length == old.max_length


def check_exact(old: Tokenizer, texts) -> Cut:
    """Cuts to the texts, which keep their pieces; cutting again changes nothing."""
    cut = cut_vocabulary(old, iter(texts))
    check(old, cut)
    assert np.array_equal(cut.kept[ids_of(cut.tokenizer, texts)], ids_of(old, texts))
    again = cut_vocabulary(cut.tokenizer, texts)
    assert np.array_equal(again.kept, np.arange(cut.tokenizer.vocab_size))
    assert again.tokenizer.to_json() == cut.tokenizer.to_json()
    return cut


@functools.cache
def trained() -> Tokenizer:
    return train_tokenizer(ALL_TEXTS, 600, LENGTH)


@pytest.fixture(scope="module", params=["trained", "sentencepiece"])
def old(request, tmp_path_factory):
    if request.param == "trained":
        return trained()
    return from_sentencepiece(ALL_TEXTS, 300, tmp_path_factory.mktemp("model"), LENGTH)


@pytest.mark.parametrize("languages", [("en",), ("de", "zh"), ("cs", "fr", "ja"), tuple(CAPTIONS)])
def test_texts_of_kept_languages_are_encoded_as_before(old, languages):
    texts = [text for code in languages for text in CAPTIONS[code]]
    assert (old.encode(texts)[:, -1] == 2).any()  # longer than max_length
    cut = check_exact(old, texts)
    assert (len(cut.kept) < 0.9 * old.vocab_size) == (len(languages) < 6)
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
    cut = check_exact(trained(), texts)
    seen = set(" ".join(texts))
    spelled = ["".join(c for c in text if c in seen) for text in others]
    for ids, text in zip(ids_of(cut.tokenizer, spelled), spelled, strict=True) if others else ():
        assert UNKNOWN not in ids
        assert cut.tokenizer.decode(ids).split() == unicodedata.normalize("NFKC", text).split()


def unigram(pieces: dict[str, float], byte_fallback=False, added=(), processor=None) -> Tokenizer:
    """XLM-R's special tokens around these pieces; `added` stand before `<mask>`."""
    vocabulary = [*SPECIAL, *pieces.items()]
    backend = tokenizers.Tokenizer(models.Unigram(vocabulary, UNKNOWN, byte_fallback))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    backend.add_special_tokens([token for token, _ in SPECIAL])
    backend.add_tokens(list(added))
    backend.add_special_tokens(["<mask>"])
    backend.post_processor = processor or processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return Tokenizer(backend, LENGTH)


@hypothesis.settings(max_examples=300)
@hypothesis.given(
    # Few different scores make ties, and characters without a piece make unknown ones.
    st.dictionaries(
        st.text("abcd▁", min_size=1, max_size=4),
        st.sampled_from([-1.0, -2.0, -3.0, -14.0, -2.216315507888794]),
        min_size=1,
    ),
    st.lists(st.text("abcd e", min_size=1, max_size=12), min_size=1, max_size=6),
)
def test_ties_and_unknown_characters_are_decided_as_before(pieces, texts):
    hypothesis.assume(any(text.strip() for text in texts))
    check_exact(unigram(pieces), texts)


def test_a_piece_of_the_lowest_score_stays_for_what_an_unknown_character_costs():
    scores = {"▁": -1.0, "a": -14.0, "ab": -3.0, "by": -15.0, "▁a": -15.0}
    without, with_lower = unigram(scores), unigram({**scores, "q": -30.0, "r": -30.0})
    assert UNKNOWN in ids_of(without, ["aby"]) and UNKNOWN not in ids_of(with_lower, ["aby"])
    pieces = pieces_of(check_exact(with_lower, ["aby"]).tokenizer)
    assert "q" in pieces and "r" not in pieces


def test_added_tokens_stay_and_are_found_under_new_ids():
    pieces = {c: -5.0 for c in "▁abcdefgh"} | {"▁ab": -2.0, "<extra>": -9.0, "gh": -3.0}
    old = unigram(pieces, added=("<extra>", "[other]", "zz"))
    cut = check_exact(old, ["ab ab<extra> zz ef", "e[other]", "<mask> f"])
    new = pieces_of(cut.tokenizer)
    assert {"<extra>", "[other]", "zz"} < set(new) and "gh" not in new
    stored = json.loads(cut.tokenizer.to_json())
    assert {t["content"]: t["id"] for t in stored["added_tokens"]} == {
        token: new.index(token) for token in ("<s>", "<pad>", "</s>", "<unk>", "<extra>")
    } | {"[other]": len(new) - 3, "zz": len(new) - 2, "<mask>": len(new) - 1}
    bare = cut_vocabulary(old, ["ab"])
    assert {"<extra>", "[other]", "zz"} < set(pieces_of(bare.tokenizer))


def test_bytes_stand_in_for_unknown_characters_as_before():
    pieces = {"▁": -2.0, "a": -3.0, "b": -3.0, "▁a": -4.0} | {
        f"<0x{byte:02X}>": -20.0 for byte in range(256)
    }
    cut = check_exact(unigram(pieces, byte_fallback=True), ["a \u2603 a"])
    assert set(pieces) - set(pieces_of(cut.tokenizer)) == {"b"}


def test_new_words_are_spelled_and_other_scripts_unknown(old):
    cut = cut_vocabulary(old, CAPTIONS["en"])
    assert UNKNOWN not in ids_of(cut.tokenizer, ["treble oral beetles blare"])
    for text in (CAPTIONS["zh"][0], "a \u2603"):
        assert UNKNOWN in ids_of(cut.tokenizer, [text])


def test_rare_pieces_are_left_out_and_spelled(old):
    texts = CAPTIONS["en"][:30] + CAPTIONS["zh"][:3]
    cuts = [cut_vocabulary(old, texts, min_count) for min_count in (1, 4, 10**9)]
    for cut in cuts:
        check(old, cut)
        assert UNKNOWN not in ids_of(cut.tokenizer, texts)
        for ids, before in zip(ids_of(cut.tokenizer, texts), ids_of(old, texts), strict=True):
            assert cut.tokenizer.decode(ids) == old.decode(before)
    sizes = [len(cut.kept) for cut in cuts]
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == 3
    longer = [piece for piece in pieces_of(cuts[2].tokenizer) if len(piece) > 1]
    assert longer == ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


def test_texts_are_cleaned_first():
    backend = tokenizers.Tokenizer.from_str(trained().to_json())
    cleaned = Tokenizer(backend, LENGTH, functools.partial(clean_caption, max_words=3))
    cut = check_exact(cleaned, ["A, a. (star)! zzz qqq"])
    assert cut.tokenizer.clean("A, a. (STAR)! zzz") == "a a star"
    assert {"(", "!", ",", "q", "A"}.isdisjoint(pieces_of(cut.tokenizer))


def test_vocabularies_and_corpora_that_cannot_be_cut():
    special = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "a": 4}
    for model in (models.BPE(special, []), models.WordPiece(special)):
        backend = tokenizers.Tokenizer(model)
        backend.add_special_tokens(["<mask>"])
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
        )
        with pytest.raises(DataError, match=type(model).__name__):
            cut_vocabulary(Tokenizer(backend, LENGTH), ["a"])
    for texts in ([], ["", ""]):
        with pytest.raises(DataError, match="the corpus holds no text; name other files"):
            cut_vocabulary(trained(), texts)
    with pytest.raises(DataError, match="min_count=0"):
        cut_vocabulary(trained(), ["a"], 0)


@pytest.mark.parametrize("shape", [(), (7,)])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_rows_stay_bit_for_bit(shape, dtype):
    cut = cut_vocabulary(trained(), CAPTIONS["en"])
    rng = np.random.default_rng(0)
    size = (trained().vocab_size, *shape)
    table = rng.integers(256, size=(*size, np.dtype(dtype).itemsize), dtype=np.uint8)
    table = table.view(dtype).reshape(size)  # any bits: infinities and NaNs too
    rows = cut_rows(table, cut.kept)
    assert rows.dtype == dtype and rows.flags.c_contiguous and rows.flags.owndata
    assert rows.tobytes() == b"".join(table[i].tobytes() for i in cut.kept)
    for other in (np.concatenate([table, table[:6]]), table[:-1]):
        with pytest.raises(DataError, match=f"{len(other)} rows"):
            cut_rows(other, cut.kept)


def test_the_report_names_pieces_and_parameters():
    cut = Cut(trained(), np.zeros(41_234, np.int32), 250_002)
    line = describe(cut, 768)
    assert all(number in line for number in ("41,234", "250,002", "16.5 %", "192.0", "31.7"))


def test_real_captions(shared_data, tmp_path):
    captions = shared_data / "flickr8k" / "captions.jsonl.gz"
    old = from_sentencepiece(
        itertools.islice(corpus_texts([captions], None), 30_000), 4000, tmp_path
    )
    texts = list(itertools.islice(corpus_texts([captions], ["de"]), 5000))
    texts += ["Ha" + "ha" * 90, "." * 99, "-" * 50]  # many equally good splits
    cut = check_exact(old, texts)
    assert 0.2 < len(cut.kept) / cut.old_size < 0.8
    parallel = shared_data / "parallel" / "multi30k" / "val.de.gz"
    seen = set(unicodedata.normalize("NFKC", " ".join(texts)))
    unseen = [
        text
        for text in corpus_texts([parallel], ["de"])
        if seen.issuperset(unicodedata.normalize("NFKC", text))
    ]
    assert len(unseen) > 500
    before, after = ids_of(old, unseen), ids_of(cut.tokenizer, unseen)
    assert not ((after == UNKNOWN).any(axis=1) & ~(before == UNKNOWN).any(axis=1)).any()
    assert (cut.kept[after] == before).all(axis=1).mean() > 0.9
