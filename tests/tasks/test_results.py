"""What stands in `scores.json` and the predictions."""

from __future__ import annotations

import json

import numpy as np
import pytest

from rc3_jax.tasks.base import Example, Picture, TaskData, checksum
from rc3_jax.tasks.config import finetune_config
from rc3_jax.tasks.head import Scored
from rc3_jax.tasks.results import (
    across_languages,
    config_checksum,
    protocol,
    result_of,
    shots_of_split,
    write_result,
)

PICTURE = Picture("1.jpg", np.zeros((2, 2, 3), np.uint8))


def example(text="Ein Hund.", identity="1", label=0):
    return Example("test.jsonl:1", identity, text, (PICTURE,), label)


def ranks(**of_pictures):
    """Predictions of one language: picture → IR ranks of its texts, TR rank first."""
    rows = [
        {"id": f"{picture}#{i}", "picture": picture, "IR rank": rank, "TR rank": first}
        for picture, (first, *others) in of_pictures.items()
        for i, rank in enumerate(others)
    ]
    return Scored({}, rows)


@pytest.mark.parametrize(
    "changes, expected",
    [
        ({}, "zero-shot"),
        ({"test.split": "test_mt"}, "translate-test"),
        ({"train.split": "train_48", "train.languages": ("fr",)}, "few-shot"),
        ({"train.split": "train_mt", "train.languages": ("de",)}, "translate-train"),
        ({"train.languages": ("de",)}, "single language"),
        ({"train.languages": ("en", "de")}, "all languages"),
        ({"train.languages": ()}, "all languages"),
    ],
)
def test_protocols_have_their_names(changes, expected):
    config = finetune_config("xvnli")
    config.update_from_flattened_dict(changes)
    assert protocol(config) == expected


def test_shots_are_those_of_the_split():
    splits = ("train_48", "train_10x2", "train", "train_mt", "dev")
    assert [shots_of_split(split) for split in splits] == ["48", "10x2", None, None, None]


def test_rank_variances_are_of_pictures_that_all_languages_found():
    found = {
        "en": ranks(a=[1, 1, 3], b=[2, 5], c=[1, 1]),
        "de": ranks(a=[3, 4], b=[2, 1], d=[9, 9]),
        "fr": ranks(a=[5, 6], b=[2, 3], c=[None, None]),
    }
    # IR of a: 2, 4, 6; of b: 5, 1, 3. TR of a: 1, 3, 5; of b: 2, 2, 2. c is lost in fr, not in de.
    assert across_languages(found) == pytest.approx(
        {"IR rank variance": (8 / 3 + 8 / 3) / 2, "TR rank variance": (8 / 3 + 0) / 2}
    )


def test_no_rank_variance_without_two_languages_or_a_shared_picture():
    one = ranks(a=[1, 1])
    assert across_languages({"en": one}) == {}
    assert across_languages({"en": one, "de": ranks(b=[1, 1])}) == {}
    assert across_languages({"en": Scored({"accuracy": 1.0}, [{"id": "1"}])}) == {}


def test_checksums_tell_examples_and_settings_apart():
    def of(*examples):
        return checksum({"test": {"de": examples}}, ("no", "yes"))

    assert of(example()) == of(example())
    others = [example("Ein Hund!"), example(identity="2"), example(label=None)]
    assert len({of(example()), of(), of(example(), example()), *map(of, others)}) == 6
    two = {"de": [example()], "en": [example("A dog.")]}
    both = {"test": two}, {"test": dict(reversed(two.items()))}
    assert checksum(both[0], ()) == checksum(both[1], ()) != checksum(both[0], ("no",))
    config = finetune_config("xvnli")
    before = config_checksum(config)
    config.update(seed=7, threads=3, images="/elsewhere")
    assert config_checksum(config) == before
    config.optimizer.lr = 1.0
    assert config_checksum(config) != before


def test_what_is_left_out_stands_beside_the_scores():
    config = finetune_config("xvnli")
    data = TaskData((), {}, {"test": {"de": 3}, "dev": {"en": 9}})
    found = {code: Scored({"accuracy": 0.5}, [{"id": "1"}, {"id": "2"}]) for code in ("en", "de")}
    result = result_of(config, data, {"test": {}}, found, train=None)
    assert result["protocol"] == "no fine-tuning"
    assert result["test"] == {
        "split": "test",
        "examples": {"en": 2, "de": 2},
        "left_out": {"de": 3},
    }


def test_predictions_are_written_as_the_benchmark_reads_them(tmp_path):
    rows = [{"id": "201", "prediction": "ano", "probability": 0.5}]
    write_result(tmp_path, {"task": "xgqa"}, {"cs": Scored({}, rows)})
    lines = (tmp_path / "predictions" / "cs.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == rows
    benchmark = json.loads((tmp_path / "predictions" / "cs.json").read_text())
    assert benchmark == [{"questionId": "201", "prediction": "ano"}]
    write_result(tmp_path, {"task": "xvnli"}, {"en": Scored({}, rows)})
    assert [path.name for path in (tmp_path / "predictions").iterdir()] == ["en.jsonl"]
