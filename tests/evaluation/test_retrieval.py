"""Recall against a ranking by brute force, and vectors that no batch size changes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from rc3_jax.data.example import evaluation_row
from rc3_jax.data.record import Record
from rc3_jax.data.scenes import SceneSource
from rc3_jax.evaluation.pair_encoder import PairEncoder
from rc3_jax.evaluation.retrieval import (
    CUTOFFS,
    MODES,
    evaluate_retrieval,
    recalls,
    seen,
    visual_rows,
)
from rc3_jax.models.rc3 import build_rc3
from rc3_jax.parallel.mesh import one_device_mesh
from tests.evaluation.random_params import random_params
from tests.tiny import tiny_config

VOCAB = 30


@st.composite
def _searches(draw):
    """Small whole numbers, so that many similarities tie; several right items, or none."""
    counts = draw(st.tuples(st.integers(1, 8), st.integers(1, 12)))
    size = draw(st.integers(1, 3))
    numbers = st.integers(-2, 2).map(float)
    vectors = [draw(arrays.arrays(np.float32, (n, size), elements=numbers)) for n in counts]
    groups = [draw(arrays.arrays(np.int64, n, elements=st.integers(0, 3))) for n in counts]
    return *vectors, *groups


def _brute_force(queries, gallery, query_groups, gallery_groups, cutoff) -> float:
    """Ranks one gallery after the other; of equal similarities, wrong items come first."""
    found = 0
    for query, group in zip(queries, query_groups, strict=True):
        ranking = sorted(
            range(len(gallery)),
            key=lambda i: (-float(np.dot(query, gallery[i])), gallery_groups[i] == group),
        )
        found += any(gallery_groups[i] == group for i in ranking[:cutoff])
    return found / len(queries)


@given(_searches(), st.integers(1, 9))
def test_recalls_are_those_of_a_ranking_by_brute_force(search, chunk):
    cutoffs = (1, 2, 5, 20)
    expected = {k: pytest.approx(_brute_force(*search, k)) for k in cutoffs}
    assert recalls(*search, cutoffs, chunk) == expected
    assert recalls(*search, cutoffs) == expected


def _unit(count: int, size: int, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((count, size)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_perfect_vectors_are_always_found():
    vectors, groups = _unit(50, 8, 0), np.arange(50)
    order = np.random.default_rng(1).permutation(50)
    assert recalls(vectors, vectors[order], groups, groups[order]) == dict.fromkeys(CUTOFFS, 1.0)


def test_collapsed_vectors_find_nothing():
    vectors, groups = np.tile(_unit(1, 8, 0), (50, 1)), np.arange(50)
    assert recalls(vectors, vectors, groups, groups) == dict.fromkeys(CUTOFFS, 0.0)


def test_unrelated_vectors_are_found_by_accident():
    found = recalls(_unit(2000, 16, 0), _unit(100, 16, 1), np.arange(2000) % 100, np.arange(100))
    for cutoff, share in found.items():
        assert share == pytest.approx(cutoff / 100, abs=4 * (cutoff / 100 / 2000) ** 0.5)


@pytest.mark.parametrize("broken", ["queries", "gallery", "both", "right items", "wrong items"])
def test_vectors_that_are_no_numbers_find_nothing(broken):
    queries, gallery, groups = _unit(40, 8, 0), _unit(40, 8, 0), np.arange(40)
    if broken in ("queries", "both"):
        queries[:] = np.nan
    if broken in ("gallery", "both"):
        gallery[:] = np.nan
    if broken == "right items":
        gallery[:20] = np.nan
        queries, query_groups = queries[:20], groups[:20]
    elif broken == "wrong items":
        gallery[:20] = np.nan
        queries, query_groups = queries[20:], groups[20:]
    else:
        query_groups = groups
    found = recalls(queries, gallery, query_groups, groups)
    assert found == dict.fromkeys(CUTOFFS, 0.0)


@pytest.fixture(scope="module")
def config():
    return tiny_config()


@pytest.fixture(scope="module")
def model(config):
    return build_rc3(config.model, VOCAB)


@pytest.fixture(scope="module")
def params(config, model):
    return random_params(model, config)


@pytest.fixture(scope="module")
def encoder(model):
    return PairEncoder(model, one_device_mesh(), 4)


@pytest.fixture(scope="module")
def records():
    return list(SceneSource("retrieval", "heldout", 9, seed=0))


def images_of(encoder, params, rows, mode):
    return encoder.image_vectors(params, len(rows["image"]), seen(rows, mode))


@pytest.mark.parametrize("count", [1, 3, 4, 9])
def test_any_number_of_rows_gives_the_vectors_of_one_by_one(
    encoder, params, config, records, count
):
    ids = np.random.default_rng(count).integers(3, VOCAB - 1, (count, 24)).astype(np.int32)
    ids[:, 0] = 0
    rows = visual_rows(records[:count], config)
    single_rows = [{name: field[i : i + 1] for name, field in rows.items()} for i in range(count)]
    texts = [encoder.text_vectors(params, ids[i : i + 1]) for i in range(count)]
    images = [images_of(encoder, params, row, "both") for row in single_rows]
    for together, singly in (
        (encoder.text_vectors(params, ids), np.concatenate(texts)),
        (images_of(encoder, params, rows, "both"), np.concatenate(images)),
    ):
        assert together.shape == (count, config.model.projection_size)
        np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)
        np.testing.assert_allclose(together, singly, atol=1e-5)
        # Neighbours are not the same, so that a swap would show.
        assert count == 1 or np.abs(together[1:] - together[:-1]).max(axis=1).min() > 1e-3


def test_a_mode_sees_its_visual_parts_alone(encoder, params, config, records):
    rows = visual_rows(records[:3], config)
    other_pixels = rows | {"image": 255 - rows["image"]}
    other_regions = rows | {"region_features": rows["region_features"] + 1}

    def is_same(mode, changed):
        one, other = (images_of(encoder, params, r, mode) for r in (rows, changed))
        return np.abs(one - other).max() < 1e-5

    assert is_same("patches", other_regions) and not is_same("patches", other_pixels)
    assert is_same("regions", other_pixels) and not is_same("regions", other_regions)
    assert not is_same("both", other_pixels) and not is_same("both", other_regions)


class _WordTokenizer:
    """A text that is a number becomes that number."""

    def encode(self, texts):
        return np.array([[int(text)] for text in texts])


class _KnownVectors:
    """Text n and image n are the n-th row of what is given; remembers the modes asked for."""

    def __init__(self, text_vectors, image_vectors):
        self._texts, self._images = text_vectors, image_vectors
        self.modes = []

    def text_vectors(self, params, ids):
        return self._texts[ids[:, 0]]

    def image_vectors(self, params, count, produce):
        rows = produce(np.arange(count))
        shown = bool(rows["use_patches"][0]), bool(rows["use_regions"][0])
        self.modes += [mode for mode, parts in MODES.items() if parts == shown]
        assert len(rows["image"]) == len(self._images)
        return self._images


def _described(**texts) -> Record:
    pixels = np.zeros((8, 8, 3), np.uint8)
    boxes = np.array([[0, 0, 1, 1]], np.float32)
    features = np.zeros((1, 64), np.float32)
    return Record("heldout", 0, texts, lambda: pixels, boxes, features)


def test_images_and_texts_are_ranked_by_language(config):
    records = [
        _described(en=("0", "1"), de=("2",)),
        _described(en=("3",)),
        _described(en=("4",), de=("5",)),
    ]
    images = np.eye(3, dtype=np.float32)
    # en: text 0 is right, text 1 is nearest to image 1; de: text 2 is nearest to image 2.
    nearest = np.array([0, 1, 2, 1, 2, 2])
    encoder = _KnownVectors(images[nearest], images)
    config = config.copy_and_resolve_references()
    config.evaluation.modes = ("both", "patches")
    scores = evaluate_retrieval(
        encoder, None, records, visual_rows(records, config), _WordTokenizer(), config
    )
    assert encoder.modes == ["both", "patches"] and scores["both"] == scores["patches"]
    english, german = scores["both"]["en"], scores["both"]["de"]
    assert set(scores["both"]) == {"en", "de"}
    assert english.keys() == {f"{way}@{k}" for way in ("IR", "TR") for k in (1, 5, 10)}
    assert english["IR@1"] == 3 / 4 and english["IR@5"] == 1
    assert english["TR@1"] == 2 / 3  # image 1 ties its text with text 1, which is wrong
    # German texts rank all three images; image 1 has no German text and asks for none.
    assert german["IR@1"] == 1 / 2 and german["IR@5"] == 1
    assert german["TR@1"] == 0  # image 0 is nearest to none, image 2 ties with a wrong text
    assert german["TR@5"] == 1


def test_only_the_languages_asked_for_are_scored(config):
    records = [_described(en=("0",), de=("1",)), _described(en=("1",), fr=("0",))]
    encoder = _KnownVectors(np.eye(2, dtype=np.float32), np.eye(2, dtype=np.float32))
    config = config.copy_and_resolve_references()
    config.evaluation.update(modes=("patches",), languages=("fr", "en", "ja"))
    scores = evaluate_retrieval(
        encoder, None, records, visual_rows(records, config), _WordTokenizer(), config
    )
    assert list(scores["patches"]) == ["fr", "en"]  # nobody speaks Japanese here


def test_images_without_regions_are_scored_by_their_patches_alone(config):
    plain = Record("heldout", 0, {"en": ("0",)}, lambda: np.zeros((8, 8, 3), np.uint8))
    records = [_described(en=("1",)), plain]
    encoder = _KnownVectors(np.eye(2, dtype=np.float32), np.eye(2, dtype=np.float32))
    scores = evaluate_retrieval(
        encoder, None, records, visual_rows(records, config), _WordTokenizer(), config
    )
    assert tuple(config.evaluation.modes) == ("both", "patches", "regions")
    # One of the two has regions: together with patches they serve, alone they do not.
    assert list(scores) == encoder.modes == ["both", "patches"]


def test_visual_rows_are_the_rows_of_the_records(config, records):
    stacked = visual_rows(records[:3], config)
    for i in range(3):
        row = evaluation_row(records[i], config)
        assert stacked.keys() == row.keys()
        assert all(np.array_equal(stacked[name][i], row[name]) for name in row)
