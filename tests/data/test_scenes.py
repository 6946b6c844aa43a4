"""Generated scenes: determinism, truth of texts and relevance, regions, and bad arguments."""

import itertools
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rc3_jax.data import grammar
from rc3_jax.data.scenes import KINDS, SceneSource, draw, feature_projection, random_facts
from rc3_jax.data.shapes import COLOURS
from rc3_jax.data.sides import speaks_of_sides
from tests.data.caption_words import said

SIZE = 10**6
seeds, indices, kinds = st.integers(0, 2**40), st.integers(0, SIZE - 1), st.sampled_from(KINDS)
quick = settings(max_examples=40, deadline=None)


def source(kind="retrieval", seed=0, size=SIZE, split="train", **options):
    return SceneSource(kind, split, size, seed, **options)


def assert_same(one, other):
    assert (one.where, one.group, one.texts) == (other.where, other.group, other.texts)
    assert one.relevance == other.relevance
    if one.image is None:
        assert other.image is other.boxes is other.features is None
        return
    np.testing.assert_array_equal(one.image(), other.image())
    np.testing.assert_array_equal(one.boxes, other.boxes)
    np.testing.assert_array_equal(one.features, other.features)


@quick
@given(kinds, seeds, indices)
def test_record_is_a_function_of_its_seed_and_index(kind, seed, index):
    assert_same(source(kind, seed)[index], source(kind, seed)[index])


@pytest.mark.parametrize("kind", KINDS)
def test_record_is_independent_of_access_order_size_and_process(kind):
    small = source(kind, size=12)
    backwards = {i: small[i] for i in reversed(range(12))}
    large = pickle.loads(pickle.dumps(source(kind, size=500)))
    for index, record in enumerate(small):
        assert_same(record, backwards[index])
        assert_same(record, large[index])


def test_kinds_splits_seeds_and_indices_are_different_scenes():
    variants = itertools.product(KINDS, ("train", "validation"), (0, 1), range(10))
    scenes = [source(kind, seed, split=split).scene(i) for kind, split, seed, i in variants]
    assert len(set(scenes)) == len(scenes)


def test_languages_and_features_leave_the_scenes_alone():
    other = source("weak", strict_languages=(), weak_languages=("ja", "cs"), feature_size=8)
    assert [other.scene(i) for i in range(5)] == [source("weak").scene(i) for i in range(5)]


@quick
@given(kinds, seeds, indices)
def test_texts_say_their_facts_and_nothing_else(kind, seed, index):
    scenes = source(kind, seed)
    objects = scenes.scene(index).objects
    for language, facts in scenes.facts(index).items():
        (text,) = scenes[index].texts[language]
        named = [{getattr(objects[o], a) for o, a in facts if o == i} for i in range(len(objects))]
        assert sorted(map(sorted, said(language, text))) == sorted(sorted(n) for n in named if n)


@quick
@given(st.sampled_from(["strict", "parallel", "retrieval"]), seeds, indices)
def test_translations_say_the_same_about_every_object(kind, seed, index):
    record = source(kind, seed)[index]
    said_by = [sorted(map(sorted, said(c, *texts))) for c, texts in record.texts.items()]
    assert all(facts == said_by[0] for facts in said_by)
    assert len(said_by[0]) == len(source(kind, seed).scene(index).objects)
    assert record.relevance is None


@quick
@given(seeds, indices)
def test_relevance_is_the_jaccard_overlap_of_the_facts(seed, index):
    weak = source("weak", seed)
    one, other = (list(facts) for facts in weak.facts(index).values())
    shared = sum(fact in other for fact in one)
    assert weak[index].relevance == shared / (len(one) + len(other) - shared)


def test_relevance_takes_many_values():
    weak = source("weak")
    values = [weak[i].relevance for i in range(400)]
    assert min(values) == 0 and max(values) > 0.7 and 0.1 < np.mean(values) < 0.5


@quick
@given(seeds, indices)
def test_retrieval_texts_say_everything_in_every_language(seed, index):
    scenes = source("retrieval", seed)
    record, objects = scenes[index], scenes.scene(index).objects
    assert set(record.texts) == set(grammar.LANGUAGES)
    full = sorted(sorted((o.shape, o.colour, o.size, o.place)) for o in objects)
    assert sorted(map(sorted, said("en", *record.texts["en"]))) == full


@quick
@given(seeds, indices, st.integers(1, 4), st.floats(0, 1))
def test_no_mention_fits_another_mentioned_object(seed, index, mentioned, keep):
    scene = source(seed=seed).scene(index)
    facts = random_facts(np.random.default_rng(seed), scene, mentioned, keep)
    mentions = [set(filter(None, vars(m).values())) for m in scene.mentions(facts)]
    assert len(mentions) == min(mentioned, len(scene.objects))
    assert not any(one <= other for one, other in itertools.permutations(mentions, 2))


@quick
@given(seeds, indices)
def test_objects_stand_apart_in_their_quadrants(seed, index):
    objects = source(seed=seed).scene(index).objects
    assert 2 <= len(objects) <= 4
    assert len({item.place for item in objects}) == len(objects)
    for item in objects:
        left, top = 0.5 * ("right" in item.place), 0.5 * ("bottom" in item.place)
        x1, y1, x2, y2 = item.box
        assert left < x1 < x2 < left + 0.5 and top < y1 < y2 < top + 0.5
        assert (x2 - x1 > 0.3) == (item.size == "large")


@quick
@given(seeds, indices)
def test_picture_shows_the_objects_and_nothing_else(seed, index):
    scene = source(seed=seed).scene(index)
    image = source(seed=seed)[index].image()
    assert image.dtype == np.uint8 and image.shape == (64, 64, 3)
    empty = np.ones((64, 64), bool)
    for item in scene.objects:
        x1, y1, x2, y2 = (64 * edge for edge in item.box)
        assert tuple(image[int((y1 + y2) / 2), int((x1 + x2) / 2)]) == COLOURS[item.colour]
        empty[int(y1) : int(np.ceil(y2)), int(x1) : int(np.ceil(x2))] = False
    assert (image[empty] == scene.background).all()
    assert min(scene.background) > 200


def test_picture_can_be_drawn_at_any_size():
    scene = source().scene(3)
    large = draw(scene, 256).astype(np.float32).reshape(64, 4, 64, 4, 3).mean(axis=(1, 3))
    assert np.abs(large - draw(scene)).mean() < 1


@quick
@given(st.sampled_from(["strict", "weak", "retrieval"]), seeds, indices)
def test_regions_are_inside_the_image_and_hold_every_object(kind, seed, index):
    record, scene = source(kind, seed)[index], source(kind, seed).scene(index)
    boxes = record.boxes
    assert boxes.dtype == record.features.dtype == np.float32
    assert record.features.shape == (len(boxes), 64)
    assert len(scene.objects) <= len(boxes) <= len(scene.objects) + 2
    assert (boxes >= 0).all() and (boxes <= 1).all() and (boxes[:, :2] < boxes[:, 2:]).all()
    for item in scene.objects:
        assert np.abs(boxes - item.box).max(axis=1).min() < 0.05


def test_features_tell_what_is_in_the_box_and_are_the_same_for_all_seeds():
    projection = feature_projection(64)
    for seed in (0, 1):
        record, scene = source(seed=seed, feature_noise=0)[0], source(seed=seed).scene(0)
        for item in scene.objects:
            region = np.abs(record.boxes - item.box).max(axis=1).argmin()
            parts = [projection[name] for name in (item.colour, item.shape, item.size)]
            expected = np.sum(parts, axis=0) / np.sqrt(3)
            np.testing.assert_allclose(record.features[region], expected, rtol=1e-5, atol=1e-6)


def test_feature_noise_has_the_asked_for_scale_beside_a_signal_of_one():
    clean, noisy = source(feature_noise=0.0), source(feature_noise=0.3)
    signal = np.concatenate([clean[i].features for i in range(100)])
    noise = np.concatenate([noisy[i].features for i in range(100)]) - signal
    assert noise.std() == pytest.approx(0.3, rel=0.05)
    assert signal.std() == pytest.approx(1, rel=0.15)


def test_regions_come_in_any_order_with_up_to_two_distractors():
    extra, first = set(), set()
    for i in range(60):
        record, objects = source()[i], source().scene(i).objects
        extra.add(len(record.boxes) - len(objects))
        first.add(int(np.abs(record.boxes - objects[0].box).max(axis=1).argmin()))
    assert extra == {0, 1, 2} and len(first) >= 4


LANGUAGE_PAIRS = {
    "strict": {("de", "en"), ("de", "fr"), ("en", "fr")},
    "weak": set(itertools.combinations(sorted(grammar.LANGUAGES), 2))
    - {("de", "en"), ("de", "fr"), ("en", "fr")},
    "parallel": {("de", "en"), ("en", "fr"), ("cs", "en"), ("en", "zh"), ("en", "ja")},
}


@pytest.mark.parametrize("kind", LANGUAGE_PAIRS)
def test_language_pairs_know_their_records_and_are_equally_frequent(kind):
    scenes = source(kind, size=50)
    found = {}
    for number, record in enumerate(scenes):
        found.setdefault(tuple(sorted(record.texts)), []).append(number)
    assert {pair: list(numbers) for pair, numbers in scenes.pairs.items()} == found
    assert found.keys() == LANGUAGE_PAIRS[kind]
    counts = [len(numbers) for numbers in found.values()]
    assert max(counts) - min(counts) <= 1


def test_few_scenes_offer_few_pairs_and_scenes_for_retrieval_all_of_them():
    assert source("strict", size=2).pairs == {
        ("de", "en"): range(0, 2, 3),
        ("en", "fr"): range(1, 2, 3),
    }
    pairs = source("retrieval", size=7).pairs
    assert pairs == dict.fromkeys(itertools.combinations(sorted(grammar.LANGUAGES), 2), range(7))


def test_weak_records_need_no_weak_language():
    pairs = source("weak", weak_languages=()).pairs
    assert set(pairs) == LANGUAGE_PAIRS["strict"]


@pytest.mark.parametrize("kind", KINDS)
def test_records_keep_the_contract_of_a_source(kind):
    scenes = source(kind, size=20)
    assert len(scenes) == 20 == len(list(scenes))
    assert len({record.group for record in scenes}) == 20
    assert all(0 <= record.group < scenes.groups for record in scenes)
    assert scenes[17].where == f"scenes/{kind}:17"
    assert (scenes[0].image is None) == (kind == "parallel")
    with pytest.raises(IndexError, match="record 20 of a scene source of 20"):
        scenes[20]


def test_every_place_is_recognised_as_speaking_of_sides():
    record = source("retrieval")[0]
    for language, texts in record.texts.items():
        assert speaks_of_sides({language: texts})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "tight"}, "unknown kind 'tight' of records; choose from: strict"),
        ({"size": 0}, "leave this source out"),
        ({"seed": -1}, "seed=-1"),
        ({"feature_size": 0}, "feature_size at least 1"),
        ({"feature_noise": -0.1}, "feature_noise=-0.1"),
        ({"strict_languages": ("en", "es")}, "no caption grammar for language 'es'; choose from"),
        ({"weak_languages": ("en", "ja")}, "languages named twice: en; name each once"),
        ({"kind": "strict", "strict_languages": ("en",)}, "at least two strict_languages"),
        ({"kind": "weak", "strict_languages": (), "weak_languages": ("cs",)}, "two languages"),
        (
            {"kind": "parallel", "strict_languages": ("en",), "weak_languages": ()},
            "other than English",
        ),
        ({"strict_languages": (), "weak_languages": ()}, "at least one language"),
    ],
)
def test_bad_arguments_are_named_with_a_remedy(options, message):
    with pytest.raises(ValueError, match=message):
        source(**options)
