"""Questions and statements against sentences written by hand, and their truth."""

import itertools
import re

import pytest

from rc3_jax.data.grammar import COLOURS, LANGUAGES, SHAPES, Mention
from rc3_jax.data.scenes import Scene, SceneObject
from rc3_jax.downstream.questions import (
    ANSWERS,
    PLAIN_FRAMES,
    QUESTIONS,
    STATEMENTS,
    Caption,
    Hypothesis,
    Question,
    Statement,
)
from tests.downstream.golden_phrases import PHRASES, ROWS
from tests.downstream.golden_sentences import GREEN_SHAPE, RED_STAR, SENTENCES

SORTS = [
    Mention(shape, colour)
    for shape, colour in itertools.product((None, *SHAPES), (None, *COLOURS))
    if shape or colour
]
ASKED = [Question(kind, mention) for kind in QUESTIONS for mention in SORTS]
STATED = [Statement(kind, mention) for kind in STATEMENTS for mention in SORTS]


def scene(*objects):
    return Scene(tuple(SceneObject(*words, (0.1, 0.1, 0.4, 0.4)) for words in objects), (255,) * 3)


SCENE = scene(
    ("star", "red", "small", "top left"),
    ("star", "green", "large", "top right"),
    ("circle", "red", "large", "bottom left"),
)
NO_STAR = scene(("square", "red", "small", "top left"), ("cross", "blue", "small", "top right"))
ONE_RED_STAR = scene(("star", "red", "large", "top left"), ("cross", "red", "small", "top right"))


@pytest.mark.parametrize(("form", "language", "row", "expected"), PHRASES)
def test_noun_phrases_agree(form, language, row, expected):
    assert [form(language, mention) for mention in ROWS[row]] == expected.split("|")


@pytest.mark.parametrize(("said", "expected"), [(said, texts) for said, *texts in SENTENCES])
def test_sentence_is_what_a_native_would_write(said, expected):
    assert [said.text(language) for language in LANGUAGES] == expected


def test_every_kind_is_written_by_hand():
    assert {said.kind for said, *_ in SENTENCES} == {*QUESTIONS, *STATEMENTS}


@pytest.mark.parametrize("language", LANGUAGES)
def test_sentences_are_well_formed_and_differ(language):
    stops = {"zh": "？。", "ja": "？。"}.get(language, "?.")
    texts = [said.text(language) for said in ASKED + STATED]
    for number, text in enumerate(texts):
        assert text[-1] == stops[number >= len(ASKED)]
        assert len(re.findall("[?.？。]", text)) == 1
        assert text[0] == text[0].upper() and text == text.strip()
        assert not re.search(r"\s\s|[{}]|的的|のの", text)
        words = text.lower().split()
        assert not any(one == other for one, other in itertools.pairwise(words))
    assert len(set(texts)) == len(texts)


@pytest.mark.parametrize("language", LANGUAGES)
def test_hypotheses_do_not_claim_that_one_sees(language):
    mention = Mention("star", "red", None, "top left")
    told = [Hypothesis(mention, frame).text(language).lower() for frame in PLAIN_FRAMES]
    assert len(set(told)) == len(PLAIN_FRAMES)
    seeing = "shows|see|zeigt|sehen|montre|voit|ukazuje|vidíme|看到|描か"
    assert not re.search(seeing, " ".join(told))


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        (Question("colour", Mention("circle")), "red"),
        (Question("colour", Mention("star", None, "large")), "green"),
        (Question("shape", Mention(None, "green")), "star"),
        (Question("shape", Mention(place="bottom left")), "circle"),
        (Question("place", Mention("star", "red")), "top left"),
        (Question("count", Mention("star")), "2"),
        (Question("count", Mention("cross")), "0"),
        (Question("count", Mention("star", "red")), "1"),
        (Question("exists", Mention("circle", "red")), "yes"),
        (Question("exists", Mention("circle", "green")), "no"),
    ],
)
def test_answers_are_true(question, answer):
    assert question.answer(SCENE) == answer
    assert answer in ANSWERS


@pytest.mark.parametrize("mention", [Mention("star"), Mention("cross")])
def test_question_about_no_object_or_several_has_no_answer(mention):
    with pytest.raises(ValueError, match=r"[02] objects fit .*; mention one alone"):
        Question("colour", mention).answer(SCENE)


def test_answers_are_listed_once():
    assert len(set(ANSWERS)) == len(ANSWERS) == 2 + 5 + 6 + 5 + 4


# Of pictures with so many stars on the left and on the right, the statements that are true.
@pytest.mark.parametrize(
    ("left", "right", "true"),
    [
        (NO_STAR, NO_STAR, {"neither"}),
        (SCENE, NO_STAR, {"only left"}),
        (NO_STAR, SCENE, {"only right"}),
        (SCENE, ONE_RED_STAR, {"both"}),
        (ONE_RED_STAR, SCENE, {"both"}),
        (SCENE, SCENE, {"both"}),
    ],
)
def test_statements_are_true_or_false(left, right, true):
    star = Mention("star")
    assert {kind for kind in STATEMENTS if Statement(kind, star).holds(left, right)} == true


def test_statement_is_about_objects_that_are_all_it_says():
    assert not Statement("both", RED_STAR).holds(SCENE, NO_STAR)
    assert Statement("both", RED_STAR).holds(SCENE, ONE_RED_STAR)
    assert Statement("only left", GREEN_SHAPE).holds(SCENE, NO_STAR)


@pytest.mark.parametrize(
    ("mention", "covered", "verdict"),
    [
        (Mention("star", "red", None, "top left"), "top right", "entailment"),
        (Mention("star", "red", "large", "top left"), "top right", "contradiction"),
        (Mention("circle", None, None, "bottom right"), "top right", "contradiction"),
        (Mention("star", "red", None, "top left"), "top left", "neutral"),
        (Mention("cross", None, None, "top left"), "top left", "neutral"),
    ],
)
def test_verdict_depends_on_what_is_shown(mention, covered, verdict):
    assert Hypothesis(mention, 0).verdict(SCENE, covered) == verdict


def test_caption_is_each_languages_own():
    caption = Caption({"en": (RED_STAR,), "fr": (GREEN_SHAPE,)}, frame=0)
    assert caption.text("en") == "There is a red star."
    assert caption.text("fr") == "Il y a une forme verte."
