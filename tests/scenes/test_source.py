"""Generated records: determinism, truth of texts and relevance, regions, settings."""

import hashlib
import itertools
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rc3_jax.data.left_right import speaks_of_sides
from rc3_jax.data.record import Skips
from rc3_jax.scenes import scene as scenes
from rc3_jax.scenes.languages import LANGUAGES
from rc3_jax.scenes.source import KINDS, SceneRecords, ScenesSource
from rc3_jax.settings import ConfigError
from tests.scenes import golden
from tests.tiny import tiny_config

SIZE = 10**6
seeds, indices, kinds = st.integers(0, 2**40), st.integers(0, SIZE - 1), st.sampled_from(KINDS)
quick = settings(max_examples=40, deadline=None)


def source(kind="retrieval", seed=0, size=SIZE, split="train", **options):
    return SceneRecords(kind, split, size, seed, **options)


# In the order of KINDS.
RECORDED = ["66d918df", "71c865fb", "6be512b9", "e13156cc", "b5ef4095", "392d878d"]


@pytest.mark.parametrize(("kind", "recorded"), list(zip(KINDS, RECORDED, strict=True)))
def test_texts_and_pictures_are_those_recorded(kind, recorded):
    digest = hashlib.sha256()
    records = source(kind, 7, weak_languages=("cs", "zh", "ja"))
    for record in (records[index] for index in range(0, 600, 17)):
        texts = [dict(record.texts), *(dict(element.texts) for element in record.elements)]
        digest.update(repr(texts).encode() + (record.image().tobytes() if record.image else b""))
    assert digest.hexdigest()[:8] == recorded


@pytest.mark.parametrize("kind", KINDS)
def test_record_is_independent_of_access_order_size_and_process(kind):
    small = source(kind, size=12)
    backwards = {i: small[i] for i in reversed(range(12))}
    large = pickle.loads(pickle.dumps(source(kind, size=500)))
    for index, record in enumerate(small):
        assert pickle.dumps(record) == pickle.dumps(backwards[index]) == pickle.dumps(large[index])


def test_kinds_splits_seeds_and_indices_are_different_scenes():
    variants = itertools.product(KINDS, ("train", "validation"), (0, 1), range(10))
    found = [source(kind, seed, split=split).scene(i) for kind, split, seed, i in variants]
    assert len(set(found)) == len(found)
    other = source("weak", strict_languages=(), weak_languages=("ja", "cs"), feature_size=8)
    assert other.scene(5) == source("weak").scene(5) and other[5].features.shape[1] == 8


@quick
@given(kinds, seeds, indices, st.integers(1, 4))
def test_texts_say_their_facts_and_nothing_else(kind, seed, index, mentioned):
    records = source(kind, seed, mentioned=mentioned)
    objects, record = records.scene(index).objects, records[index]
    facts = records.facts(index)
    for code in facts.keys() & golden.CODES:
        (text,), said = record.texts[code], facts[code]
        named = [sorted(getattr(objects[i], name) for name in said[i]) for i in said]
        assert sorted(map(sorted, golden.said(code, text))) == sorted(named)
    most = min(len(objects), mentioned)
    assert all(len(said) <= most for said in facts.values())
    if kind != "weak":  # translations of one another, about every object as far as allowed
        assert all(said == next(iter(facts.values())) for said in facts.values())
        assert all(len(said) == most for said in facts.values())
        assert record.relevance is None
    if kind == "retrieval":
        assert facts.keys() == LANGUAGES.keys()
        assert all(len(names) == 4 for names in facts["en"].values())


def test_the_settings_of_texts_reach_all_records():
    config = tiny_config()
    settings = ScenesSource(strict=4, weak=4, parallel=40, mentioned=1, questions=0.5)
    train, heldout = settings.open(config, Skips(0))
    for records, _ in (*train.values(), *heldout.values()):
        facts = [said for i in range(len(records)) for said in records.facts(i).values()]
        assert {len(said) for said in facts} == {1}
    parallel, _ = train["parallel"]
    texts = [parallel[i].texts["en"][0] for i in range(40)]
    assert 5 < sum(text.endswith("?") for text in texts) < 35


@quick
@given(seeds, indices)
def test_elements_name_the_colour_and_shape_in_their_box(seed, index):
    records = source("region", seed)
    record = records[index]
    for item, element in zip(records.scene(index).objects, record.elements, strict=True):
        assert element.box == item.box and element.texts.keys() == LANGUAGES.keys()
        assert golden.said("en", *element.texts["en"]) == [{item.colour, item.shape}]


def test_relevance_is_the_jaccard_overlap_of_the_facts():
    weak, values = source("weak"), []
    for index in range(300):
        one, other = (
            [(i, name) for i in said for name in said[i]] for said in weak.facts(index).values()
        )
        shared = sum(fact in other for fact in one)
        values.append(weak[index].relevance)
        assert values[-1] == shared / (len(one) + len(other) - shared)
    assert min(values) == 0 and max(values) > 0.7 and 0.1 < np.mean(values) < 0.5


@quick
@given(seeds, indices, st.integers(1, 4), st.floats(0, 1))
def test_no_mention_fits_another_mentioned_object(seed, index, mentioned, keep):
    scene = source(seed=seed).scene(index)
    facts = scenes.random_facts(np.random.default_rng(seed), scene, mentioned, keep)
    mentions = [set(mention.named().values()) for mention in scene.mentions(facts)]
    assert len(mentions) == min(mentioned, len(scene.objects))
    assert not any(one <= other for one, other in itertools.permutations(mentions, 2))


ALL_PAIRS = set(itertools.combinations(sorted(LANGUAGES), 2))
STRICT_PAIRS = set(itertools.combinations(("de", "en", "fr"), 2))
LANGUAGE_PAIRS = [
    ("strict", STRICT_PAIRS),
    ("weak", ALL_PAIRS - STRICT_PAIRS),
    ("parallel", {pair for pair in ALL_PAIRS if "en" in pair}),
]


@pytest.mark.parametrize(("kind", "pairs"), LANGUAGE_PAIRS)
def test_language_pairs_know_their_records_and_are_equally_frequent(kind, pairs):
    records = source(kind, size=50)
    found = {}
    for number, record in enumerate(records):
        found.setdefault(tuple(sorted(record.texts)), []).append(number)
    assert {pair: list(numbers) for pair, numbers in records.pairs.items()} == found
    assert found.keys() == pairs
    counts = [len(numbers) for numbers in found.values()]
    assert max(counts) - min(counts) <= 1
    assert source("strict", size=1).pairs.keys() < STRICT_PAIRS
    assert source("weak", weak_languages=()).pairs.keys() == STRICT_PAIRS
    assert source("retrieval", size=7).pairs == dict.fromkeys(ALL_PAIRS, range(7))


@pytest.mark.parametrize("kind", KINDS)
def test_records_keep_the_contract_of_a_source(kind):
    records = source(kind, size=20)
    assert len(records) == 20 == len(list(records))
    assert len({record.group for record in records}) == 20
    last = max(record.group + len(record.elements) for record in records)
    assert min(record.group for record in records) == 0 and last < records.groups
    assert records[17].where == f"scenes/{kind}:17"
    assert (records[0].image is None) == (kind == "parallel")
    with pytest.raises(IndexError):
        records[20]


def test_every_place_is_recognised_as_speaking_of_sides():
    for code, texts in source("retrieval")[0].texts.items():
        assert speaks_of_sides({code: texts})


@pytest.mark.parametrize(
    ("values", "named"),
    [
        (dict(strict=-1), "strict=-1"),
        (dict(seed=-1), "seed=-1"),
        (dict(weak=1, strict_languages=("en", "es")), "es"),
        (dict(weak=1, weak_languages=("en", "ja")), "weak_languages"),
        (dict(strict=1, strict_languages=("en",)), "strict_languages"),
        (dict(weak=1, weak_languages=("en", "zh")), "name each language once"),
        (dict(weak=1, strict_languages=(), weak_languages=("cs",)), "weak_languages"),
        (dict(parallel=1, strict_languages=("en",), weak_languages=()), "strict_languages"),
        (dict(region=1, strict_languages=(), weak_languages=()), "strict_languages"),
    ],
)
def test_bad_settings_are_named(values, named):
    with pytest.raises(ConfigError, match=named) as refused:
        ScenesSource.parse(values, "data.sources.scenes")
    if "name each language once" in str(refused.value):
        ScenesSource.parse(values | {"weak_languages": ("zh",)}, "")
    if "name more, or leave both out" in str(refused.value):
        ScenesSource.parse({k: v for k, v in values.items() if "languages" not in k}, "")
