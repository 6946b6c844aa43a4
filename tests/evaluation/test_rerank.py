"""Re-ranking against `rescore`, on several devices and in several processes too."""

from __future__ import annotations

import json
import subprocess
import sys

import flax.linen as nn
import jax
import numpy as np
import pytest

from rc3_jax.data.tokenizer import PAD_ID
from rc3_jax.evaluation.pair_encoder import PairEncoder
from rc3_jax.evaluation.ranking import NEVER, Ranks, rank_recalls
from rc3_jax.evaluation.rerank import retrieve
from rc3_jax.parallel.mesh import one_device_mesh
from tests.evaluation.ranking import UNSCORED, exact_scores, matcher, rescore, sorted_ranks
from tests.evaluation.search_process import Search
from tests.processes import environment, free_port


@pytest.fixture(scope="module", params=["rc3", "cclm"])
def search(request):
    return Search(request.param)


@pytest.fixture(scope="module")
def encoder(search):
    # Blocks of four texts, and two groups of pairs at a time.
    return PairEncoder(search.model, one_device_mesh(), batch_size=4, pairs=32, memory=1)


@pytest.fixture(scope="module")
def known(search):
    """Similarity and matching logits of each image (in the order of identities) and text."""
    _, places = np.unique(search.data.image_ids, return_index=True)
    rows = {name: field[places] for name, field in search.rows.items()}
    ids = search.data.ids

    @jax.jit
    def encode(params, rows, ids):
        def call(model):
            return model.encode_visual(rows), model.encode_text(ids)

        return nn.apply(call, search.model)({"params": params})

    view, (states, vectors) = encode(search.params, rows, ids)
    images = (view.tokens, view.mask)
    match = matcher(search.model, search.params, images, (states, ids != PAD_ID), 84)
    return exact_scores(*map(np.asarray, (view.embedding, vectors))), match


def by_ranking(known, owners, k: int) -> tuple[Ranks, Ranks]:
    """Ranks by the vectors and after `rescore`."""
    similarity, match = known
    scores = rescore(similarity, k, match)
    both = []
    for direction, names, groups in (
        (scores.image_to_text, np.arange(6), owners),
        (scores.text_to_image, owners, np.arange(6)),
    ):
        first = similarity if direction is scores.image_to_text else similarity.T
        plain = sorted_ranks(first, names, groups)
        again = sorted_ranks(direction, names, groups)
        held = ((direction > UNSCORED) & (names[:, None] == groups)).any(axis=1)
        both.append((plain, np.where(held, again, plain)))
    (images, images_again), (texts, texts_again) = both
    rows = np.unique(owners[owners >= 0])
    return Ranks(np.array(images)[rows], np.array(texts)), Ranks(images_again[rows], texts_again)


@pytest.mark.parametrize("k", [0, 1, 3, 8, None])
def test_reranking_agrees_with_that_of_a_few_images(search, encoder, known, k):
    search.asked.clear()
    result = retrieve(encoder, search.params, search.data, k)
    assert 6 not in search.asked  # the second of equal identities
    assert result.images.tolist() == [-5, 0, 3, 7, 10**12]
    plain, again = by_ranking(known, search.owners, 14 if k is None else max(k, 1))
    expected = (plain, again if k != 0 else plain)
    for all_found, all_right in zip((result.by_vectors, result.by_matching), expected, strict=True):
        for places, right in zip(all_found, all_right, strict=True):
            assert places.dtype == np.int32
            np.testing.assert_array_equal(places, right)
    assert result.by_vectors.text_to_image[-1] == result.by_matching.text_to_image[-1] == NEVER
    # All texts that have an image with all images, and the other one with all that have a text.
    assert result.pairs == {0: 0, None: 13 * 6 + 5}.get(k, result.pairs) <= 13 * 6 + 5


def test_ties_and_what_is_no_number_are_never_first(search, encoder):
    def ranks_of(value) -> Ranks:
        head = jax.tree.map(lambda x: np.full_like(x, value), search.params["matching_head"])
        params = search.params | {"matching_head": head}
        return retrieve(encoder, params, search.data, None).by_matching

    tied, broken = ranks_of(0.0), ranks_of(np.nan)
    own = np.bincount(search.owners[:-1])
    assert tied.image_to_text.tolist() == [1 + 14 - n for n in own if n]
    assert tied.text_to_image.tolist() == [6] * 13 + [NEVER]
    assert {*broken.image_to_text.tolist(), *broken.text_to_image.tolist()} == {NEVER}
    assert set(rank_recalls(broken).values()) == {0.0}


def test_progress_counts_the_batches_of_each_stage(search, encoder, monkeypatch):
    calls = []
    monkeypatch.setattr(encoder, "_progress", lambda *call: calls.append(call))
    retrieve(encoder, search.params, search.data, 2)
    assert [done for stage, done, _ in calls if stage == "pairs"] == list(range(1, 9))
    assert calls[0] == ("texts", 1, 4) and ("images", 2, 2) in calls and calls[-1][1:] == (8, 8)


def test_what_cannot_be_searched_is_refused(search, encoder):
    no_texts = search.data._replace(ids=search.data.ids[:0])
    for broken in (
        lambda: retrieve(encoder, search.params, search.data, -1),
        lambda: retrieve(encoder, search.params, no_texts),
        lambda: PairEncoder(search.model, one_device_mesh(), pairs=0),
    ):
        with pytest.raises(ValueError):
            broken()


def run_processes(count: int, devices: int = 1) -> list[dict]:
    """What each of several processes found."""
    pipes = dict(
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(devices)
    )
    command = [
        sys.executable,
        "-m",
        "tests.evaluation.search_process",
        str(free_port()),
        str(count),
    ]
    together = [subprocess.Popen([*command, str(number)], **pipes) for number in range(count)]
    try:
        ended = [process.communicate(timeout=300) for process in together]
    finally:
        for process in together:
            process.kill()
    for process, (_, errors) in zip(together, ended, strict=True):
        assert process.returncode == 0, errors[-3000:]
    return [json.loads(output.splitlines()[-1]) for output, _ in ended]


@pytest.mark.slow
def test_devices_and_processes_share_the_images_and_find_the_same():
    alone, eight, pair, three = (run_processes(*c) for c in ((1,), (1, 8), (2,), (3,)))
    for together in (alone, eight, pair, three):
        assert all(found["ranks"] == alone[0]["ranks"] for found in together)
    for together in (pair, three):
        assert all(len(together) * p["asked"] == alone[0]["asked"] for p in together)
