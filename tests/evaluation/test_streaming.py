"""Streamed ranks against sorting by brute force, and re-ranking against `ranking`."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tracemalloc

import flax.linen as nn
import jax
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rc3_jax.data.scenes import SceneSource
from rc3_jax.data.tokenizer import PAD_ID
from rc3_jax.evaluation import streaming
from rc3_jax.evaluation.pair_encoder import PairEncoder, RetrievalData
from rc3_jax.evaluation.ranking import UNSCORED, matcher, rescore
from rc3_jax.evaluation.rerank import Ranks, rank_recalls, retrieve
from rc3_jax.evaluation.retrieval import visual_rows
from rc3_jax.evaluation.streaming import NEVER, pair_scores, ranks, top_k
from rc3_jax.models.cclm import build_cclm
from rc3_jax.models.rc3 import build_rc3
from rc3_jax.parallel.mesh import one_device_mesh
from tests.evaluation.random_params import random_params
from tests.processes import FAST_COMPILATION, ROOT, run_python
from tests.tiny import tiny_cclm, tiny_config

VOCAB = 30


def unit(rng, count: int, size: int) -> np.ndarray:
    vectors = rng.standard_normal((count, size)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def exact_scores(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """What `pair_scores` says it computes, by 64-bit whole numbers."""
    if x.shape[1] > streaming.EXACT_SIZE:
        parts = np.array_split(np.arange(x.shape[1]), [streaming.EXACT_SIZE])
        return sum(exact_scores(x[:, part], y[:, part]) for part in parts)

    def digits(vectors):
        rest, found = vectors.astype(np.float64) * 128, []
        for _ in range(3):
            found.append(np.round(rest))
            rest = (rest - found[-1]) * 256
        return found

    numbers = np.isfinite(x).all(1)[:, None] & np.isfinite(y).all(1)
    left, right = ([d.astype(np.int64) for d in digits(np.nan_to_num(v))] for v in (x, y))
    score = np.float32(0)
    for both in (3, 2, 1, 0):
        pairs = [(i, both - i) for i in range(3) if 0 <= both - i < 3]
        total = sum(left[i] @ right[j].T for i, j in pairs).astype(np.float32)
        score = score / np.float32(256) + total
    return np.where(numbers, score / np.float32(2**14), np.float32(np.nan))


def sorted_ranks(scores, query_groups, item_groups) -> list[int]:
    """Puts all items in order, one query after the other."""
    found = []
    for row, group in zip(scores, query_groups, strict=True):
        right = [s for s, g in zip(row, item_groups, strict=True) if g == group and not np.isnan(s)]
        wrong = [s for s, g in zip(row, item_groups, strict=True) if g != group]
        before = [s for s in wrong if np.isnan(s) or (right and s >= max(right))]
        found.append(1 + len(before) if right else NEVER)
    return found


def search(seed: int, queries: int, items: int, size: int):
    """Vectors that repeat and some that are no numbers; identities need 64 bits."""
    rng = np.random.default_rng(seed)
    pool = unit(rng, max(2, items // 3), size)
    x, y = (np.concatenate([pool, unit(rng, 3, size)]) for _ in range(2))
    x, y = x[rng.integers(len(x), size=queries)], y[rng.integers(len(y), size=items)]
    x[rng.random(queries) < 0.1] = np.nan
    y[rng.random(items) < 0.1, 0] = np.nan
    groups = [rng.integers(max(2, items // 2), size=n) * 10**12 for n in (queries, items)]
    return x, y, *groups


def check_search(mesh, seed: int, queries: int, items: int, size: int, k: int, tile: int):
    """Ranks and nearest items are those of all scores in one matrix, bit for bit."""
    x, y, x_groups, y_groups = search(seed, queries, items, size)
    scores = exact_scores(x, y)
    found = ranks(x, y, x_groups, y_groups, mesh, tile)
    assert found.dtype == np.int32
    assert found.tolist() == sorted_ranks(scores, x_groups, y_groups)
    nearest = top_k(x, y, k, mesh, tile)
    last = np.where(np.isnan(scores), -np.inf, scores)
    expected = np.argsort(-last, axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(nearest.items, expected)
    np.testing.assert_array_equal(nearest.scores, np.take_along_axis(scores, expected, axis=1))


SHAPES = [  # queries, items, size, k, tile; each compiles
    (1, 1, 1, 1, 1),
    (7, 11, 3, 4, 4),
    (9, 12, 2, 14, 5),
    (5, 12, 8, 3, 12),
]


@settings(max_examples=40)
@given(seed=st.integers(0, 2**31 - 1), shape=st.sampled_from(SHAPES))
@example(seed=0, shape=(1100, 300, 24, 40, 64))  # more than a batch of queries
@example(seed=1, shape=(40, 30, 700, 7, 8))  # vectors cut in two
def test_streamed_ranks_are_those_of_a_sorted_matrix(seed, shape):
    check_search(one_device_mesh(), seed, *shape)


def test_devices_and_tiles_change_no_bit():
    run_python(
        """
from tests.evaluation.test_streaming import check_search
from tests.objectives.tile_cases import mesh_of
for axes, tile in (((1,), 50), ((2,), 7), ((8,), 16), ((2, 2, 2), 16)):
    check_search(mesh_of(*axes), 0, 45, 50, 40, 6, tile)
check_search(mesh_of(8), 1, 3, 50, 40, 60, 16)  # fewer queries than devices
""",
        devices=8,
    )


def test_equal_vectors_tie_and_scores_are_close_to_the_product():
    rng = np.random.default_rng(0)
    for size in (64, 256, 768):
        x, y = unit(rng, 67, size), unit(rng, 131, size)
        y[70:] = y[:61]
        scores = np.asarray(pair_scores(x, y))
        np.testing.assert_array_equal(scores, exact_scores(x, y))
        np.testing.assert_array_equal(scores, np.asarray(pair_scores(y, x)).T)
        np.testing.assert_array_equal(scores[:, 70:], scores[:, :61])
        assert np.abs(scores - x.astype(np.float64) @ y.T.astype(np.float64)).max() < 4e-7


def test_all_scores_are_never_stored():
    mesh, rng = one_device_mesh(), np.random.default_rng(0)
    queries, items, size = 3000, 4000, 4
    x, y, groups = unit(rng, queries, size), unit(rng, items, size), np.arange(items)
    tracemalloc.start()
    top_k(x, y, 5, mesh, 256)
    ranks(x, y, np.arange(queries), groups, mesh, 256)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < queries * items * 4 / 8  # on the host, in bytes
    batch, tiles = x[: streaming.ROWS], np.zeros((100, 256, size), np.float32)
    search = streaming._compiled_top_k(mesh, 5).lower(batch, tiles, items)
    facts = np.zeros(len(batch), np.int32), tiles, np.zeros((100, 256), np.int32)
    count = streaming._compiled_ranks(mesh).lower(batch, *facts, items)
    for program in (search, count):  # on a device: a few times a tile, of 100
        memory = program.compile().memory_analysis().temp_size_in_bytes
        assert 0 < memory < 10 * batch.shape[0] * tiles.shape[1] * 4


def test_what_cannot_be_ranked_is_refused():
    mesh, x = one_device_mesh(), np.eye(3, dtype=np.float32)
    for broken, message in (
        (lambda: top_k(2 * x, x, 1, mesh), "queries must be unit"),
        (lambda: top_k(x, 2 * x, 1, mesh), "items must be unit"),
        (lambda: top_k(x, x, 0, mesh), "k=0"),
        (lambda: top_k(x, x[:0], 1, mesh), "number of items, 0"),
        (lambda: top_k(x, x, 1, mesh, 0), "tile=0"),
        (lambda: PairEncoder(None, mesh, pairs=0), "pairs=0"),
    ):
        with pytest.raises(ValueError, match=message):
            broken()


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
from tests.evaluation import test_streaming as t
from tests.objectives.tile_cases import mesh_of
mesh = mesh_of(2, 2, 2) if devices == "8" else mesh_of(int(count))
assert mesh.size == jax.device_count() == int(count) * int(devices)
t.check_search(mesh, 0, 45, 50, 40, 6, 16)
models = t.Models("rc3", mesh)
encoder = t.PairEncoder(models.model, mesh, batch_size=6, pairs=48)
found = t.retrieve(encoder, models.params, models.data, 4)
ranks = [r.tolist() for r in (*found.by_vectors, *found.by_matching)]
print(json.dumps({"ranks": ranks, "asked": len(models.asked)}))
"""


def run_processes(count: int, devices: int = 1) -> list[dict]:
    """What each of several processes found."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = str(probe.getsockname()[1])
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
