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
from tests.data.files import png, write
from tests.tiny import tiny_config

WORDS = st.lists(st.sampled_from("abcdefgh"), max_size=2)
ROWS = st.lists(st.tuples(st.sampled_from([None, 1, 2, 3, 4]), WORDS, WORDS), max_size=8)


def _by_hand(rows: list, count: int) -> list[int]:
    """The smallest number of each row's component, joined pair by pair until nothing changes."""
    group = list(range(count))

    def join(one: int, other: int) -> None:
        low, high = sorted((group[one], group[other]))
        group[:] = [low if g == high else g for g in group]

    for i, (image, said, _) in enumerate(rows):
        for j, (other, also, _) in enumerate(rows):
            if (image is not None and image == other) or set(said) & set(also):
                join(i, j)
    target = {}
    for i, (_, said, _) in enumerate(rows):
        for text in said:
            captioned = [j for j, row in enumerate(rows) if text in row[2]]
            if captioned:
                target.setdefault(group[i], group[captioned[0]])
    return [target.get(g, g) for g in group]


@given(first=ROWS, second=ROWS)
def test_linked_groups_are_those_joined_by_hand(first, second):
    parts, offset = [], 0
    for rows in (first, second):
        lists = KeyLists()
        for group, (image, sentences, captions) in enumerate(rows):
            is_parallel = image is None
            lists.add(group, image, sentences * is_parallel, captions * (not is_parallel))
        parts.append((lists.keys(), offset))
        offset += len(rows)
    rows = [(i, said * (i is None), about * (i is not None)) for i, said, about in first + second]
    assert link_groups(parts, offset).tolist() == _by_hand(rows, offset)


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
    group_of: dict[str, set[int]] = {}  # of each image, and of each sentence in parallel text
    texts_of: dict[int, set[str]] = {}  # of images
    for kind, pool in corpus.pools.items():
        for index in range(len(pool)):
            record, [group] = pool[index]
            said = {text.casefold() for texts in record.texts.values() for text in texts}
            for about in said if kind == "parallel" else [str(record.image)]:
                group_of.setdefault(about, set()).add(int(group))
            if kind != "parallel":
                texts_of.setdefault(int(group), set()).update(said)
    assert all(len(groups) == 1 for groups in group_of.values())
    assert len(texts_of) == 25  # a group an image
    shared = set.union(*texts_of.values()) & group_of.keys()
    assert len(shared) == 15
    for text in shared:
        [group] = group_of[text]
        assert text in texts_of[group]
    drawn = set()
    for batch in make_batches(corpus.pools, run_tokenizer(config, corpus, None), config, Skips()):
        drawn |= set(np.concatenate([rows["groups"] for rows in batch.values()]).tolist())
    assert drawn == set.union(*group_of.values())


@given(
    st.text(st.characters(exclude_categories=["Cs", "Cc"])) | st.text("Ab .,-。“ßΣé\u0301\u00a0")
)
def test_texts_have_the_number_of_what_is_left_of_them(text):
    folded = unicodedata.normalize("NFKC", text).casefold()
    plain = re.sub(f"{_BETWEEN_WORDS.pattern}", " ", folded).strip() or folded
    assert text_key(text) == hash(plain.encode())
