"""Streamed ranks against sorting by brute force."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rc3_jax.evaluation import streaming
from rc3_jax.evaluation.pair_encoder import PairEncoder
from rc3_jax.evaluation.streaming import NEVER, pair_scores, ranks, top_k
from rc3_jax.parallel.mesh import one_device_mesh
from tests.processes import run_python


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
