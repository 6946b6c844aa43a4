"""Vocabularies of all the forms that `tokenizer.json` may have, cut to a corpus."""

from __future__ import annotations

import json

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors

from rc3_jax.convert.vocabulary import cut_vocabulary
from rc3_jax.data.record import DataError
from rc3_jax.data.tokenizer import Tokenizer, from_json
from tests.convert.vocabularies import LENGTH, check, check_exact, ids_of, pieces_of

SPECIAL = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]


def _unigram(
    pieces: dict[str, float],
    byte_fallback: bool = False,
    added: tuple[str, ...] = (),
    processor=None,
) -> Tokenizer:
    """XLM-R's special tokens around these pieces; `added` stand in front of `<mask>`."""
    vocabulary = [*SPECIAL, *pieces.items()]
    backend = tokenizers.Tokenizer(models.Unigram(vocabulary, 3, byte_fallback))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    backend.add_special_tokens([token for token, _ in SPECIAL])
    backend.add_tokens(list(added))
    backend.add_special_tokens(["<mask>"])
    mask = backend.token_to_id("<mask>")
    backend.post_processor = processor or processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2), ("<mask>", mask)]
    )
    return Tokenizer(backend, LENGTH)


_TEXTS = st.lists(st.text("abcd e", min_size=1, max_size=12), min_size=1, max_size=6)


@hypothesis.settings(max_examples=300)
@hypothesis.given(
    # Few different scores make ties, and characters without a piece make unknown ones.
    st.dictionaries(
        st.text("abcd▁", min_size=1, max_size=4),
        st.sampled_from([-1.0, -2.0, -3.0, -14.0, -2.216315507888794]),
        min_size=1,
    ),
    _TEXTS,
)
def test_ties_and_unknown_characters_are_decided_as_before(pieces, texts):
    old = _unigram(pieces)
    hypothesis.assume(any(text.strip() for text in texts))
    cut = cut_vocabulary(old, texts)
    check_exact(old, cut, texts)
    again = cut_vocabulary(cut.tokenizer, texts)
    assert np.array_equal(again.kept, np.arange(cut.tokenizer.vocab_size))
    assert again.tokenizer.to_json() == cut.tokenizer.to_json()


def test_a_piece_of_the_lowest_score_stays_for_what_an_unknown_character_costs():
    scores = {"▁": -1.0, "a": -14.0, "ab": -3.0, "by": -15.0, "▁a": -15.0}
    without, with_lower = _unigram(scores), _unigram({**scores, "q": -30.0, "r": -30.0})
    assert 3 in ids_of(without, ["aby"]) and 3 not in ids_of(with_lower, ["aby"])
    cut = cut_vocabulary(with_lower, ["aby"])
    check_exact(with_lower, cut, ["aby"])
    assert "q" in pieces_of(cut.tokenizer) and "r" not in pieces_of(cut.tokenizer)


def test_added_tokens_stay_and_are_found_under_new_ids():
    pieces = {c: -5.0 for c in "▁abcdefgh"} | {"▁ab": -2.0, "<extra>": -9.0, "gh": -3.0}
    old = _unigram(pieces, added=("<extra>", "[other]", "zz"))
    texts = ["ab ab<extra> zz ef", "e[other]", "<mask> f"]
    cut = cut_vocabulary(old, texts)
    check_exact(old, cut, texts)
    new = pieces_of(cut.tokenizer)
    assert {"<extra>", "[other]", "zz"} < set(new) and "gh" not in new
    stored = json.loads(cut.tokenizer.to_json())
    assert {t["content"]: t["id"] for t in stored["added_tokens"]} == {
        token: new.index(token) for token in ("<s>", "<pad>", "</s>", "<unk>", "<extra>")
    } | {"[other]": len(new) - 3, "zz": len(new) - 2, "<mask>": len(new) - 1}
    # Those that no text holds stay as well.
    bare = cut_vocabulary(old, ["ab"])
    assert {"<extra>", "[other]", "zz"} < set(pieces_of(bare.tokenizer))


def _processors():
    mask = 4 + 9 + 1  # behind the pieces and the added token
    template = processors.TemplateProcessing(
        single="<s> $A b [x] </s> <mask>",
        special_tokens=[("<s>", 0), ("</s>", 2), ("b", 6), ("[x]", mask - 1), ("<mask>", mask)],
    )
    return {
        "template": template,
        "bert": processors.BertProcessing(("[x]", mask - 1), ("<s>", 0)),
        "roberta": processors.RobertaProcessing(("</s>", 2), ("b", 6)),
        "sequence": processors.Sequence([processors.ByteLevel(), template]),
    }


@pytest.mark.parametrize("name", ["template", "bert", "roberta", "sequence"])
def test_what_frames_a_text_gets_its_new_ids(name):
    pieces = {c: -5.0 for c in "▁abcdefgh"}
    old = _unigram(pieces, added=("[x]",), processor=_processors()[name])
    cut = cut_vocabulary(old, ["ah"])
    check(old, cut)
    assert np.array_equal(cut.kept[ids_of(cut.tokenizer, ["ah a"])], ids_of(old, ["ah a"]))
    has_b = name != "bert"
    assert [p for p in pieces_of(cut.tokenizer) if len(p) == 1] == list("▁abh" if has_b else "▁ah")


def test_bytes_stand_in_for_unknown_characters_as_before():
    pieces = {"▁": -2.0, "a": -3.0, "b": -3.0, "▁a": -4.0} | {
        f"<0x{byte:02X}>": -20.0 for byte in range(256)
    }
    old = _unigram(pieces, byte_fallback=True)
    cut = cut_vocabulary(old, ["a \u2603 a"])
    check_exact(old, cut, ["a \u2603 a"])
    check_exact(old, cut._replace(counts=cut_vocabulary(old, ["a 草x"]).counts), ["a 草x"])
    assert set(pieces) - set(pieces_of(cut.tokenizer)) == {"b"}


@pytest.mark.parametrize(
    ("model", "kind"),
    [
        (models.BPE({"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "a": 4}, []), "BPE"),
        (models.WordPiece({"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "a": 4}), "WordPiece"),
    ],
)
def test_other_types_of_vocabulary_are_refused(model, kind):
    backend = tokenizers.Tokenizer(model)
    backend.add_special_tokens(["<mask>"])
    with pytest.raises(DataError, match=f"of type {kind}, and only Unigram ones can be cut"):
        cut_vocabulary(Tokenizer(backend, LENGTH), ["a"])


def test_what_no_text_uses_but_every_vocabulary_needs_stays():
    """Without added tokens, without what begins a word, without what frames a text."""
    pieces = {"▁": -5.0, "a": -5.0, "<mask>": 0.0}
    stored = json.loads(_unigram(pieces).to_json())
    stored |= {"added_tokens": [], "post_processor": None}
    stored["pre_tokenizer"]["prepend_scheme"] = "never"
    old = from_json(json.dumps(stored), LENGTH)
    cut = cut_vocabulary(old, ["aa"])
    assert cut.kept.tolist() == list(range(7)) and cut.counts.tolist() == [0] * 5 + [2, 0]
    assert np.array_equal(ids_of(cut.tokenizer, ["a a"]), ids_of(old, ["a a"]))


def test_names_of_unknown_and_byte_pieces_are_no_characters_of_the_texts():
    in_names = dict.fromkeys("<unk>0xF", -5.0)
    old = _unigram({"▁": -2.0, "a": -30.0} | in_names)
    cut = cut_vocabulary(old, ["a \u2603"])
    assert cut.counts[3] == 1 and in_names.keys().isdisjoint(pieces_of(cut.tokenizer))
    as_bytes = {f"<0x{byte:02X}>": -20.0 for byte in range(256)}
    old = _unigram({"▁": -2.0, "a": -30.0} | in_names | as_bytes, byte_fallback=True)
    cut = cut_vocabulary(old, ["a \u2603"])
    assert cut.counts[3] == 0 and in_names.keys().isdisjoint(pieces_of(cut.tokenizer))
