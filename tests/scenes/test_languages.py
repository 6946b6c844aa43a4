"""The languages against sentences written by hand, and read back by words written by hand."""

import collections
import itertools
import pkgutil
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rc3_jax.scenes import languages
from rc3_jax.scenes.languages import LANGUAGES
from rc3_jax.scenes.languages.base import FRAMES, QUESTIONS, STATEMENTS, Language, listing
from rc3_jax.scenes.scene import ATTRIBUTES, COLOURS, SHAPES, Mention
from rc3_jax.scenes.source import SceneRecords
from rc3_jax.scenes.tasks import MINIATURES, miniature
from tests.scenes import golden

MENTIONS = [
    Mention(*values)
    for values in itertools.product(*((None, *values) for values in ATTRIBUTES.values()))
    if any(values)
]
SORTS = [Mention(s, c) for s, c in itertools.product((None, *SHAPES), (None, *COLOURS)) if s or c]
KINDS = (*QUESTIONS, *STATEMENTS)


def test_every_language_that_has_a_file_is_in_the_list():
    modules = {module.name for module in pkgutil.iter_modules(languages.__path__)}
    assert modules - {"base"} == set(LANGUAGES) == set(golden.CODES)


@pytest.mark.parametrize("code", golden.CODES)
def test_texts_are_what_a_native_would_write(code):
    language = LANGUAGES[code]
    kinds = set()
    for kind, mentioned, expected in golden.sentences(code):
        kinds.add(kind)
        if kind.startswith("caption "):
            mentions = list(map(golden.mention, mentioned.split(" + ")))
            assert language.caption(mentions, int(kind.split()[1])) == expected
        elif kind in KINDS:
            assert language.ask(kind, golden.mention(mentioned)) == expected
        else:
            mentions = map(golden.mention, mentioned.split(", "))
            assert ", ".join(language.forms(m)[kind] for m in mentions) == expected
    assert kinds >= {*KINDS, *(f"caption {frame}" for frame in range(FRAMES))}


@pytest.mark.parametrize("code", golden.CODES)
@settings(max_examples=60, deadline=None)
@given(
    mentions=st.lists(st.sampled_from(MENTIONS), min_size=1, max_size=4, unique=True),
    frame=st.integers(0, FRAMES - 1),
)
def test_caption_says_what_is_mentioned_and_nothing_else(code, mentions, frame):
    text = LANGUAGES[code].caption(mentions, frame)
    stated = [frozenset(mention.named().values()) for mention in mentions]
    assert collections.Counter(golden.said(code, text)) == collections.Counter(stated)


@pytest.mark.parametrize("code", LANGUAGES)
def test_texts_are_well_formed_and_differ(code):
    language = LANGUAGES[code]
    texts = [language.caption([m], frame) for m in MENTIONS for frame in range(FRAMES)]
    texts += [language.caption([m, MENTIONS[0]], 0) for m in MENTIONS[1:]]
    texts += [language.ask(kind, mention) for kind in KINDS for mention in SORTS]
    for text in texts:
        assert len(re.findall("[?.？。]", text)) == 1 and text[-1] in "?.？。"
        assert text[0] == text[0].upper() and text == text.strip()
        assert not re.search(r"\s\s|[{}]|的的|のの", text)
        words = text.lower().split()
        assert not any(one == other for one, other in itertools.pairwise(words))
    assert len(set(texts)) == len(texts)


@pytest.mark.parametrize("code", LANGUAGES)
def test_place_never_spills_over_to_an_object_without_one(code):
    star, placed = Mention("star"), Mention("circle", "red", "large", "top left")
    for frame in range(FRAMES):
        text = LANGUAGES[code].caption([star, placed], frame)
        assert text == LANGUAGES[code].caption([placed, star], frame)


def shouted(mention):
    return {"shouted": " ".join(mention.named().values()).upper()}


def test_language_needs_no_more_than_its_place_in_the_list(monkeypatch):
    asked = {kind: f"{kind} {{shouted}}!" for kind in KINDS}
    toy = Language(shouted, listing(shouted, " & ", ["see {shouted}!"] * FRAMES), asked)
    few = {"train": 1, "dev": 1, "test": 9}
    before = {task: miniature(task, few).splits["test"] for task in MINIATURES}
    monkeypatch.setitem(LANGUAGES, "xx", toy)
    for task in MINIATURES:
        splits = miniature(task, few).splits
        assert list(splits["test"]) == [*before[task], "xx"] and "xx" in splits["train_48"]
        assert all(example.text.isprintable() for example in splits["test"]["xx"])
        if task != "wit":  # there the wording is drawn after what each language says
            assert [e.text for e in splits["test"]["ja"]] == [e.text for e in before[task]["ja"]]
    text = SceneRecords("parallel", "train", 9, 0, ("en", "xx"), ())[0].texts["xx"][0]
    assert text.startswith("See ") and " & " in text and text.endswith("!")
