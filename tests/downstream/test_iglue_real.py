"""The rows of the benchmark themselves, with their photographs."""

from __future__ import annotations

import collections
import gzip
import json
import pathlib

from rc3_jax.downstream.pictures import ImageFinder
from rc3_jax.downstream.readers import read_task
from tests.downstream.iglue_rows import AllFound, counts, texts


def lines_of(path: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_real_xvnli_rows(shared_data):
    folder = shared_data / "iglue" / "XVNLI"
    data = read_task("xvnli", folder, ImageFinder(shared_data / "flickr8k"))
    expected = {}
    for path in folder.glob("*/*.jsonl"):
        rows = lines_of(path)
        if rows:
            expected[path.stem, path.parent.name] = len(rows)
            examples = data.splits[path.stem][path.parent.name]
            for row, example in zip(rows, examples, strict=True):
                assert example.text == row["sentence2"].strip()
                assert data.classes[example.label] == row["gold_label"]
                assert example.pictures[0].image.stem == row["Flikr30kID"]
    assert counts(data) == expected and expected["train_48", "ru"] == 27


def test_real_xflickrco_rows(shared_data):
    folder = shared_data / "iglue" / "xFlickrCO"
    notes = []
    finder = ImageFinder(shared_data / "flickr8k")
    data = read_task("xflickrco", folder, finder, notes=notes)
    photographs = {path.name for path in (shared_data / "flickr8k" / "images").iterdir()}
    expected, missing = {}, 0
    for path in folder.glob("*/*.jsonl"):
        there = [row for row in lines_of(path) if row["img_path"] in photographs]
        missing += len(lines_of(path)) - len(there)
        expected[path.stem, path.parent.name] = len(there)
        found = texts(data, path.stem, path.parent.name)
        assert found == [sentence.strip() for row in there for sentence in row["sentences"]]
    assert counts(data) == expected and len(expected) == 7 * 6
    assert sum("; 1 rows left out" in note for note in notes) == len(notes) == missing
    # The 100 images are the same in all languages.
    names = {
        tuple(sorted(example.pictures[0].name for example in examples))
        for examples in data.splits["train_100"].values()
    }
    assert len(names) == 1


def test_real_english_captions(shared_data):
    folder = shared_data / "iglue" / "flickr30k"
    data = read_task("flickr30k", folder, AllFound())
    assert counts(data) == {("dev", "en"): 5 * len(lines_of(folder / "valid_ann.jsonl"))}
    seen = read_task("flickr30k", folder, ImageFinder(shared_data / "flickr8k"))
    assert 0.95 * 5 * 242 <= len(seen.splits["dev"]["en"]) <= 5 * 242


def test_real_questions(shared_data):
    folder = shared_data / "iglue" / "xGQA"
    data = read_task("xgqa", folder, AllFound())
    assert len(data.classes) == 1842
    assert counts(data) == {("train_10", "de"): 317, ("train_10", "zh"): 317}
    questions = json.loads((folder / "de" / "train_10.json").read_text())
    for example in data.splits["train_10"]["de"]:
        question = questions[example.identity]
        assert data.classes[example.label] == question["answer"]
        assert example.text == question["question"].strip()
    assert len({example.pictures[0].name for example in data.splits["train_10"]["zh"]}) == 10


def test_real_statements(shared_data):
    marvl_data = read_task("marvl", shared_data / "iglue" / "MaRVL", AllFound())
    assert counts(marvl_data) == {("train_10", code): 40 for code in ("id", "tr", "zh")}
    rows = lines_of(shared_data / "iglue" / "MaRVL" / "marvl-tr_train10.jsonl")
    labels = [example.label for example in marvl_data.splits["train_10"]["tr"]]
    assert labels == [int(row["label"]) for row in rows]
    english = shared_data / "iglue" / "NLVR2"
    joined = read_task("marvl", shared_data / "iglue" / "MaRVL", AllFound(), english=english)
    assert counts(joined) == counts(marvl_data) | {("dev", "en"): 200}
    labels = collections.Counter(example.label for example in joined.splits["dev"]["en"])
    assert labels == {1: 101, 0: 99}


def test_real_captions_of_wikipedia(shared_data):
    folder = shared_data / "iglue" / "WIT"
    data = read_task("wit", folder, AllFound())
    assert counts(data) == {("dev", "en"): 200, ("test", "ar"): 200, ("test", "ja"): 200}
    for language in ("ar", "ja"):
        rows = lines_of(folder / f"test_{language}_head200.jsonl")
        names = {example.pictures[0].name for example in data.splits["test"][language]}
        assert len(names) == len({row["image_url"] for row in rows}) < 200


def test_real_captions_folder(shared_data):
    finder = ImageFinder(shared_data / "flickr8k")
    data = read_task("multi30k", shared_data / "flickr8k", finder, splits=["dev"])
    with gzip.open(shared_data / "flickr8k" / "captions.jsonl.gz", "rt") as file:
        rows = [row for row in map(json.loads, file) if row["split"] == "val"]
    for language, examples in data.splits["dev"].items():
        expected = 0
        for row in rows:
            spoken = {*row["captions"].get(language, ()), row["translations"].get(language)}
            expected += len({text.strip() for text in spoken if text})
        assert len(examples) == expected > 200
    assert {"en", "de", "fr", "cs", "zh", "ar"} <= set(data.splits["dev"])
