"""Questions answered by a decoder: its start, its ranking, learning with it, going on from it."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import numpy as np
import pytest

from rc3_jax.config import ConfigError
from rc3_jax.data.tokenizer import FRAME_IDS, PAD_ID
from rc3_jax.downstream.answering import encode_answers
from rc3_jax.downstream.examples import Example, TaskData
from rc3_jax.downstream.finetune import evaluate, finetune
from rc3_jax.downstream.models import build_answerer
from rc3_jax.downstream.pretrained import load_pretrained
from rc3_jax.downstream.scoring import expected_calibration_error
from rc3_jax.downstream.tasks import make_learner
from rc3_jax.parallel.mesh import one_device_mesh
from tests.downstream.colours import COLOURS, picture
from tests.downstream.tuning import CONFIGS, quiet, tuning, write_pretrained
from tests.processes import run_python

ANSWERS = ("red", "a circle", "a square")
"""To red, blue and green pictures; two begin alike."""
MORE = (
    "red circle",
    "a circle",
    "a square",
    "blue circle",
    "red square",
    "a blue one",
    "blue square",
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


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    """A pre-trained model's folder, by system."""

    @functools.cache
    def folder(system):
        return write_pretrained(CONFIGS[system](), tmp_path_factory.mktemp(system))

    return folder


def decoder_tuning(**changes):
    return tuning("xgqa", head="decoder", **changes)


def learner_of(folder, task, **changes):
    """A learner, its parameters shaken so that answers differ, and the pre-trained model."""
    config = decoder_tuning(**changes)
    pretrained = load_pretrained(folder, config.max_length)
    pretrained.model.dropout = 0.0
    learner, batches = make_learner(config, task, pretrained, one_device_mesh())
    rng = np.random.default_rng(0)
    shaken = jax.tree.map(lambda x: x + 0.1 * rng.normal(size=x.shape).astype("f"), learner.params)
    return learner, shaken, pretrained, batches


def by_hand(pretrained, params, batch, answers):
    """Log-likelihoods of first tokens and of answers, `[rows, answers]`; an answer at a time."""
    model = build_answerer(pretrained.system, pretrained.model, pretrained.tokenizer.vocab_size)
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
@pytest.mark.parametrize("system", CONFIGS)
def test_ranking_is_that_of_every_answer_scored_by_hand(folder_of, system):
    task, seen = question_task(MORE), set()
    examples = task.splits["test"]["en"]
    _, params, pretrained, batches = learner_of(folder_of(system), task)
    parts = [by_hand(pretrained, params, batch, MORE) for batch in batches(examples).in_order()]
    first, whole = (np.concatenate(part)[: len(examples)] for part in zip(*parts, strict=True))
    for candidates, twice in ((128, False), (5, False), (5, True)):
        options = dict(candidates=candidates, count_first_twice=twice)
        learner, *_ = learner_of(folder_of(system), task, **options)
        found = learner.score(params, examples, final=True)
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
@pytest.mark.parametrize("system", CONFIGS)
def test_the_loss_is_the_likelihood_of_the_right_answers(folder_of, system):
    answers = (*MORE, "a red circle, a blue square and a green circle")  # longer than questions
    task = question_task(answers)
    learner, params, pretrained, batches = learner_of(folder_of(system), task)
    batch = next(batches(task.splits["train"]["en"]).in_order())
    batch["label"] = np.arange(len(batch["label"]), dtype=np.int32) % len(answers)
    assert (pretrained.tokenizer.encode(answers) != PAD_ID).sum(axis=1).max() > 8
    _, whole = by_hand(pretrained, params, batch, answers)
    expected = -whole[np.arange(len(whole)), batch["label"]].mean()
    loss = jax.jit(learner.loss)(params, batch, jax.random.key(0))
    assert float(loss) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("system", CONFIGS)
def test_the_decoder_starts_from_the_fusion_encoder_and_the_text_tower(folder_of, system):
    pretrained = load_pretrained(folder_of(system), 40)
    learner, *_ = make_learner(decoder_tuning(), question_task(), pretrained, one_device_mesh())
    decoder, trunk = learner.params["decoder"], pretrained.params
    names = ("word_embedding", "position_embedding", "type_embedding", "embedding_norm")
    expected = {name: trunk["text"][name] for name in names}
    expected |= {name: trunk[name] for name in ("masked_lm_head", "word_bias")}
    expected["encoder"] = trunk["fusion"]
    assert jax.tree.structure(decoder) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, decoder, expected)
    own = learner.params if system == "cclm" else learner.params["trunk"]
    jax.tree.map(np.testing.assert_array_equal, own["fusion"], trunk["fusion"])


@pytest.mark.slow
def test_a_table_of_words_of_its_own_is_the_decoders_too(tmp_path):
    config = CONFIGS["cclm"]()
    config.model.tied_decoder = False
    folder, task = write_pretrained(config, tmp_path), question_task()
    learner, _, pretrained, batches = learner_of(folder, task)
    decoder = learner.params["decoder"]
    np.testing.assert_array_equal(decoder["decoder"], pretrained.params["decoder"])
    # Without it, all words are equally likely.
    blank = {name: np.zeros_like(decoder[name]) for name in ("decoder", "word_bias")}
    params = {**learner.params, "decoder": {**decoder, **blank}}
    batch = next(batches(task.splits["train"]["en"]).in_order())
    tokens = (pretrained.tokenizer.encode(ANSWERS) != PAD_ID).sum(axis=1) - 1
    expected = tokens[batch["label"]].mean() * np.log(pretrained.tokenizer.vocab_size)
    assert float(learner.loss(params, batch, jax.random.key(0))) == pytest.approx(expected, 1e-4)


def test_answers_that_the_vocabulary_cannot_tell_apart_are_ranked_once(folder_of):
    answers = ("blue", "red", "ｒｅｄ")
    examples = [
        Example("", str(n), "which", (picture("red", n),), label)
        for n, label in enumerate((1, 2, None))
    ]
    task = TaskData(answers, {"test": {"en": examples}})
    learner, params, pretrained, _ = learner_of(folder_of("rc3"), task)
    _, distinct = encode_answers(answers, pretrained.tokenizer)
    assert distinct.tolist() == [0, 1]
    params["decoder"]["word_bias"] = np.zeros(pretrained.tokenizer.vocab_size, np.float32)
    token = pretrained.tokenizer.encode(["red"])[0, 1]
    params["decoder"]["word_bias"][token] = 100.0  # whatever the picture shows
    found = learner.score(params, examples)
    assert [p["prediction"] for p in found.predictions] == ["red"] * 3
    assert found.scores == {"accuracy": 1 / 3}


def test_every_answer_keeps_its_end(folder_of):
    tokenizer = load_pretrained(folder_of("rc3"), 40).tokenizer.with_length(4)
    ids, _ = encode_answers(MORE, tokenizer)
    lengths = (ids != PAD_ID).sum(axis=1)
    assert ids.shape[1] == lengths.max() == 4
    assert ids[np.arange(len(MORE)), lengths - 1].tolist() == [FRAME_IDS[2]] * len(MORE)


def test_parameters_that_are_no_numbers_give_no_answer(folder_of):
    task = question_task()
    learner, params, *_ = learner_of(folder_of("rc3"), task)
    params["decoder"]["word_bias"] = np.full_like(params["decoder"]["word_bias"], np.nan)
    found = learner.score(params, task.splits["test"]["en"])
    assert {p["prediction"] for p in found.predictions} == {None}
    assert found.scores["accuracy"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("system", CONFIGS)
def test_a_simple_task_is_learned_and_the_head_kept(folder_of, tmp_path, system):
    task, tuned = question_task(), tmp_path / "tuned"
    config = decoder_tuning(epochs=16)
    config.optimizer.lr = 1e-2
    result = finetune(config, task, folder_of(system), tuned, quiet())
    assert result["scores"]["en"]["accuracy"] >= 0.8
    again = evaluate(tuning("xgqa"), task, tuned, console=quiet())
    assert again["scores"] == result["scores"]
    with pytest.raises(ConfigError, match=r"fine-tuned with 'decoder'; set --config.head=decoder"):
        finetune(tuning("xgqa"), task, tuned, tmp_path / "again", quiet())


@pytest.mark.slow
def test_a_model_with_a_class_head_has_no_decoder(folder_of, tmp_path):
    task = question_task(train=8)
    finetune(tuning("xgqa", epochs=1), task, folder_of("rc3"), tmp_path / "tuned", quiet())
    with pytest.raises(ConfigError, match="head='decoder': the model was fine-tuned with 'class'"):
        finetune(decoder_tuning(), task, tmp_path / "tuned", tmp_path / "again", quiet())
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize(
    "task, changes, said",
    [
        ("xgqa", dict(head="sentence"), "head='sentence': use one of class, decoder"),
        ("xvnli", dict(head="decoder"), "answers of xgqa; xvnli has none"),
        ("xgqa", dict(head="decoder", candidates=0), "candidates=0"),
    ],
)
def test_wrong_settings_are_told(folder_of, task, changes, said):
    pretrained = load_pretrained(folder_of("rc3"), 40)
    with pytest.raises(ConfigError, match=said):
        make_learner(tuning(task, **changes), question_task(), pretrained, one_device_mesh())


SHARDED = """
import json, pathlib, sys
import jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from rc3_jax.downstream.pretrained import load_pretrained
from rc3_jax.downstream.tasks import make_learner
from rc3_jax.parallel.mesh import make_mesh, one_device_mesh
from rc3_jax.parallel.rules import shardings
from tests.downstream.test_answering import MORE, decoder_tuning, question_task

config, task = decoder_tuning(candidates=3), question_task(MORE)
config.mesh.update(data=2, fsdp=2, fsdp_threshold=64)
pretrained = load_pretrained(pathlib.Path(FOLDER), 40)
pretrained.model.dropout = 0.0
found = []
for mesh in (one_device_mesh(), make_mesh(config.mesh)):
    learner, batches = make_learner(config, task, pretrained, mesh)
    places = shardings(learner.params, mesh, config.mesh)
    params = jax.device_put(learner.params, places)
    batch = next(batches(task.splits["train"]["en"]).in_order())
    key = jax.device_put(jax.random.key(0), NamedSharding(mesh, PartitionSpec()))
    step = jax.jit(jax.value_and_grad(learner.loss), out_shardings=(None, places))
    loss, gradients = step(params, batch, key)
    scored = learner.score(params, task.splits["test"]["en"], final=True)
    found.append((float(loss), jax.device_get(gradients), scored))
(loss, gradients, scored), (their_loss, theirs, their_scored) = found
assert any(not p.is_fully_replicated for p in jax.tree.leaves(places))
np.testing.assert_allclose(their_loss, loss, rtol=1e-5)
largest = max(np.abs(x).max() for x in jax.tree.leaves(gradients))
for one, other in zip(jax.tree.leaves(gradients), jax.tree.leaves(theirs), strict=True):
    np.testing.assert_allclose(other, one, rtol=0, atol=1e-5 * largest)
for one, other in zip(scored.predictions, their_scored.predictions, strict=True):
    assert (one["id"], one["prediction"]) == (other["id"], other["prediction"])
    np.testing.assert_allclose(other["probability"], one["probability"], rtol=1e-4)
print("equal")
"""


@pytest.mark.slow
@pytest.mark.parametrize("system", CONFIGS)
def test_four_devices_compute_what_one_computes(folder_of, system):
    code = SHARDED.replace("FOLDER", repr(str(folder_of(system))))
    assert run_python(code, devices=4).strip() == "equal"
