"""Which records are one group, within and across sources."""

from __future__ import annotations

import re
import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rc3_jax.data.corpus import open_corpus, run_tokenizer
from rc3_jax.data.groups import _BETWEEN_WORDS, KeyLists, link_groups, text_key
from rc3_jax.data.record import Skips
from rc3_jax.data.stream import make_batches
from rc3_jax.objectives.batching import interleave
from rc3_jax.objectives.contrastive import have_in_common
from rc3_jax.objectives.terms import Comparison, Encoded
from tests.data.files import TEXTS, captioned, png, write
from tests.tiny import tiny_config

WORDS = st.lists(st.sampled_from("abcdefgh"), max_size=2)
ROWS = st.lists(st.tuples(st.sampled_from([None, 1, 2, 3, 4]), WORDS), max_size=8)


def _joined(rows: list, alike) -> list[int]:
    """The smallest number of each row's component, joined pair by pair until nothing changes."""
    group = list(range(len(rows)))
    for i, one in enumerate(rows):
        for j, other in enumerate(rows):
            if alike(one, other):
                low, high = sorted((group[i], group[j]))
                group = [low if g == high else g for g in group]
    return group


@given(first=ROWS, second=ROWS)
def test_linked_groups_are_those_joined_by_hand(first, second):
    parts, offset = [], 0
    for rows in (first, second):
        lists = KeyLists()
        for group, (image, texts) in enumerate(rows):
            lists.add(group, image, texts)
        parts.append((lists.keys(), offset))
        offset += len(rows)
    rows = first + second
    links = link_groups(parts, offset)

    def alike(one, other) -> bool:
        (image, texts), (of_other, also) = one, other
        if image is None and of_other is None:
            return not set(texts).isdisjoint(also)
        return image == of_other

    assert links.groups.tolist() == _joined(rows, alike)
    assert links.sentences.tolist() == _joined(rows, lambda a, b: not {*a[1]}.isdisjoint(b[1]))


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        ("Ein Hund.", "ein  hund", True),
        ("“A dog”, she said…", "a dog she said", True),
        ("ＡＢＣ。", "abc", True),
        ("cafe\u0301", "café", True),
        ("कि", "की", False),  # they differ in a vowel sign alone
        ("👍", "👎", False),
        ("a dog", "a hog", False),
        ("今日は", "今日", False),
    ],
)
def test_texts_are_compared_without_case_and_punctuation(one, other, equal):
    assert (text_key(one) == text_key(other)) == equal


def test_no_two_rows_about_one_thing_have_different_groups(tmp_path):
    """Two captions sources share pictures and sentences, and a parallel source their sentences."""

    def captions(name: str, numbers: range, image_of) -> dict:
        lines = []
        for i in numbers:
            (tmp_path / image_of(i)).write_bytes(png(8 * (i % 30)))
            texts = {"en": f"Star {i // 2}", "de": f"Stern {i}", "fr": f"étoile {i}"}
            lines.append(dict(image=image_of(i), split="train", translations=texts))
        lines.append(lines[0] | {"split": "val"})
        file = str(write(tmp_path / f"{name}.jsonl", *lines))
        splits = dict(train_split="train", heldout_split="val")
        return dict(type="folder", captions=file, root=str(tmp_path), **splits)

    config = tiny_config()
    english = [f"star {i}".encode() for i in range(20)] + [b"moon"] * 3
    german = [f"Mond {i}".encode() for i in range(20)] + [b"Mond 1", b"m", b"n"]
    files = {
        "en": str(write(tmp_path / "t.en", *english)),
        "de": str(write(tmp_path / "t.de", *german)),
    }
    config.data.sources = dict(
        a=captions("a", range(20), lambda i: f"{i}.png"),
        b=captions("b", range(10, 30), lambda i: f"{i % 25}.png"),
        c=dict(type="parallel", files=files),
    )
    config.update(steps=100, batch_size=16)
    config.batch_mix.update(strict=1.0, weak=0.0, parallel=1.0)
    corpus = open_corpus(config, Skips())
    tokenizer, image_of = run_tokenizer(config, corpus, None), {}
    for index in range(len(strict := corpus.pools["strict"])):
        record, (group, _) = strict[index]
        assert image_of.setdefault(int(group), record.image) == record.image
    assert len(image_of) == 25

    def sentence(ids) -> int:
        """Those of which `moon` is a translation are the first."""
        word, _, number = tokenizer.decode(ids).casefold().partition(" ")
        return int(number or 1) // (2 if word in ("stern", "étoile") else 1)

    pairs = 0
    for batch in make_batches(corpus.pools, tokenizer, config, Skips()):
        encoded = Encoded(None, batch, Comparison(equal_texts_match=False))
        known = encoded.groups(("strict", "parallel"), "a", "b")
        said = interleave([np.array([*map(sentence, of["ids_a"])]) for of in batch.values()])
        images = interleave([batch["strict"]["groups"], -1 - np.arange(8)])
        same = (said[:, None] == said) | (images[:, None] == images)
        np.testing.assert_array_equal(have_in_common(known, known), same)
        pairs += (same.sum() - len(same)) // 2
    assert pairs > 100


@pytest.mark.parametrize("by, images", [("path", 3), ("content", 1)])
def test_copies_of_a_file_are_one_image_where_their_bytes_tell(tmp_path, by, images):
    """Two folders with a copy each, and a line that holds the third."""
    config, sources = tiny_config(), {}
    for name in "ab":
        (tmp_path / name).mkdir()
        lines = []
        for split, red in (("train", 1), ("val", 2)):
            (tmp_path / name / f"{split}.png").write_bytes(png(red))
            lines.append(dict(image=f"{split}.png", split=split, translations=TEXTS))
        sources[name] = dict(
            type="folder",
            captions=str(write(tmp_path / name / "captions.jsonl", *lines)),
            root=str(tmp_path / name),
            train_split="train",
            heldout_split="val",
            image_identity=by,
        )
    file = str(write(tmp_path / "lines.jsonl", captioned(1)))
    config.data.sources = sources | dict(c=dict(type="cclm", format="captions", path=file))
    pool = open_corpus(config, Skips()).pools["strict"]
    assert len(pool) == 3 and len({int(pool[n][1][0]) for n in range(3)}) == images


@given(
    st.text(st.characters(exclude_categories=["Cs", "Cc"])) | st.text("Ab .,-。“ßΣé\u0301\u00a0")
)
def test_texts_have_the_number_of_what_is_left_of_them(text):
    folded = unicodedata.normalize("NFKC", text).casefold()
    plain = re.sub(f"{_BETWEEN_WORDS.pattern}", " ", folded).strip() or folded
    assert text_key(text) == hash(plain.encode())
