"""Heads of the tasks: how they start, their loss and their scores, against sums done by hand.

Those of CCLM are compared with recorded outputs too, see tests/parity/test_downstream_heads.py.
"""

from __future__ import annotations

import functools
import re

import flax.linen as nn
import jax
import ml_collections
import numpy as np
import pytest

from rc3_jax.data.tokenizer import FRAME_IDS, PAD_ID
from rc3_jax.evaluation.ranking import ranks_of_right
from rc3_jax.parallel.mesh import one_device_mesh
from rc3_jax.scenes.tasks import miniature
from rc3_jax.settings import ConfigError
from rc3_jax.tasks.base import Example, TaskData
from rc3_jax.tasks.batches import picture_fields
from rc3_jax.tasks.classification import encode_answers
from rc3_jax.tasks.evaluate import evaluate
from rc3_jax.tasks.finetune import finetune
from rc3_jax.tasks.make_head import make_head
from rc3_jax.tasks.models import task_model
from rc3_jax.tasks.scoring import expected_calibration_error
from rc3_jax.training.load import load_model
from tests.processes import run_python
from tests.tasks.colours import COLOURS, picture
from tests.tasks.tuning import CONFIGS, tuning
from tests.tiny import quiet, write_pretrained

ANSWERS = ("red", "a circle", "a square")
"""To red, blue and green pictures; two begin alike."""
MORE = (
    *("red circle", "a circle", "a square", "blue circle"),
    *("red square", "a blue one", "blue square"),
)
"""Most are as long as one another, so that each can be the likeliest."""


def questions(split: str, code: str, count: int) -> list[Example]:
    asked = {"en": "which one", "de": "welches"}[code]
    colours = [list(COLOURS)[number % 3] for number in range(count)]
    return [
        Example("", str(n), asked, (picture(colour, n + 1000 * len(split)),), n % 3)
        for n, colour in enumerate(colours)
    ]


def question_task(answers=ANSWERS, train: int = 48, test: int = 13) -> TaskData:
    """Asks for the colour of a picture; fewer test rows than whole batches have."""
    splits = {"train": {"en": train}, "dev": {"en": 12}, "test": {"en": test, "de": test}}
    return TaskData(
        answers,
        {
            split: {code: questions(split, code, count) for code, count in sizes.items()}
            for split, sizes in splits.items()
        },
    )


def two_red_pictures(count: int) -> list[Example]:
    """True for half of the pairs; one picture alone tells three quarters."""
    drawn = [("red", "red"), ("red", "blue"), ("red", "red"), ("blue", "red")]
    examples = []
    for number in range(count):
        colours = drawn[number % 4]
        shown = tuple(picture(c, 1000 * count + 2 * number + i) for i, c in enumerate(colours))
        examples.append(Example("", str(number), "red", shown, 1 - number % 2))
    return examples


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    """A pre-trained model's folder, by system."""

    @functools.cache
    def folder(system):
        return write_pretrained(CONFIGS[system](), tmp_path_factory.mktemp(system))

    return folder


def decoder_tuning(**changes):
    return tuning("xgqa", head="decoder", **changes)


def head_of(folder, task, config=None):
    """A head, its parameters shaken so that answers differ, and the pre-trained model."""
    config = config or decoder_tuning()
    pretrained = load_model(folder, config.max_length).with_settings(dropout=0.0)
    head = make_head(config, task, pretrained, one_device_mesh())
    rng = np.random.default_rng(0)
    shaken = jax.tree.map(lambda x: x + 0.1 * rng.normal(size=x.shape).astype("f"), head.params)
    return head, shaken, pretrained


def by_hand(pretrained, params, batch, answers):
    """Log-likelihoods of first tokens and of answers, `[rows, answers]`; an answer at a time."""
    model, _ = task_model(pretrained, "answers", 0, one_device_mesh())
    sequences = [ids[ids != PAD_ID] for ids in pretrained.tokenizer.encode(answers)]

    def logits_of_all(model, rows):
        question = model.read_question(rows, batch["ids"])
        asked = [np.tile(ids, (len(batch["ids"]), 1)) for ids in sequences]
        return [model.decode(ids, question) for ids in asked]

    rows = {name: value for name, value in batch.items() if name not in ("ids", "label")}
    all_logits = jax.jit(nn.apply(logits_of_all, model))({"params": params}, rows)
    firsts, wholes = [], []
    for ids, logits in zip(sequences, all_logits, strict=True):
        logits = np.asarray(logits, np.float64)
        known = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        picked = known[:, np.arange(len(ids) - 1), ids[1:]]
        firsts.append(picked[:, 0])
        wholes.append(picked.sum(axis=1))
    return np.stack(firsts, axis=1), np.stack(wholes, axis=1)


@pytest.mark.slow
def test_ranking_is_that_of_every_answer_scored_by_hand(folder_of):
    task, seen = question_task(MORE), set()
    examples = task.splits["test"]["en"]
    head, params, pretrained = head_of(folder_of("rc3"), task)
    parts = [by_hand(pretrained, params, b, MORE) for b in head.batches(examples).in_order()]
    first, whole = (np.concatenate(part)[: len(examples)] for part in zip(*parts, strict=True))
    for candidates, twice in ((128, False), (5, False), (5, True)):
        config = decoder_tuning(candidates=candidates, count_first_twice=twice)
        found = head_of(folder_of("rc3"), task, config)[0].score(params, examples, final=True)
        scores = whole + first if twice else whole
        shares = np.zeros(scores.shape)
        order = np.argsort(-first.round(5), axis=1, kind="stable")  # equal first tokens tie
        for row, chosen in enumerate(order[:, :candidates]):
            likelihoods = np.exp(scores[row, chosen] - scores[row, chosen].max())
            shares[row, chosen] = likelihoods / likelihoods.sum()
        best = shares.argmax(axis=1)
        labels = [example.label for example in examples]
        assert [p["prediction"] for p in found.predictions] == [MORE[at] for at in best]
        assert [p["id"] for p in found.predictions] == [example.identity for example in examples]
        probabilities = [p["probability"] for p in found.predictions]
        np.testing.assert_allclose(probabilities, shares.max(axis=1), rtol=1e-4)
        assert found.scores["accuracy"] == np.mean(best == labels)
        error = expected_calibration_error(shares, labels)
        assert found.scores["ECE"] == pytest.approx(error, abs=1e-4)
        seen.add(tuple(np.round(probabilities, 3)))
    assert len(seen) == 3  # each of the settings counts


@pytest.mark.slow
def test_the_loss_is_the_likelihood_of_the_right_answers(folder_of):
    answers = (*MORE, "a red circle, a blue square and a green circle")  # longer than questions
    task = question_task(answers)
    head, params, pretrained = head_of(folder_of("rc3"), task)
    batch = next(head.batches(task.splits["train"]["en"]).in_order())
    batch["label"] = np.arange(len(batch["label"]), dtype=np.int32) % len(answers)
    assert (pretrained.tokenizer.encode(answers) != PAD_ID).sum(axis=1).max() > 8
    _, whole = by_hand(pretrained, params, batch, answers)
    expected = -whole[np.arange(len(whole)), batch["label"]].mean()
    loss = jax.jit(head.loss)(params, batch, jax.random.key(0))
    assert float(loss) == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("system", CONFIGS)
def test_the_decoder_starts_from_the_fusion_encoder_and_the_text_tower(folder_of, system):
    head, _, pretrained = head_of(folder_of(system), question_task())
    decoder, trunk = head.params["decoder"], pretrained.params
    names = ("word_embedding", "position_embedding", "type_embedding", "embedding_norm")
    expected = {name: trunk["text"][name] for name in names}
    expected |= {name: trunk[name] for name in ("masked_lm_head", "word_bias")}
    expected["encoder"] = trunk["fusion"]
    assert jax.tree.structure(decoder) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, decoder, expected)
    own = head.params if system == "cclm" else head.params["trunk"]
    jax.tree.map(np.testing.assert_array_equal, own["fusion"], trunk["fusion"])


@pytest.mark.slow
def test_a_table_of_words_of_its_own_is_the_decoders_too(tmp_path):
    config = CONFIGS["cclm"]()
    config.model.tied_decoder = False
    folder, task = write_pretrained(config, tmp_path), question_task()
    head, _, pretrained = head_of(folder, task)
    decoder = head.params["decoder"]
    np.testing.assert_array_equal(decoder["decoder"], pretrained.params["decoder"])
    # Without it, all words are equally likely.
    blank = {name: np.zeros_like(decoder[name]) for name in ("decoder", "word_bias")}
    params = {**head.params, "decoder": {**decoder, **blank}}
    batch = next(head.batches(task.splits["train"]["en"]).in_order())
    tokens = (pretrained.tokenizer.encode(ANSWERS) != PAD_ID).sum(axis=1) - 1
    expected = tokens[batch["label"]].mean() * np.log(pretrained.tokenizer.vocab_size)
    assert float(head.loss(params, batch, jax.random.key(0))) == pytest.approx(expected, 1e-4)


def test_equal_answers_are_ranked_once_and_nan_gives_none(folder_of):
    answers = ("blue", "red", "ｒｅｄ")
    examples = [
        Example("", str(n), "which", (picture("red", n),), label)
        for n, label in enumerate((1, 2, None))
    ]
    task = TaskData(answers, {"test": {"en": examples}})
    head, params, pretrained = head_of(folder_of("rc3"), task)
    _, distinct = encode_answers(answers, pretrained.tokenizer)
    assert distinct.tolist() == [0, 1]
    params["decoder"]["word_bias"] = np.zeros(pretrained.tokenizer.vocab_size, np.float32)
    token = pretrained.tokenizer.encode(["red"])[0, 1]
    params["decoder"]["word_bias"][token] = 100.0  # whatever the picture shows
    found = head.score(params, examples)
    assert [p["prediction"] for p in found.predictions] == ["red"] * 3
    assert found.scores == {"accuracy": 1 / 3}
    params["decoder"]["word_bias"] = np.full_like(params["decoder"]["word_bias"], np.nan)
    found = head.score(params, examples, final=True)
    assert {p["prediction"] for p in found.predictions} == {None}
    assert found.scores == {"accuracy": 0}


def test_every_answer_keeps_its_end(folder_of):
    tokenizer = load_model(folder_of("rc3"), 40).tokenizer.with_length(4)
    ids, _ = encode_answers(MORE, tokenizer)
    lengths = (ids != PAD_ID).sum(axis=1)
    assert ids.shape[1] == lengths.max() == 4
    assert ids[np.arange(len(MORE)), lengths - 1].tolist() == [FRAME_IDS[2]] * len(MORE)


@pytest.mark.slow
@pytest.mark.parametrize("system", CONFIGS)
def test_retrieval_scores_are_those_of_all_vectors_and_pairs(folder_of, system):
    data = miniature("xflickrco", sizes={"train": 1, "dev": 1, "test": 12})
    examples = data.splits["test"]["de"]
    head, params, pretrained = head_of(folder_of(system), data, tuning("xflickrco", rerank=-1))
    scores = head.score(params, examples, final=True).scores
    bound = pretrained.build().bind({"params": params})
    settings = ml_collections.ConfigDict(dict(model=pretrained.settings))
    mode = "both" if pretrained.settings.roi.regions else "patches"
    rows = [picture_fields(e.pictures[0], settings, mode) for e in examples]
    visual = bound.encode_visual({k: np.stack([row[k] for row in rows]) for k in rows[0]})
    ids = pretrained.tokenizer.encode([e.text for e in examples])
    states, texts = bound.encode_text(ids)
    count = len(examples)
    text, image = np.divmod(np.arange(count * count), count)
    fused = bound.fusion(
        states[text], ids[text] != PAD_ID, visual.tokens[image], visual.mask[image]
    )
    matching = np.asarray(bound.match(fused)[:, 1]).reshape(count, count)
    by_vectors = np.asarray(texts @ visual.embedding.T)
    for prefix, found in (("", by_vectors), ("re-ranked ", matching)):
        for name, values in (("IR", found), ("TR", found.T)):
            for k in (1, 5, 10):
                share = np.mean(ranks_of_right(values, np.eye(count, dtype=bool)) <= k)
                assert scores[f"{prefix}{name}@{k}"] == pytest.approx(share)


@pytest.mark.slow
def test_questions_are_learned_and_the_head_kept(folder_of, tmp_path):
    task, tuned = question_task(), tmp_path / "tuned"
    config = decoder_tuning(epochs=24)
    config.optimizer.lr = 1e-2
    result = finetune(config, task, folder_of("rc3"), tuned, quiet())
    assert result["scores"]["en"]["accuracy"] >= 0.8
    again = evaluate(tuning("xgqa"), task, tuned, console=quiet())
    assert again["scores"] == result["scores"]
    with pytest.raises(ConfigError, match="set --config.head=decoder"):
        finetune(tuning("xgqa"), task, tuned, tmp_path / "again", quiet())
    assert not (tmp_path / "again").exists()
    make_head(decoder_tuning(), task, load_model(tuned, 40), one_device_mesh())


@pytest.mark.slow
def test_two_pictures_are_learned_with_cclm(folder_of, tmp_path):
    sizes = {"train": 96, "dev": 12, "test": 16}
    splits = {split: {"en": two_red_pictures(count)} for split, count in sizes.items()}
    data = TaskData(("false", "true"), splits)
    tuned = tmp_path / "tuned"
    result = finetune(tuning("marvl", 8), data, folder_of("cclm"), tuned, quiet())
    assert result["scores"]["en"]["accuracy"] >= 0.9
    again = evaluate(tuning("marvl"), data, tuned, console=quiet())
    assert again["scores"] == result["scores"]


@pytest.mark.parametrize(
    "task, head, tuned_for, named",
    [
        ("xgqa", "sentence", None, "head.*class, decoder"),
        ("xvnli", "decoder", None, "head of xvnli"),
        ("xgqa", "decoder", {"task": "xgqa", "classes": ANSWERS}, "head='decoder'"),
        ("xgqa", "class", {"task": "xvnli"}, "xvnli"),
        ("xgqa", "class", {"task": "xgqa", "classes": ("a", "b")}, "2 classes"),
    ],
)
def test_a_head_that_does_not_fit_is_refused(folder_of, monkeypatch, task, head, tuned_for, named):
    for name in ("class_head", "answer_head"):
        monkeypatch.setattr(f"rc3_jax.tasks.make_head.{name}", lambda *_: None)
    pretrained = load_model(folder_of("rc3"), 40)
    tuned = pretrained._replace(**tuned_for or {})
    given = question_task(), tuned, one_device_mesh()
    with pytest.raises(ConfigError, match=named) as refused:
        make_head(tuning(task, head=head), *given)
    advice = str(refused.value)
    if fitting := re.search(r"set --config\.head=(\w+)|; use one of (\w+)", advice):
        make_head(tuning(task, head=fitting[1] or fitting[2]), *given)
    assert tuned_for is None or "start from the pre-trained model" in advice
    if tuned_for:
        make_head(tuning(task, head=head), question_task(), pretrained, one_device_mesh())


@pytest.mark.slow
def test_four_devices_compute_what_one_computes(folder_of):
    code = "import pathlib; from tests.tasks.sharded_heads import main; main(pathlib.Path({!r}))"
    run_python(code.format(str(folder_of("rc3"))), devices=4)
