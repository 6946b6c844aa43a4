"""The rows of the benchmarks themselves, with their photographs."""

from __future__ import annotations

import collections
import gzip
import json
import pathlib

import pytest

from rc3_jax.tasks.images import ImageFinder
from tests.tasks.task_files import counts, read, texts


def lines_of(path: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_real_hypotheses(shared_data):
    folder = shared_data / "iglue" / "XVNLI"
    splits = [f"train_{shots}" for shots in (10, 20, 25, 48)]
    data = read("xvnli", folder, ImageFinder([shared_data / "flickr8k"]), splits)
    for path in folder.glob("*/*.jsonl"):
        rows, language = lines_of(path), path.parent.name
        if path.stem in splits and rows:
            assert texts(data, path.stem, language) == [row["sentence2"].strip() for row in rows]
            for row, example in zip(rows, data.splits[path.stem][language], strict=True):
                assert data.classes[example.label] == row["gold_label"]
                assert example.pictures[0].image.stem == row["Flikr30kID"]
    assert counts(data)["train_48/ru"] == 27 and len(counts(data)) == 20


def test_real_photographs_and_their_captions(shared_data):
    folder, notes = shared_data / "iglue" / "xFlickrCO", []
    data = read("xflickrco", folder, ImageFinder([shared_data / "flickr8k"]), notes=notes)
    photographs = {path.name for path in (shared_data / "flickr8k" / "images").iterdir()}
    missing = 0
    for path in folder.glob("*/*.jsonl"):
        rows = lines_of(path)
        there = [row for row in rows if row["img_path"] in photographs]
        missing += len(rows) - len(there)
        found = texts(data, path.stem, path.parent.name)
        assert found == [sentence.strip() for row in there for sentence in row["sentences"]]
    assert len(counts(data)) == 7 * 6
    assert missing == len(notes) == sum(sum(of.values()) for of in data.left_out.values())


@pytest.mark.parametrize(
    "task, folder, english, expected",
    [
        ("xgqa", "xGQA", None, {"train_10/de": 317, "train_10/zh": 317}),
        ("xflickrco", "xFlickrCO", "flickr30k", {"dev/en": 1210, "train_100/ja": 100}),
        ("wit", "WIT", None, {"dev/en": 200, "test/ar": 200, "test/ja": 200}),
        ("marvl", "MaRVL", "NLVR2", {"dev/en": 200, "train_10/id": 40, "train_10/zh": 40}),
    ],
)
def test_rows_of_all_tasks_are_read(shared_data, task, folder, english, expected):
    root = shared_data / "iglue"
    given = {"english": str(root / english)} if english else {}
    data = read(task, root / folder, **given)
    assert counts(data).items() >= expected.items() and not data.left_out
    if task == "xgqa":
        questions = json.loads((root / "xGQA" / "de" / "train_10.json").read_text())
        for example in data.splits["train_10"]["de"]:
            assert data.classes[example.label] == questions[example.identity]["answer"]
            assert example.text == questions[example.identity]["question"].strip()
        assert len(data.classes) == 1842
    if task == "wit":
        urls = {row["image_url"] for row in lines_of(root / "WIT" / "test_ja_head200.jsonl")}
        assert len(urls) < 200
        assert {example.pictures[0].name for example in data.splits["test"]["ja"]} == urls
    if task == "marvl":
        labels = collections.Counter(example.label for example in data.splits["dev"]["en"])
        assert labels == {1: 101, 0: 99}


def test_real_captions_of_a_folder(shared_data):
    finder = ImageFinder([shared_data / "flickr8k"])
    data = read("multi30k", shared_data / "flickr8k", finder, splits=["dev"])
    with gzip.open(shared_data / "flickr8k" / "captions.jsonl.gz", "rt") as file:
        rows = [row for row in map(json.loads, file) if row["split"] == "val"]
    for language, examples in data.splits["dev"].items():
        spoken = [
            {*row["captions"].get(language, ()), row["translations"].get(language)} for row in rows
        ]
        assert len(examples) == sum(len({t.strip() for t in of if t}) for of in spoken) > 200
    assert {"en", "de", "fr", "cs", "zh", "ar"} <= set(data.splits["dev"])
