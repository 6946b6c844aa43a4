"""Recall against a ranking by brute force, and vectors that no batch size changes."""

from __future__ import annotations

import numpy as np
import pytest

from rc3_jax.data.record import Record
from rc3_jax.evaluation.evaluate import score_tables
from rc3_jax.evaluation.pair_encoder import PairEncoder
from rc3_jax.evaluation.retrieval import MODES, evaluate_retrieval, seen, visual_rows
from rc3_jax.models.rc3 import build_rc3
from rc3_jax.parallel.mesh import one_device_mesh
from rc3_jax.scenes.source import SceneRecords
from tests.evaluation.random_params import random_params
from tests.tiny import tiny_config

VOCAB = 30


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
    return list(SceneRecords("retrieval", "heldout", 9, seed=0))


def images_of(encoder, params, rows, mode):
    return encoder.image_vectors(params, len(rows["image"]), seen(rows, mode))


@pytest.mark.parametrize("count", [1, 4, 9])
def test_any_number_of_rows_gives_the_vectors_of_one_by_one(
    encoder, params, config, records, count
):
    ids = np.random.default_rng(count).integers(3, VOCAB - 1, (count, 24)).astype(np.int32)
    ids[:, 0] = 0
    rows = visual_rows(records[:count], config)
    singly = [{name: field[i : i + 1] for name, field in rows.items()} for i in range(count)]
    texts = [encoder.text_vectors(params, ids[i : i + 1]) for i in range(count)]
    images = [images_of(encoder, params, row, "both") for row in singly]
    for together, alone in (
        (encoder.text_vectors(params, ids), np.concatenate(texts)),
        (images_of(encoder, params, rows, "both"), np.concatenate(images)),
    ):
        assert together.shape == (count, config.model.projection_size)
        np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)
        np.testing.assert_allclose(together, alone, atol=1e-5)
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


def evaluated(config, records, vectors, **settings):
    """Scores by known vectors of texts and images, and the modes asked for."""
    config = config.copy_and_resolve_references()
    config.evaluation.update(settings)
    encoder = _KnownVectors(*vectors)
    rows = visual_rows(records, config)
    scores = evaluate_retrieval(encoder, None, records, rows, _WordTokenizer(), config)[""]
    return scores, encoder.modes


def test_images_and_texts_are_ranked_by_language(config):
    records = [
        _described(en=("0", "1"), de=("2",)),
        _described(en=("3",)),
        _described(en=("4",), de=("5",)),
    ]
    images = np.eye(3, dtype=np.float32)
    # en: text 0 is right, text 1 is nearest to image 1; de: text 2 is nearest to image 2.
    nearest = np.array([0, 1, 2, 1, 2, 2])
    vectors = images[nearest], images
    scores, modes = evaluated(config, records, vectors, modes=("both", "patches"))
    assert list(scores) == modes == ["both", "patches"] and scores["both"] == scores["patches"]
    english, german = scores["both"]["en"], scores["both"]["de"]
    assert set(scores["both"]) == {"en", "de"}
    assert english.keys() == {f"{way}@{k}" for way in ("IR", "TR") for k in (1, 5, 10)}
    assert english["IR@1"] == 3 / 4 and english["IR@5"] == 1
    assert english["TR@1"] == 2 / 3  # image 1 ties its text with text 1, which is wrong
    # German texts rank all three images; image 1 has no German text and asks for none.
    assert german["IR@1"] == 1 / 2 and german["IR@5"] == 1
    assert german["TR@1"] == 0  # image 0 is nearest to none, image 2 ties with a wrong text
    assert german["TR@5"] == 1


def test_parts_are_searched_alone(config):
    records = [_described(en=(str(i),)) for i in range(4)]
    images = np.eye(4, dtype=np.float32)
    nearest = images[[1, 0, 3, 2]] + 0.1 * images  # the right one comes second
    rows, encoder = visual_rows(records, config), _KnownVectors(nearest, images)
    parts = {"a": range(1), "b": range(1, 4)}
    found = evaluate_retrieval(encoder, None, records, rows, _WordTokenizer(), config, parts)
    assert list(found) == ["", "a", "b"]
    recalls = {name: next(iter(of.values()))["en"]["IR@1"] for name, of in found.items()}
    # Alone, image 0 has no rival; text 1 is nearest to image 0, which is not in its part.
    assert recalls == {"": 0, "a": 1, "b": 1 / 3}
    tables = score_tables({"retrieval": found.pop(""), "retrieval_by_source": found})
    assert sum("of a," in str(table.title) for table in tables) == len(found["a"])


def test_only_the_languages_asked_for_are_scored(config):
    records = [_described(en=("0",), de=("1",)), _described(en=("1",), fr=("0",))]
    vectors = [np.eye(2, dtype=np.float32)] * 2
    settings = dict(modes=("patches",), languages=("fr", "en", "ja"))
    scores, _ = evaluated(config, records, vectors, **settings)
    assert list(scores["patches"]) == ["fr", "en"]  # nobody speaks Japanese here


def test_images_without_regions_are_scored_by_their_patches_alone(config):
    plain = Record("heldout", 0, {"en": ("0",)}, lambda: np.zeros((8, 8, 3), np.uint8))
    records = [_described(en=("1",)), plain]
    # One of the two has regions: together with patches they serve, alone they do not.
    scores, modes = evaluated(config, records, [np.eye(2, dtype=np.float32)] * 2)
    assert tuple(config.evaluation.modes) == ("both", "patches", "regions")
    assert list(scores) == modes == ["both", "patches"]
