"""Scores of the matching head against a loop over all pairs."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from rc3_jax.data.record import Skips
from rc3_jax.data.tokenizer import PAD_ID
from rc3_jax.evaluation import evaluate
from rc3_jax.evaluation.matching import evaluate_matching
from rc3_jax.evaluation.pair_encoder import PairEncoder
from rc3_jax.evaluation.retrieval import evaluate_retrieval, seen, visual_rows
from rc3_jax.training.run import prepare_run
from tests.evaluation.random_params import random_params
from tests.tiny import load_config, shrink, tiny_config

MODES = ("regions", "both")


@pytest.fixture(scope="module")
def run():
    """Image 0 has two English texts, image 2 has no Czech one."""
    config = tiny_config()
    config.evaluation.update(images=7, languages=("en", "cs"), modes=MODES, rerank=-1)
    run = prepare_run(config, skips=Skips(0))
    records = list(run.corpus.heldout)
    both = {**records[0].texts, "en": (*records[0].texts["en"], "a red star")}
    records[0] = dataclasses.replace(records[0], texts=both)
    records[2] = dataclasses.replace(records[2], texts={"en": records[2].texts["en"]})
    corpus = run.corpus._replace(heldout=records, heldout_weak=[])
    return dataclasses.replace(run, corpus=corpus)


@pytest.fixture(scope="module")
def params(run):
    return random_params(run.model, run.config)


@pytest.fixture(scope="module")
def logits(run, params):
    """Language → logit of every text with every image, a pair at a time, and the texts' images."""

    def of_pair(model, row, ids):
        view, (states, _) = model.encode_visual(row), model.encode_text(ids)
        return model.match(model.fusion(states, ids != PAD_ID, view.tokens, view.mask))[0, 1]

    @jax.jit
    def logit(row, ids):
        return run.model.apply({"params": params}, row, ids, method=of_pair)

    records, found = run.corpus.heldout, {}
    images = seen(visual_rows(records, run.config), MODES[0])
    for code in ("en", "cs"):
        texts = [
            (i, text) for i, record in enumerate(records) for text in record.texts.get(code, ())
        ]
        ids = run.tokenizer.encode([text for _, text in texts])
        of_images = [images([i]) for i in range(len(records))]
        pairs = [[logit(row, ids[t : t + 1]) for row in of_images] for t in range(len(texts))]
        found[code] = np.array(pairs), [i for i, _ in texts]
    return found


def with_evaluation(config, **settings):
    return config.model_copy(update={"evaluation": config.evaluation.model_copy(update=settings)})


def scores_of(run, params, **settings):
    """Those of the matching head, and of retrieval by vectors."""
    config, records = with_evaluation(run.config, **settings), run.corpus.heldout
    arguments = records, visual_rows(records, config), run.tokenizer, config
    encoder = PairEncoder(run.model, run.mesh, 4)
    matching = evaluate_matching(encoder, params, *arguments)
    return matching, evaluate_retrieval(encoder, params, *arguments)[""]


def test_all_pairs_are_told_apart_and_ranked(run, params, logits):
    found, _ = scores_of(run, params)
    assert list(found) == [MODES[0]] and list(found[MODES[0]]) == ["en", "cs"]
    for code, (pairs, owners) in logits.items():
        scores, own = found[MODES[0]][code], np.arange(pairs.shape[1]) == np.array(owners)[:, None]
        after = [(owner + 1) % pairs.shape[1] for owner in owners]
        assert scores["pairwise_accuracy"] == np.mean(
            pairs[own] > np.take_along_axis(pairs, np.array(after)[:, None], axis=1)[:, 0]
        )
        for way, logit, right in (("IR", pairs, own), ("TR", pairs.T, own.T)):
            rows = right.any(axis=1)
            best = np.where(right, logit, -np.inf).max(axis=1, keepdims=True)
            above = ((logit >= best) & ~right).sum(axis=1)[rows]
            assert scores[f"{way}@1"] == np.mean(above < 1)
            assert scores[f"{way}@5"] == np.mean(above < 5)
    assert len(logits["en"][1]) == 8 and len(logits["cs"][1]) == 6
    values = [of["pairwise_accuracy"] for of in found[MODES[0]].values()]
    assert set(values) - {0, 1}, "not all pairs may be alike"


def test_candidates_that_are_not_all_are_those_nearest_by_vectors(run, params):
    one, by_vectors = scores_of(run, params, rerank=1)
    for code, recalls in by_vectors[MODES[0]].items():
        assert {name: one[MODES[0]][code][name] for name in recalls} == recalls
    three, _ = scores_of(run, params, rerank=3)
    every, _ = scores_of(run, params)
    assert three != one and three != every


@pytest.mark.parametrize(
    "change", [dict(rerank=0), dict(modes=("regions",))], ids=["not wanted", "no mode"]
)
def test_the_evaluator_leaves_them_out(run, params, change):
    records = [dataclasses.replace(r, boxes=None, features=None) for r in run.corpus.heldout]
    corpus = run.corpus._replace(heldout=records)
    config = with_evaluation(run.config, **change)
    scores = evaluate.Evaluator(dataclasses.replace(run, config=config, corpus=corpus)).scores(
        params
    )
    assert "matching" not in scores


def test_one_image_has_no_other(run, params):
    corpus = run.corpus._replace(heldout=run.corpus.heldout[:1])
    scores = evaluate.Evaluator(dataclasses.replace(run, corpus=corpus)).scores(params)
    assert "retrieval" in scores and "matching" not in scores


def test_the_evaluator_shows_them(run, params):
    scores = evaluate.Evaluator(run).scores(params)
    assert scores["matching"] == scores_of(run, params)[0]
    mean = np.mean([of["pairwise_accuracy"] for of in scores["matching"][MODES[0]].values()])
    assert f"matching, {MODES[0]}: {mean:.1%} of pairs, re-ranked" in evaluate.summary(scores)
    table = next(t for t in evaluate.score_tables(scores) if "matching" in str(t.title))
    assert list(table.columns[1].cells)[-1] == f"{100 * mean:.1f}"


@pytest.mark.slow
def test_models_of_cclm_have_them_too():
    config = shrink(load_config("cclm_demo"))
    config.evaluation.update(rerank=2, languages=("en",))
    run = prepare_run(config, skips=Skips(0))
    [(mode, found)] = evaluate.Evaluator(run).scores(run.create_state().params)["matching"].items()
    assert mode == "patches" and 0 <= found["en"]["pairwise_accuracy"] <= 1
