"""Texts to ids and back: vocabularies that are trained, stored and loaded."""

from __future__ import annotations

import collections
import io
import itertools
import json
import pickle
import re
import unicodedata

import numpy as np
import pytest
import sentencepiece
import tokenizers

from rc3_jax.data import tokenizer as tokenizer_module
from rc3_jax.data.record import DataError
from rc3_jax.data.tokenizer import (
    PAD_ID,
    find_or_train_tokenizer,
    from_json,
    load_tokenizer,
    train_tokenizer,
)
from rc3_jax.scenes.languages import LANGUAGES
from rc3_jax.scenes.source import SceneRecords

LENGTH = 128
SPACED = ("en", "de", "fr", "cs")  # languages that write spaces between words


def _captions(split: str, size: int) -> dict[str, list[str]]:
    """language → captions of generated scenes."""
    records = SceneRecords("retrieval", split, size, seed=0)
    return {code: [record.texts[code][0] for record in records] for code in LANGUAGES}


@pytest.fixture(scope="module")
def captions():
    return _captions("train", 100)


@pytest.fixture(scope="module")
def trained(captions):
    return train_tokenizer(itertools.chain(*captions.values()), 600, LENGTH)


@pytest.fixture(scope="module")
def model_file(captions, tmp_path_factory):
    """A SentencePiece model as XLM-R's: unigram, with <unk>, <s> and </s> as ids 0 to 2."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=itertools.chain(*captions.values()),
        model_writer=model,
        vocab_size=300,
        model_type="unigram",
        unk_id=0,
        bos_id=1,
        eos_id=2,
        num_threads=1,
        minloglevel=2,
    )
    path = tmp_path_factory.mktemp("model") / "some_name.model"
    path.write_bytes(model.getvalue())
    return path


def _inner(tokenizer, text: str) -> list[int]:
    """The ids of a text between <s> and </s>, which frame it."""
    [ids] = tokenizer.encode([text]).tolist()
    end = ids.index(2)
    assert ids[0] == 0 and set(ids[end + 1 :]) <= {PAD_ID}
    return ids[1:end]


def _vocabulary(tokenizer) -> list[str]:
    return [piece for piece, _ in json.loads(tokenizer.to_json())["model"]["vocab"]]


def test_special_tokens_have_the_ids_of_xlm_r(trained):
    backend = tokenizers.Tokenizer.from_str(trained.to_json())
    named = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
    ids = [backend.token_to_id(token) for token in named]
    assert ids == [0, 1, 2, 3, trained.vocab_size - 1]
    assert 300 < trained.vocab_size <= 600
    snowman = _inner(trained, "a red \u2603")  # no caption has one
    assert snowman[:-1] == _inner(trained, "a red ") and snowman[-1] == 3


def test_texts_are_framed_padded_and_cut(trained, captions):
    short = from_json(trained.to_json(), 8)
    ids = short.encode(["", "a star", " ".join(captions["en"][:3])])
    assert ids.dtype == np.int32 and ids.shape == (3, 8)
    assert ids[0].tolist() == [0, 2] + [1] * 6
    assert ids[1, [0, 3, 4, 5, 6, 7]].tolist() == [0, 2, 1, 1, 1, 1] and ids[1, 1:3].min() > 3
    # What is cut still ends with </s>, and begins like the whole.
    assert ids[2, -1] == 2 and ids[2, 0] == 0 and not np.isin(ids[2, 1:-1], (0, 1, 2)).any()
    assert ids[2, 1:-1].tolist() == _inner(trained, " ".join(captions["en"][:3]))[:6]
    # A text does not depend on its neighbours.
    assert np.array_equal(ids[1:2], short.encode(["a star"]))


def test_captions_of_six_languages_survive_the_way_there_and_back(trained):
    for language, texts in _captions("test", 40).items():
        for ids, text in zip(trained.encode(texts), texts, strict=True):
            assert 3 not in ids, (language, text)
            assert trained.decode(ids) == unicodedata.normalize("NFKC", text), language


@pytest.mark.parametrize("language", SPACED)
def test_common_words_are_single_pieces(trained, captions, language):
    words = re.findall(r"\w+", " ".join(captions[language]))
    common = [word for word, _ in collections.Counter(words).most_common(12)]
    assert len(common) == 12
    assert {word: len(_inner(trained, word)) for word in common} == dict.fromkeys(common, 1)


@pytest.mark.parametrize("vocab_size", [400, 2000])
def test_training_again_gives_the_same_tokenizer(captions, vocab_size):
    texts = list(itertools.chain(*captions.values()))
    one, *others = (train_tokenizer(texts, vocab_size, LENGTH).to_json() for _ in range(3))
    assert others == [one, one]


def test_the_vocabulary_holds_no_private_character(trained):
    pieces = _vocabulary(trained)
    assert len(set(pieces)) == len(pieces) > 300
    assert not [p for p in pieces if any(unicodedata.category(c) == "Co" for c in p)]


def test_a_copy_gives_the_same_ids(trained, captions):
    texts = [texts[0] for texts in captions.values()]
    ids = trained.encode(texts)
    for copy in (from_json(trained.to_json(), LENGTH), pickle.loads(pickle.dumps(trained))):
        assert copy.vocab_size == trained.vocab_size
        assert np.array_equal(copy.encode(texts), ids)
        assert copy.decode(ids[0]) == trained.decode(ids[0])
    shorter = from_json(trained.to_json(), 12).encode(texts)
    assert shorter.shape == (len(texts), 12)
    assert np.array_equal(shorter[:, :11], ids[:, :11])


def test_a_stored_tokenizer_is_loaded_from_its_file_or_its_folder(trained, captions, tmp_path):
    (tmp_path / "tokenizer.json").write_text(trained.to_json(), encoding="utf-8")
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        loaded = load_tokenizer(str(path), LENGTH)
        assert np.array_equal(loaded.encode(captions["zh"]), trained.encode(captions["zh"]))


def test_a_sentencepiece_model_gives_its_own_ids_moved_by_one(model_file, captions, tmp_path):
    reference = sentencepiece.SentencePieceProcessor(model_file=str(model_file))
    (tmp_path / "sentencepiece.bpe.model").write_bytes(model_file.read_bytes())
    texts = [text for in_language in captions.values() for text in in_language[:20]]
    texts += ["unseen words, like  perpendicular", "ﬁne Ａ\u00a0b", "a \u2603 snowman"]
    for path in (model_file, tmp_path):
        loaded = load_tokenizer(str(path), LENGTH)
        assert loaded.vocab_size == reference.vocab_size() + 2  # <pad> and <mask>
        for text in texts:
            # Fairseq put <pad> in front of </s> and moved <unk> behind it.
            moved = [3 if i == 0 else i + 1 for i in reference.encode(text)]
            assert _inner(loaded, text) == moved, text
    unknown = _inner(loaded, texts[-1])
    assert 3 in unknown and unknown != [3] * len(unknown)
    copy = from_json(loaded.to_json(), LENGTH)  # as a run stores it
    assert np.array_equal(copy.encode(texts), loaded.encode(texts))


def _store_other_ids(folder):
    vocabulary = {"[UNK]": 0, "[PAD]": 1, "a": 2}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, "[UNK]"))
    backend.save(str(folder / "tokenizer.json"))


def _store_no_json(folder):
    (folder / "tokenizer.json").write_text("{")


def _store_no_model(folder):
    (folder / "sentencepiece.bpe.model").write_bytes(b"damaged")


@pytest.mark.parametrize(
    ("store", "name"),
    [
        (lambda folder: None, "missing.json"),
        (lambda folder: None, "missing.model"),
        (lambda folder: None, "."),
        (_store_other_ids, "."),
        (_store_no_json, "."),
        (_store_no_model, "sentencepiece.bpe.model"),
        (_store_no_model, "."),
    ],
)
def test_what_is_no_vocabulary_is_named_with_its_setting(
    trained, model_file, tmp_path, store, name
):
    store(tmp_path)
    path = str(tmp_path / name)
    with pytest.raises(DataError, match=re.escape(f"data.tokenizer.path={path!r}")) as refused:
        load_tokenizer(path, LENGTH)
    file, model = re.search(r"give a (\S+), a (\S+), a folder", str(refused.value)).groups()
    for given, content in (file, trained.to_json().encode()), (model, model_file.read_bytes()):
        (tmp_path / given[:5]).mkdir()
        (tmp_path / given[:5] / given).write_bytes(content)
        for place in (tmp_path / given[:5], tmp_path / given[:5] / given):
            load_tokenizer(str(place), LENGTH)


def test_a_vocabulary_is_trained_once_for_the_same_texts(captions, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    trainings = []

    def train(*arguments):
        trainings.append(arguments)
        return train_tokenizer(*arguments)

    monkeypatch.setattr(tokenizer_module, "train_tokenizer", train)
    first = find_or_train_tokenizer(captions["de"], 200, LENGTH)
    again = find_or_train_tokenizer(iter(captions["de"]), 200, LENGTH)
    assert first.to_json() == again.to_json() and len(trainings) == 1
    find_or_train_tokenizer(captions["de"][1:], 200, LENGTH)
    find_or_train_tokenizer(captions["de"], 190, LENGTH)
    assert len(trainings) == 3
    files = list(tmp_path.rglob("*.json"))
    assert len(files) == 3
    for file in files:
        file.write_text(file.read_text()[:100])
    assert find_or_train_tokenizer(captions["de"], 200, LENGTH).to_json() == first.to_json()


def test_a_vocabulary_that_cannot_be_trained_is_named_with_its_setting(captions):
    for texts in ([], ["", " \n"]):
        with pytest.raises(DataError, match=r"no captions .*; check data\.sources"):
            train_tokenizer(texts, 100, LENGTH)
    with pytest.raises(DataError, match=r"data\.tokenizer\.vocab_size=20 .*; make it larger"):
        train_tokenizer(captions["zh"], 20, LENGTH)
    train_tokenizer(captions["zh"], 200, LENGTH)
