import functools
import re

import numpy as np
import pytest

from rc3_jax.scenes.languages import LANGUAGES
from rc3_jax.scenes.languages.base import FRAMES, PLAIN_FRAMES, QUESTIONS, STATEMENTS
from rc3_jax.scenes.scene import ATTRIBUTES, Mention
from rc3_jax.scenes.source import SceneRecords
from rc3_jax.scenes.tasks import MINIATURES, miniature
from rc3_jax.scenes.wordings import (
    SORT,
    Asked,
    is_withheld,
    other_plain_frame,
    random_asked,
    random_frame,
    withheld_frame,
)


@functools.cache
def said_in_pretraining():
    """Language → the texts of some thousand records."""
    found = {code: set() for code in LANGUAGES}
    for kind, size in (("strict", 300), ("weak", 600), ("parallel", 3000), ("captioned", 100)):
        records = SceneRecords(kind, "train", size, 0, questions=0.7)
        for index in range(size):
            for code, texts in records[index].texts.items():
                found[code].update(texts)
    return found


def words(code, text):
    """Words; characters of languages that do not separate them."""
    return set(text if code in ("zh", "ja") else re.findall(r"\w+", text.casefold()))


@pytest.mark.parametrize("task", MINIATURES)
def test_tests_say_what_was_never_said_in_words_that_were(task):
    splits = miniature(task, {"train": 300, "dev": 60, "test": 300}).splits
    for code, examples in splits.pop("test").items():
        texts = {example.text for example in examples}
        known = set().union(*(words(code, text) for text in said_in_pretraining()[code]))
        assert not set().union(*(words(code, text) for text in texts)) - known
        assert not texts & said_in_pretraining()[code]
        trained = {e.text for split in splits.values() for e in split.get(code, ())}
        assert not texts & trained


def test_without_questions_in_pretraining_words_of_the_tests_are_missing():
    texts = SceneRecords("parallel", "train", 300, 0)
    known = set()
    for index in range(300):
        for text in texts[index].texts.get("de", ()):
            known |= words("de", text)
    asked = miniature("xgqa", {"test": 60}).splits["test"]["de"]
    assert set().union(*(words("de", example.text) for example in asked)) - known


def test_every_kind_has_withheld_and_other_mentions_of_every_value():
    singles = [Mention(**{name: value}) for name in SORT for value in ATTRIBUTES[name]]
    for kind in (*STATEMENTS, "count", "exists"):
        withheld = [is_withheld(Asked(kind, mention)) for mention in singles]
        assert any(withheld) and not all(withheld), kind
    drawn = [random_asked(np.random.default_rng(seed)) for seed in range(500)]
    assert {asked.kind for asked in drawn} == {*QUESTIONS, *STATEMENTS}
    assert not any(map(is_withheld, drawn))


def test_captions_to_learn_from_are_in_all_frames_but_the_withheld_one():
    for value in ATTRIBUTES["shape"]:
        said = [Mention(shape=value), Mention(colour="red", place="top left")]
        kept = withheld_frame(said)
        assert kept in PLAIN_FRAMES and other_plain_frame(kept) in {*PLAIN_FRAMES} - {kept}
        assert kept == withheld_frame(said[::-1])  # the order is that of the caption in any case
        frames = {random_frame(np.random.default_rng(seed), said) for seed in range(60)}
        assert frames == {*range(FRAMES)} - {kept}
