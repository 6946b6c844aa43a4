"""Regions of scenes: a detector without errors against known features, and errors at their rates."""

import collections
import dataclasses
import hashlib

import numpy as np
import pytest

from rc3_jax.scenes.detector import DetectorSettings, feature_projection, object_feature
from rc3_jax.scenes.detector import random_regions as regions_of
from rc3_jax.scenes.scene import COLOURS, SHAPES, SIZES, SceneObject, random_scene
from rc3_jax.scenes.source import SceneRecords, ScenesSource
from rc3_jax.scenes.tasks import miniature
from rc3_jax.settings import ConfigError

NONE = dict.fromkeys(DetectorSettings.model_fields, 0.0)
WITHOUT_ERRORS = DetectorSettings(**NONE)
PROJECTION = feature_projection(64)
ROWS = 400


def found(**rates):
    """Scenes, and the kind of object that each region looks like; None for one of nothing."""
    detector = DetectorSettings(**NONE | rates)
    records = SceneRecords("retrieval", "train", ROWS, 3, detector=detector)
    kinds = {
        (c, s, z): SceneObject(s, c, z, "", ()) for c in COLOURS for s in SHAPES for z in SIZES
    }
    known = np.array(
        [PROJECTION["background"]] + [object_feature(kinds[k], PROJECTION) for k in kinds]
    )
    names = [None, *kinds]
    for index in range(ROWS):
        record = records[index]
        nearest = np.square(record.features[:, None] - known).sum(axis=2).argmin(axis=1)
        yield records.scene(index), record.boxes, [names[number] for number in nearest]


def owner(scene, box):
    """The object that a box is around, or None."""
    near = [o for o in scene.objects if np.abs(box - o.box).max() < 0.04]
    return near[0] if near else None


@pytest.mark.parametrize("kind", ["strict", "weak", "retrieval", "captioned"])
def test_without_errors_regions_are_of_the_objects_and_of_nothing(kind):
    records = SceneRecords(kind, "train", 60, 0, detector=WITHOUT_ERRORS)
    noise, extra, places = [], set(), set()
    for index in range(60):
        record, objects = records[index], records.scene(index).objects
        boxes = record.boxes
        assert boxes.dtype == record.features.dtype == np.float32
        assert (boxes >= 0).all() and (boxes <= 1).all() and (boxes[:, :2] < boxes[:, 2:]).all()
        for item in objects:
            distances = np.abs(boxes - item.box).max(axis=1)
            assert distances.min() < 0.05
            parts = [PROJECTION[name] for name in (item.colour, item.shape, item.size)]
            noise.append(record.features[distances.argmin()] - np.sum(parts, axis=0) / np.sqrt(3))
            places.add(int(distances.argmin()))
        extra.add(len(record.features) - len(objects))
    assert np.median(np.abs(noise)) == pytest.approx(0.6745 * 0.15, rel=0.05)
    assert extra == {0, 1, 2} and len(places) >= 4


def test_without_errors_regions_are_those_recorded():
    digest = hashlib.sha256()
    pictures = miniature("xvnli", {"train": 9}, detector=WITHOUT_ERRORS).pictures().values()
    records = SceneRecords("weak", "train", 99, 7, detector=WITHOUT_ERRORS)
    for found in [*pictures, *(records[index] for index in range(0, 99, 7))]:
        digest.update(found.boxes.tobytes() + found.features.tobytes())
    assert digest.hexdigest()[:8] == "5ffc21ee"


def test_errors_leave_the_right_regions_as_they_are():
    """Only what an error concerns changes: distractors that look like objects replace others."""
    for (_, boxes, kinds), (_, others, seen) in zip(found(), found(lookalikes=0.5), strict=True):
        assert len(boxes) == len(others)
        same = np.all(boxes == others, axis=1)
        assert [k for k, s in zip(kinds, same) if s] == [k for k, s in zip(seen, same) if s]
        assert all(kind is None for kind, s in zip(kinds, same) if not s)


def assert_at_rate(hits, total, rate):
    assert abs(hits - rate * total) < 4 * np.sqrt(total * rate * (1 - rate))


def test_objects_are_missed_and_doubled_at_their_rates():
    counts = collections.Counter()
    for scene, boxes, _ in found(missed=0.2, doubled=0.3):
        owners = [owner(scene, box) for box in boxes]
        counts.update(owners.count(item) for item in scene.objects)
    assert set(counts) == {0, 1, 2}
    assert_at_rate(counts[0], counts.total(), 0.2)
    assert_at_rate(counts[2], counts[1] + counts[2], 0.3)


def test_colours_and_shapes_are_confused_at_their_rates():
    counts = collections.Counter()
    for scene, boxes, kinds in found(colour_confused=0.3, shape_confused=0.2):
        for item, kind in ((owner(scene, box), kind) for box, kind in zip(boxes, kinds)):
            if item and kind:
                assert kind[2] == item.size
                counts[kind[0] != item.colour, kind[1] != item.shape] += 1
    assert_at_rate(counts[True, True] + counts[True, False], counts.total(), 0.3)
    assert_at_rate(counts[True, True] + counts[False, True], counts.total(), 0.2)


def test_distractors_look_like_objects_at_their_rate():
    counts = collections.Counter()
    for scene, boxes, kinds in found(lookalikes=0.4):
        assert len(scene.objects) <= len(boxes) <= len(scene.objects) + 2
        counts.update(bool(k) for b, k in zip(boxes, kinds) if not owner(scene, b))
    assert_at_rate(counts[True], counts.total(), 0.4)


def test_an_image_has_a_region_whatever_is_missed():
    sizes = collections.Counter(len(boxes) for _, boxes, _ in found(missed=1.0))
    assert set(sizes) == {1, 2}
    assert_at_rate(sizes[1], ROWS, 2 / 3)


@pytest.mark.parametrize(("hidden", "values"), [("colour", COLOURS), ("shape", SHAPES)])
def test_features_do_not_tell_what_a_pane_hides(hidden, values):
    for seed in range(20):
        scene = random_scene(np.random.default_rng(seed))
        item = dataclasses.replace(scene.objects[0], hidden=hidden)
        tried = []
        for value in values:
            changed = (dataclasses.replace(item, **{hidden: value}), *scene.objects[1:])
            rngs = np.random.default_rng(1), np.random.default_rng(2)
            scene = dataclasses.replace(scene, objects=changed)
            tried.append(
                regions_of(*rngs, scene, PROJECTION, DetectorSettings(colour_confused=0.9))
            )
        for boxes, features in tried[1:]:
            np.testing.assert_array_equal(boxes, tried[0][0])
            np.testing.assert_array_equal(features, tried[0][1])


@pytest.mark.parametrize("rate", DetectorSettings.model_fields)
def test_rates_are_settings_of_the_source_and_between_0_and_1(rate):
    for value in (0.0, 1.0):
        settings = ScenesSource.parse(dict(strict=5, detector={rate: value}), "scenes")
        assert getattr(settings.detector, rate) == value
    for value in (-0.01, 1.01):
        with pytest.raises(ConfigError, match=f"scenes.detector.{rate}"):
            ScenesSource.parse(dict(detector={rate: value}), "scenes")


def test_source_hands_its_rates_to_training_and_held_out_records():
    from tests.tiny import tiny_config

    config = tiny_config()
    config.data.sources.scenes.detector.missed = 1.0
    settings = ScenesSource.parse(config.data.sources.scenes)
    for kinds in settings.open(config, None):
        for kind in kinds.keys() & {"strict", "weak", "retrieval"}:
            assert all(len(kinds[kind][0][index].boxes) <= 2 for index in range(4))
