"""What z depends on: the figures from known similarities, and the similarities themselves."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from rc3_jax.data.corpus import Corpus, open_corpus, run_tokenizer
from rc3_jax.data.example import stacked, visual_fields
from rc3_jax.data.record import DataError, Skips
from rc3_jax.data.tokenizer import PAD_ID
from rc3_jax.evaluation import evaluate
from rc3_jax.evaluation.dependence import (
    dependence_scores,
    shorter_lengths,
    similarities,
    text_relevance,
)
from rc3_jax.models.rc3 import RC3, build_rc3
from rc3_jax.parallel.mesh import one_device_mesh
from rc3_jax.scenes.source import SceneRecords
from rc3_jax.training.run import Run
from tests.evaluation.random_params import random_params
from tests.tiny import tiny_config

ROWS = 5


def _values(proximity, **others) -> dict[str, np.ndarray]:
    proximity = np.array(proximity, np.float32)
    still = {name: proximity for name in ("other_text", "other_image", "text_relevance")}
    changed = {name: np.array(values, np.float32) for name, values in others.items()}
    return {"proximity": proximity} | still | changed


def test_a_z_that_ignores_text_and_image_depends_on_neither():
    scores = dependence_scores(_values([0.2, 0.9, 0.4]), None)
    assert scores["text_dependence"] == scores["image_dependence"] == 0
    assert scores["proximity_text_relevance"] == pytest.approx(1)
    assert "proximity_relevance" not in scores


def test_dependence_is_by_how_much_another_text_or_image_lowers_the_proximity():
    values = _values([1.0, 0.8, 0.6], other_text=[0.5, 0.5, 0.5], other_image=[0.9, 0.7, 0.2])
    scores = dependence_scores(values, np.array([3.0, 2.0, 1.0]))
    assert scores["text_dependence"] == pytest.approx(0.3)
    assert scores["image_dependence"] == pytest.approx(0.2)
    assert scores["proximity_relevance"] == pytest.approx(1)


@pytest.mark.parametrize("levels", [3, 1000])  # with many ties and with hardly any
def test_the_correlation_is_spearmans(levels):
    rng = np.random.default_rng(levels)
    proximity, relevance, known = rng.integers(0, levels, (3, 30)) / levels
    known = known + 0.5 * proximity
    scores = dependence_scores(_values(proximity, text_relevance=relevance), known)
    for name, other in (("relevance", known), ("text_relevance", relevance)):
        ranks = [stats.rankdata(values) for values in (proximity, other)]
        expected = pytest.approx(np.corrcoef(ranks)[0, 1])
        assert scores[f"proximity_{name}"] == expected
    assert 0.1 < scores["proximity_relevance"] < 0.9
    assert dependence_scores(_values(proximity), -known)["proximity_relevance"] == pytest.approx(
        -scores["proximity_relevance"]
    )


def test_what_is_constant_follows_nothing():
    moving, still = [0.1, 0.3, 0.2], [0.5, 0.5, 0.5]
    for values, relevance in ((moving, still), (still, moving)):
        scores = dependence_scores(_values(values, text_relevance=relevance), np.array(relevance))
        assert scores["proximity_relevance"] == scores["proximity_text_relevance"] == 0


def test_the_text_relevance_is_judged_by_the_truth_and_by_length():
    rng = np.random.default_rng(3)
    truth = np.array([0, 0, 0.2, 0.4, 0.4, 1.0, 0, 0.7])
    rho, lengths = truth + rng.normal(0, 0.3, 8), rng.integers(3, 12, 8)
    scores = dependence_scores(_values(rng.random(8), text_relevance=rho), truth, lengths)
    for name, values in (("relevance", rho), ("length", lengths)):
        ranks = [stats.rankdata(np.float32(of)) for of in (values, truth)]
        assert scores[f"{name}_spearman"] == pytest.approx(np.corrcoef(ranks)[0, 1])
    assert scores["relevance_spearman"] > scores["length_spearman"]
    assert scores["unrelated_relevance"] == pytest.approx(rho[[0, 1, 6]].mean())
    unknown = dependence_scores(_values(rho, text_relevance=rho), None, lengths)
    related = dependence_scores(_values(rho, text_relevance=rho), truth + 0.1, lengths)
    assert not {"relevance_spearman", "length_spearman"} & unknown.keys()
    assert "unrelated_relevance" not in unknown | related


def test_the_relevance_of_texts_can_leave_out_what_all_texts_share():
    rng = np.random.default_rng(5)
    truth, texts = rng.random(400), rng.normal(size=(2, 400, 16))
    texts[1] = truth[:, None] * texts[0] + (1 - truth[:, None]) * texts[1]
    texts[..., 0] = 2 + 3 * rng.random((2, 400))
    texts = np.float32(texts / np.linalg.norm(texts, axis=-1, keepdims=True))
    plain, debiased = (text_relevance(*texts, debias) for debias in (False, True))
    np.testing.assert_allclose(plain, np.sum(texts[0] * texts[1], axis=1))
    without = texts - texts.mean(axis=(0, 1))
    expected = np.sum(without[0] * without[1], axis=1) / np.mean(np.sum(without**2, axis=-1))
    np.testing.assert_allclose(debiased, expected, rtol=1e-4, atol=1e-5)


def test_lengths_of_languages_are_made_comparable():
    rows = [
        [("en", "abcd"), ("zh", "ab")],
        [("en", "abcdefgh"), ("zh", "abcd")],
        [("en", "ab" * 3), ("en", "ab" * 3)],
    ]  # means: 6 in English, 3 in Chinese
    np.testing.assert_allclose(shorter_lengths(rows), [4 / 6, 8 / 6, 1])


def test_length_alone_predicts_the_relevance_of_the_generated_texts():
    source = SceneRecords("weak", "heldout", 600, seed=0)
    records = [source[number] for number in range(600)]
    rows = [[(code, text) for code, (text,) in r.texts.items()] for r in records]
    found = stats.spearmanr(shorter_lengths(rows), [r.relevance for r in records]).statistic
    assert found > 0.3


@pytest.fixture(scope="module")
def config():
    config = tiny_config()
    config.evaluation.dependence_rows = ROWS
    return config


@pytest.fixture(scope="module")
def corpus(config):
    return open_corpus(config, Skips())


@pytest.fixture(scope="module")
def tokenizer(config, corpus):
    return run_tokenizer(config, corpus, None)


@pytest.fixture(scope="module")
def model(config, tokenizer):
    return build_rc3(config.model, tokenizer.vocab_size)


@pytest.fixture(scope="module")
def params(config, model):
    return random_params(model, config)


def _rows(config, corpus, tokenizer) -> dict[str, np.ndarray]:
    """Held-out rows whose visual parts differ, of which one has no patches and one no regions."""
    rows = []
    for record in corpus.heldout_weak:
        ids = tokenizer.encode([text for (text,) in record.texts.values()])
        size = config.model.patch.image_size
        fields = visual_fields(record, record.image()[:size, :size], record.boxes, None, config)
        rows.append(fields | dict(zip(("ids_a", "ids_b"), ids, strict=True)))
    batch = stacked(rows)
    batch["use_patches"][1] = False
    batch["use_regions"][3] = False
    return batch


def test_similarities_are_those_of_other_texts_and_images(model, params, config, corpus, tokenizer):
    rows = _rows(config, corpus, tokenizer)
    other = np.array([4, 0, 1, 2, 3])

    def vectors(module: RC3, fields, ids):
        visual = module.encode_visual(fields)
        states, text = module.encode_text(ids)
        mask = ids != PAD_ID
        fused = module.fusion(states, mask, visual.tokens, visual.mask)
        return module.fused_vector(fused, mask), text

    @jax.jit
    def z(fields, ids):
        return model.apply({"params": params}, fields, ids, method=vectors)

    visual = {name: field for name, field in rows.items() if not name.startswith("ids")}
    z_a, text_a = map(np.asarray, z(visual, rows["ids_a"]))
    z_b, text_b = map(np.asarray, z(visual, rows["ids_b"]))
    other_text = np.asarray(z(visual, rows["ids_a"][other])[0])
    moved = {name: field[other] for name, field in visual.items()}
    other_image = np.asarray(z(moved, rows["ids_a"])[0])
    expected = {
        "proximity": np.sum(z_a * z_b, axis=1),
        "other_text": np.sum(other_text * z_b, axis=1),
        "other_image": np.sum(other_image * z_b, axis=1),
        "text_a": text_a,
        "text_b": text_b,
    }
    found = jax.jit(
        lambda params, rows: model.apply({"params": params}, rows, method=similarities)
    )(params, rows | {"other": other})
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, atol=1e-5, err_msg=name)
    for name in ("other_text", "other_image"):
        assert np.abs(expected["proximity"] - expected[name]).max() > 0.01  # it can be seen


@pytest.fixture
def evaluator_of(tokenizer, config):
    """Makes an Evaluator of held-out weak records, with similarities that follow from token ids."""

    class Fake:
        def apply(self, variables, rows, method):
            assert method is similarities
            a, b = rows["ids_a"].sum(axis=1), rows["ids_b"].sum(axis=1)
            hidden = 10.0 * ~rows["use_patches"] + 100.0 * ~rows["use_regions"]
            return {
                "proximity": 1.0 * a,
                "other_text": a - 2.0,
                "other_image": a - variables["params"] - hidden,
                "text_a": jnp.eye(len(b)) * b,
                "text_b": jnp.eye(len(b)),
            }

    def make(records, forms="both") -> evaluate.Evaluator:
        mesh, changed = one_device_mesh(), config.copy_and_resolve_references()
        changed.data.visual_forms = forms
        corpus = Corpus({}, [], records)
        return evaluate.Evaluator(Run(changed, mesh, Fake(), None, corpus, tokenizer, None))

    return make


def test_scores_of_weak_records_are_repeatable_and_know_the_true_relevance(evaluator_of, corpus):
    records = corpus.heldout_weak
    scores = evaluator_of(records).scores(3.0)
    assert set(scores) == {"dependence"}
    assert scores["dependence"]["text_dependence"] == 2
    assert scores["dependence"]["image_dependence"] == 3
    assert evaluator_of(records).scores(3.0) == scores
    rows = [[(code, text) for code, (text,) in r.texts.items()] for r in records]
    expected = stats.spearmanr(shorter_lengths(rows), [r.relevance for r in records]).statistic
    assert scores["dependence"]["length_spearman"] == pytest.approx(expected)
    turned = [dataclasses.replace(r, relevance=-r.relevance) for r in records]
    opposite = evaluator_of(turned).scores(3.0)["dependence"]
    assert opposite["proximity_relevance"] == -scores["dependence"]["proximity_relevance"] != 0
    unknown = [dataclasses.replace(records[0], relevance=None), *records[1:]]
    scores = evaluator_of(unknown).scores(3.0)
    assert "proximity_relevance" not in scores["dependence"]
    assert "proximity_text_relevance" in scores["dependence"]


@pytest.mark.parametrize(("forms", "hidden"), [("both", 0), ("regions", 10), ("patches", 100)])
def test_weak_records_show_what_training_shows(evaluator_of, corpus, forms, hidden):
    bare, *others = corpus.heldout_weak
    bare = dataclasses.replace(bare, boxes=None, features=None)  # its patches are shown always
    scores = evaluator_of([bare, *others], forms).scores(3.0)
    expected = 3 + hidden * len(others) / (1 + len(others))
    assert scores["dependence"]["image_dependence"] == pytest.approx(expected)


def test_languages_that_no_held_out_image_has_are_refused(config, corpus, tokenizer):
    changed = config.copy_and_resolve_references()
    changed.evaluation.languages = ("en", "jp")
    run = Run(changed, one_device_mesh(), None, None, corpus, tokenizer, None)
    with pytest.raises(DataError, match=r"evaluation.languages.*jp.*mean ja\?"):
        evaluate.Evaluator(run)


def test_nothing_held_out_gives_no_scores(evaluator_of, corpus):
    for records in ([], corpus.heldout_weak[:1]):  # one row has no other to be compared with
        scores = evaluator_of(records).scores(3.0)
        assert scores == {}
    assert evaluate.summary(scores) == "" and evaluate.score_tables(scores) == []


def test_scores_in_a_line_and_in_tables():
    cuts = [f"{way}@{k}" for way in ("IR", "TR") for k in (1, 5, 10)]
    languages = {"en": dict.fromkeys(cuts, 0.5) | {"IR@1": 0.2}, "zh": dict.fromkeys(cuts, 1.0)}
    scores = {"retrieval": {"both": languages}, "dependence": {"text_dependence": -0.0625}}
    assert evaluate.summary(scores) == (
        "both: IR@1 60.0% IR@10 75.0% TR@1 75.0%  text_dependence -0.062"
    )
    retrieval, dependence = evaluate.score_tables(scores)
    cells = [list(column.cells) for column in retrieval.columns]
    assert [column.header for column in retrieval.columns] == ["language", *cuts]
    assert cells[0] == ["en", "zh", "mean"] and cells[1] == ["20.0", "100.0", "60.0"]
    assert cells[2] == ["50.0", "100.0", "75.0"]
    assert [list(c.cells) for c in dependence.columns] == [["text_dependence"], ["-0.062"]]
