"""Re-ranking against `ranking`, recalls and averages against sorted scores, several processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import flax.linen as nn
import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rc3_jax.data.scenes import SceneSource
from rc3_jax.data.tokenizer import PAD_ID
from rc3_jax.evaluation.pair_encoder import PairEncoder, RetrievalData
from rc3_jax.evaluation.rerank import Ranks, rank_recalls, retrieve
from rc3_jax.evaluation.retrieval import visual_rows
from rc3_jax.evaluation.streaming import NEVER
from rc3_jax.models.cclm import build_cclm
from rc3_jax.models.rc3 import build_rc3
from rc3_jax.parallel.mesh import one_device_mesh
from tests.evaluation.random_params import random_params
from tests.evaluation.ranking import UNSCORED, matcher, rescore
from tests.evaluation.test_streaming import exact_scores, sorted_ranks
from tests.processes import FAST_COMPILATION, ROOT, free_port
from tests.tiny import tiny_cclm, tiny_config

VOCAB = 30


class Models:
    """A tiny model of each kind with what it reads, and the tokens of all at once."""

    def __init__(self, kind: str, mesh=None):
        config = tiny_cclm() if kind == "cclm" else tiny_config()
        self.model = (build_cclm if kind == "cclm" else build_rc3)(config.model, VOCAB, mesh)
        self.params = random_params(self.model, config)
        rng = np.random.default_rng(0)
        ids = rng.integers(3, VOCAB - 1, (14, config.data.max_length)).astype(np.int32)
        ids[:, 0] = 0
        ids[np.arange(ids.shape[1]) >= rng.integers(5, ids.shape[1], 14)[:, None]] = PAD_ID
        self.rows = visual_rows(list(SceneSource("retrieval", "heldout", 6, seed=0)), config)
        self.asked = []
        # Image 4 is listed twice and 5 has no text; the last text's image is not there.
        names = np.array([7, 3, 10**12, -5, 0, 6, 0])
        owners = np.array([0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 2, 2, 3, -1])
        self.data = RetrievalData(
            ids, np.where(owners < 0, 99, names[owners]), names, self.chosen_rows
        )
        self.owners = np.searchsorted(sorted(names[:6]), self.data.image_of_text)
        self.owners[-1] = -1

    def chosen_rows(self, chosen):
        self.asked.extend(chosen.tolist())
        return {name: field[chosen % 6] for name, field in self.rows.items()}


@pytest.fixture(scope="module", params=["rc3", "cclm"])
def models(request):
    return Models(request.param)


@pytest.fixture(scope="module")
def encoder(models):
    # Blocks of four texts, and two groups of pairs at a time.
    return PairEncoder(models.model, one_device_mesh(), batch_size=4, pairs=32, memory=1)


@pytest.fixture(scope="module")
def known(models):
    """Similarity and matching logits of each image (in the order of identities) and text."""
    _, places = np.unique(models.data.image_ids, return_index=True)
    rows = {name: field[places] for name, field in models.rows.items()}
    ids = models.data.ids

    @jax.jit
    def encode(params, rows, ids):
        def call(model):
            return model.encode_visual(rows), model.encode_text(ids)

        return nn.apply(call, models.model)({"params": params})

    view, (states, vectors) = encode(models.params, rows, ids)
    images = (view.tokens, view.mask)
    match = matcher(models.model, models.params, images, (states, ids != PAD_ID), 84)
    return exact_scores(*map(np.asarray, (view.vector, vectors))), match


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
def test_reranking_agrees_with_that_of_a_few_images(models, encoder, known, k):
    models.asked.clear()
    result = retrieve(encoder, models.params, models.data, k)
    assert 6 not in models.asked  # the second of equal identities
    assert result.images.tolist() == [-5, 0, 3, 7, 10**12]
    plain, again = by_ranking(known, models.owners, 14 if k is None else max(k, 1))
    expected = (plain, again if k != 0 else plain)
    for all_found, all_right in zip((result.by_vectors, result.by_matching), expected, strict=True):
        for places, right in zip(all_found, all_right, strict=True):
            assert places.dtype == np.int32
            np.testing.assert_array_equal(places, right)
    assert result.by_vectors.text_to_image[-1] == result.by_matching.text_to_image[-1] == NEVER
    # All texts that have an image with all images, and the other one with all that have a text.
    assert result.pairs == {0: 0, None: 13 * 6 + 5}.get(k, result.pairs) <= 13 * 6 + 5


def test_ties_and_what_is_no_number_are_never_first(models, encoder):
    def ranks_of(value) -> Ranks:
        head = jax.tree.map(lambda x: np.full_like(x, value), models.params["matching_head"])
        params = models.params | {"matching_head": head}
        return retrieve(encoder, params, models.data, None).by_matching

    tied, broken = ranks_of(0.0), ranks_of(np.nan)
    own = np.bincount(models.owners[:-1])
    assert tied.image_to_text.tolist() == [1 + 14 - n for n in own if n]
    assert tied.text_to_image.tolist() == [6] * 13 + [NEVER]
    assert {*broken.image_to_text.tolist(), *broken.text_to_image.tolist()} == {NEVER}
    assert set(rank_recalls(broken).values()) == {0.0}


@given(
    scores=hnp.arrays(np.float32, (6, 4), elements=st.sampled_from([-1.0, 0.0, 0.5, np.nan])),
    owners=hnp.arrays(np.int64, 6, elements=st.integers(0, 3)),
)
def test_recalls_are_those_of_sorted_scores(scores, owners):
    """IR by a caption's rank of its image, TR by an image's rank of the best of its captions."""
    described = np.unique(owners)
    places = {
        "IR": sorted_ranks(scores, owners, np.arange(4)),
        "TR": sorted_ranks(scores.T[described], described, owners),
    }
    found = Ranks(np.array(places["TR"], np.int32), np.array(places["IR"], np.int32))
    recalls = rank_recalls(found, (1, 2, 6))
    for name, of_queries in places.items():
        for k in (1, 2, 6):
            assert recalls[f"{name}@{k}"] == sum(place <= k for place in of_queries) / len(
                of_queries
            )


def test_recalls_of_hand_made_ranks():
    found = Ranks(np.array([1, 6, 2], np.int32), np.array([2, NEVER, 11, 1], np.int32))
    assert rank_recalls(found) == pytest.approx(
        {"TR@1": 1 / 3, "TR@5": 2 / 3, "TR@10": 1, "IR@1": 1 / 4, "IR@5": 1 / 2, "IR@10": 1 / 2}
    )


def test_progress_is_told_of_each_batch(models, encoder, monkeypatch):
    told = []
    monkeypatch.setattr(encoder, "_progress", lambda *what: told.append(what))
    retrieve(encoder, models.params, models.data, 2)
    assert [done for stage, done, _ in told if stage == "candidates"] == list(range(1, 9))
    assert told[0] == ("texts", 1, 4) and ("images", 2, 2) in told and told[-1][1:] == (8, 8)


PROCESS = """
import json, sys, jax
port, count, number, devices = sys.argv[1:]
if count != "1":
    jax.distributed.initialize(f"localhost:{port}", int(count), int(number))
from tests.evaluation import test_rerank as t
from tests.evaluation.test_streaming import check_search
from tests.objectives.tile_cases import mesh_of
mesh = mesh_of(2, 2, 2) if devices == "8" else mesh_of(int(count))
assert mesh.size == jax.device_count() == int(count) * int(devices)
check_search(mesh, 0, 45, 50, 40, 6, 16)
models = t.Models("rc3", mesh)
encoder = t.PairEncoder(models.model, mesh, batch_size=6, pairs=48)
found = t.retrieve(encoder, models.params, models.data, 4)
ranks = [r.tolist() for r in (*found.by_vectors, *found.by_matching)]
print(json.dumps({"ranks": ranks, "asked": len(models.asked)}))
"""


def run_processes(count: int, devices: int = 1) -> list[dict]:
    """What each of several processes found."""
    port = str(free_port())
    environment = os.environ | {
        "XLA_FLAGS": f"{FAST_COMPILATION} --xla_force_host_platform_device_count={devices}",
        "JAX_PLATFORMS": "cpu",
        "NPROC": "32",  # see `run_python`
        "PYTHONPATH": str(ROOT),
    }
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    commands = [(port, str(count), str(number), str(devices)) for number in range(count)]
    together = [subprocess.Popen([sys.executable, "-c", PROCESS, *c], **pipes) for c in commands]
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
