"""Every task in the formats and layouts in which the benchmarks publish it."""

from __future__ import annotations

import hashlib
import itertools
import pathlib

import pytest

from rc3_jax.data.record import DataError
from rc3_jax.settings import ConfigError
from rc3_jax.tasks.benchmarks import TASKS
from rc3_jax.tasks.config import GeneratedSizes, finetune_config
from rc3_jax.tasks.head import Scored
from rc3_jax.tasks.load import load_task
from rc3_jax.tasks.results import result_of
from tests.tasks.task_files import (
    captions,
    coco,
    counts,
    draw,
    flickr,
    gqa,
    images,
    marvl,
    nlvr2,
    read,
    task_config,
    texts,
    wit,
    write,
    write_json,
    xgqa,
    xvnli,
)


def test_every_task_has_a_configuration_and_a_score_for_each_column():
    files = (pathlib.Path(__file__).parents[2] / "configs" / "downstream").glob("*.py")
    assert set(TASKS) == {path.stem for path in files}
    for task in TASKS.values():
        assert finetune_config(task.name).task == task.name
        for _, *published, _ in task.baselines:
            assert {len(scores) for scores in published if scores} == {len(task.scores)}


def test_xvnli(tmp_path):
    rows = [xvnli(1, "entailment"), xvnli(2, "neutral"), xvnli(3, "contradiction"), xvnli(4, "-")]
    write(tmp_path / "annotations/fr/test.jsonl", *rows)
    write(tmp_path / "annotations/fr/train_48.jsonl", xvnli(1))
    write(tmp_path / "annotations/en/dev-fr_gmt.jsonl", xvnli(1))
    write(tmp_path / "annotations/en/dev.jsonl", xvnli(1, Flikr30kID="1.jpg"))
    write(tmp_path / "annotations_machine-translate/fr/test.jsonl", *rows)
    (tmp_path / "annotations/.DS_Store").write_bytes(b"")
    data = read("xvnli", tmp_path)
    assert data.classes == ("contradiction", "neutral", "entailment")
    assert counts(data) == {
        "dev/en": 1, "dev_mt/fr": 1, "test/fr": 4, "test_mt/fr": 4, "train_48/fr": 1
    }  # fmt: skip
    test = data.splits["test"]["fr"]
    assert [example.label for example in test] == [2, 1, 0, None]
    assert test[0].text == "Hypothesis 1." and test[0].identity == "1.jpg#3r1n"
    assert test[0].where.endswith("fr/test.jsonl:1")
    assert images(data, "test", "fr") == [["1.jpg"], ["2.jpg"], ["3.jpg"], ["4.jpg"]]
    assert data.splits["dev"]["en"][0].pictures == test[0].pictures


def test_xgqa_takes_its_answers_from_the_folder_of_gqa(tmp_path):
    write_json(tmp_path / "gqa/annotations/trainval_ans2label.json", {"yes": 1, "no": 0})
    folder = tmp_path / "xGQA/annotations"
    questions = {"20": xgqa(answer="yes"), "3": xgqa("n2", "porcelain")}
    write_json(folder / "few_shot/de/train_10.json", questions)
    (folder / "few_shot/de/train_10.pkl").write_bytes(b"")
    write_json(folder / "zero_shot/testdev_balanced_questions_bn.json", {"7": xgqa()})
    data = read("xgqa", tmp_path / "xGQA")
    assert data.classes == ("no", "yes")
    assert counts(data) == {"testdev/bn": 1, "train_10/de": 2}
    first, second = data.splits["train_10"]["de"]
    assert (first.identity, first.text, first.label) == ("20", "Ist es?", 1)
    assert first.where.endswith("train_10.json['20']")
    assert second.label is None and images(data, "train_10", "de")[1] == ["n2.jpg"]


def test_gqa_as_iglue_rewrites_it_and_as_published(tmp_path):
    write_json(tmp_path / "xGQA/de/test.json", {"7": xgqa()})
    folder = tmp_path / "english/annotations"
    write_json(folder / "trainval_ans2label.json", {"no": 0, "yes": 1})
    labels = [{"no": 0.3, "yes": 1.0}, {"maybe": 1}, {}, None]
    write_json(folder / "testdev.json", [gqa(i, label=one) for i, one in enumerate(labels)])
    write_json(folder / "testdev_balanced_questions.json", {"0": xgqa()})
    write_json(folder / "valid.json", [gqa(question_id=5)])
    notes = []
    data = read("xgqa", tmp_path / "xGQA", english=str(tmp_path / "english"), notes=notes)
    assert counts(data) == {"dev/en": 1, "test/de": 1, "testdev/en": 4}
    assert [example.label for example in data.splits["testdev"]["en"]] == [1, None, None, None]
    assert data.splits["dev"]["en"][0].identity == "5"
    assert "testdev_balanced_questions.json" in notes[0]
    answers = write_json(tmp_path / "trainval_label2ans.json", ["no", "yes"])
    assert read("xgqa", tmp_path / "xGQA", answers=str(answers)).classes == data.classes


def test_marvl_keeps_images_of_each_language_apart(tmp_path):
    folder = tmp_path / "marvl"
    write(folder / "zero_shot/annotations/marvl-id.jsonl", marvl(0), marvl(1, False))
    write(folder / "zero_shot/annotations_machine-translate/marvl-id_gmt.jsonl", marvl(0))
    chinese = marvl(language="zh", concept="39-锅", left_img="39-1.jpg")
    write(folder / "zero_shot/annotations/marvl-zh.jsonl", chinese)
    few = marvl(left_img="39-Panci/39-n-5.jpg", right_img="39-Panci/39-11.jpg")
    write(folder / "few_shot/annotations/marvl-id_train10x2.jsonl", few)
    root = tmp_path / "images"
    published = ("id/images/39-Panci/39-0.jpg", "id/39-Panci/39-11.jpg")
    flat = ("39-Panci/39-n-5.jpg", "zh/39-1.jpg", "zh/39-11.jpg")
    data = read("marvl", folder, draw(root, *published, *flat))
    assert data.classes == ("false", "true")
    assert counts(data) == {"test/id": 2, "test/zh": 1, "test_mt/id": 1, "train_10x2/id": 1}
    assert [example.label for example in data.splits["test"]["id"]] == [1, 0]
    assert images(data, "test", "id")[0] == [f"{root}/{name}" for name in published]
    assert images(data, "train_10x2", "id") == [[f"{root}/{flat[0]}", f"{root}/{published[1]}"]]
    assert images(data, "test", "zh") == [[f"{root}/{name}" for name in flat[1:]]]


def test_one_language_needs_no_files_of_others(tmp_path):
    folder = tmp_path / "marvl"
    write(folder / "annotations/marvl-id.jsonl", marvl(0))
    write(folder / "annotations/marvl-zh.jsonl", marvl(language="zh", concept="1-x"))
    (folder / "sw").mkdir()  # of a language that was not downloaded
    draw(tmp_path / "images", "id/39-0.jpg", "id/39-11.jpg")
    config = task_config("marvl", folder, images=str(tmp_path / "images"))
    with pytest.raises(DataError, match="sw"):
        load_task(config, parts=("test",))
    config.test.languages = ("id",)
    assert counts(load_task(config, parts=("test",))) == {"test/id": 1}
    config.test.languages = ("id", "zh")
    with pytest.raises(DataError, match="zh"):
        load_task(config, parts=("test",))


@pytest.mark.parametrize("part", ["train", "select", "test"])
@pytest.mark.parametrize("named, near", [("jp", "ja"), ("zh", "zh-CN"), ("DE", "de")])
@pytest.mark.parametrize("task", ["xflickrco", "multi30k"])
def test_languages_that_are_not_there_are_refused_with_near_ones(tmp_path, task, part, named, near):
    finder = draw(tmp_path, "1.jpg")
    splits = {"train": "train", "select": "dev", "test": "test"}
    rows = [
        captions(split=split, captions={code: ["x"] for code in ("de", "en", "ja", "zh-CN")})
        for split in splits.values()
    ]
    if task == "multi30k":
        write(tmp_path / "captions.jsonl", *rows)
    else:
        near = "zh" if near == "zh-CN" else near
        named = "zh-CN" if near == "zh" else named
        for code, split in itertools.product(("de", "en", "ja", "zh"), splits.values()):
            write(tmp_path / code / f"{split}.jsonl", flickr(1))
    config = task_config(task, tmp_path, images=str(tmp_path))
    config[part].languages = ("en", named)
    with pytest.raises(DataError, match=rf"{part}.languages.*{named}.*mean {near}\?"):
        load_task(config, images=finder)
    assert finder.undecoded() == (["1.jpg"] if finder.found else [])  # it is told before that
    config[part].languages = ("en", near)
    assert set(load_task(config, images=finder).splits[splits[part]]) >= {"en", near}


def test_answers_that_differ_in_case_and_spaces_are_known_and_others_counted(tmp_path):
    answers = {"yes": 0, "no": 1, "red": 2, "tv": 3, "TV": 4}
    write_json(tmp_path / "trainval_ans2label.json", answers)
    given = ("Yes", "yes ", "no", "blue", " RED", "TV", "tv", "Tv", "")
    rows = {n: xgqa(answer=answer) for n, answer in enumerate(given)}
    write_json(tmp_path / "de" / "testdev.json", rows)
    notes = []
    data = read("xgqa", tmp_path, notes=notes)
    labels = [example.label for example in data.splits["testdev"]["de"]]
    assert labels == [0, 0, 1, None, 2, 4, 3, None, None]
    [note] = notes
    assert "testdev in de: 3 of 9" in note and "'blue'" in note
    config = task_config("xgqa", tmp_path)
    config.test.split = "testdev"
    found = {"de": Scored({}, [{}] * 9)}
    examples = {"test testdev": data.splits["testdev"]}
    result = result_of(config, data, examples, found, train=None)
    assert result["no_class"] == {"de": 3}


def test_nlvr2_is_the_english_part_of_marvl(tmp_path):
    write(tmp_path / "marvl/marvl-id.jsonl", marvl())
    folder = tmp_path / "nlvr2/annotations"
    write(folder / "dev.jsonl", nlvr2(), nlvr2("dev-850-0-1", "False"))
    write(folder / "dev-id_gmt.jsonl", nlvr2())
    write(folder / "test.jsonl", nlvr2("test1-0-1-0"))
    write(folder / "train.jsonl", nlvr2("train-10171-0-0", directory=64))
    pairs = ("dev-850-0", "test1/test1-0-1", "images/train/64/train-10171-0")
    names = [f"{pair}-img{side}.png" for pair in pairs for side in (0, 1)]
    finder = draw(tmp_path / "images", *names, "id/39-0.jpg", "id/39-11.jpg")
    data = read("marvl", tmp_path / "marvl", finder, english=str(tmp_path / "nlvr2"))
    assert counts(data) == {
        "dev/en": 2, "dev_mt/id": 1, "test/en": 1, "test/id": 1, "train/en": 1
    }  # fmt: skip
    assert [example.label for example in data.splits["dev"]["en"]] == [1, 0]
    assert images(data, "train", "en") == [[f"{tmp_path}/images/{name}" for name in names[4:]]]


def test_xflickrco_and_its_english_training_set(tmp_path):
    folder, english = tmp_path / "xFlickrCO", tmp_path / "flickr30k"
    write(folder / "annotations/de/test.jsonl", flickr(1), coco("Eine Katze."))
    write(folder / "annotations/en/test.jsonl", flickr(1, "A dog."))
    write(folder / "annotations/de/train_100x5.jsonl", flickr(1, "Eins."), flickr(1, "Zwei."))
    write(english / "annotations/train_ann.jsonl.gz", flickr(2, *"abcde"), flickr(3, *"fghij"))
    write(english / "annotations/valid_ann.jsonl", flickr(4, *"klmno"))
    write(english / "annotations/test_ann.jsonl", flickr(5, *"pqrst"))
    photograph = "COCO_val2014_000000369771.jpg"
    names = ("1.jpg", "flickr30k-images/2.jpg", "images/3.jpg", "images/flickr30k-images/4.jpg")
    finder, notes = draw(tmp_path, *names, f"val2014/{photograph}"), []
    data = read("xflickrco", folder, finder, english=str(english), notes=notes)
    assert counts(data) == {
        "dev/en": 5, "test/de": 2, "test/en": 1, "train/en": 10, "train_100x5/de": 2
    }  # fmt: skip
    identities = [example.identity for example in data.splits["train_100x5"]["de"]]
    assert identities == ["1.jpg#0", "1.jpg#1"] and data.classes == ()
    assert data.splits["test"]["de"][1].pictures[0].name == photograph
    assert len({example.pictures[0].name for example in data.splits["train"]["en"]}) == 2
    assert any("test_ann.jsonl" in note for note in notes)


def test_phrase_numbers_are_part_of_the_benchmark_unless_stripped(tmp_path):
    numbered = "1男が、3メガネをかけた２人と"
    write(tmp_path / "ja/test.jsonl", flickr(1, numbered), coco("2人の男。"))
    write(tmp_path / "de/test.jsonl", flickr(1, "2 Hunde."))
    assert texts(read("xflickrco", tmp_path), "test", "ja") == [numbered, "2人の男。"]
    data = read("xflickrco", tmp_path, strip_phrase_numbers=True)
    assert texts(data, "test", "ja") == ["男が、メガネをかけた２人と", "2人の男。"]
    assert texts(data, "test", "de") == ["2 Hunde."]


def test_wit_has_several_captions_an_image(tmp_path):
    folder = tmp_path / "wit/annotations"
    write(folder / "test_ar.jsonl", wit(3, "eins"), wit(26), wit(3, "zwei"))
    write(folder / "test_ja.jsonl", wit(3, "三", language="ja"))
    write(folder / "val_en.jsonl", wit(4, language="en", image_url="http://a/4.JPG"))
    machine = folder.parent / "annotations_machine-translate"
    write(machine / "test_ar_gmt.jsonl", wit(3, image_url="http://upload.wikimedia.org/3.jpg"))
    hashed = hashlib.sha256(b"http://a/4.JPG").hexdigest()
    finder = draw(tmp_path, "wit-test_3.png", "images/wit-test_26.jpg", f"{hashed}.jpeg")
    data = read("wit", tmp_path / "wit", finder)
    assert counts(data) == {"dev/en": 1, "test/ar": 3, "test/ja": 1, "test_mt/ar": 1}
    arabic = data.splits["test"]["ar"]
    three, other = (f"https://upload.wikimedia.org/{number}.jpg" for number in (3, 26))
    identities = [f"{three}#0", f"{other}#0", f"{three}#1"]
    assert [example.identity for example in arabic] == identities
    assert arabic[0].pictures == arabic[2].pictures == data.splits["test"]["ja"][0].pictures
    assert images(data, "dev", "en") == [[f"{tmp_path}/{hashed}.jpeg"]]


@pytest.mark.parametrize("task", ["multi30k", "mscoco"])
def test_folders_of_captions(tmp_path, task):
    write(
        tmp_path / "captions.jsonl.gz",
        captions(translations={"en": "A dog.", "fr": "Un chien."}),
        captions(image="2.jpg", split="test", captions={"en": "A bird.", "zh-Hant": ["鳥。"]}),
        captions(image="1.jpg", captions={"en": "Again."}),
    )
    data = read(task, tmp_path, draw(tmp_path, "1.jpg", "images/2.jpg"))
    assert counts(data) == {"dev/en": 3, "dev/fr": 1, "test/en": 1, "test/zh-Hant": 1}
    assert texts(data, "dev", "en") == ["A dog.", "A cat.", "Again."]
    assert data.splits["dev"]["en"][2].identity == "1.jpg#2"


def test_other_splits_are_not_read(tmp_path):
    write(tmp_path / "de/test.jsonl", flickr())
    write(tmp_path / "de/train_1.jsonl", b"broken")
    assert counts(read("xflickrco", tmp_path, splits=["test"])) == {"test/de": 1}
    with pytest.raises(DataError, match="no usable rows of dev"):
        read("xflickrco", tmp_path, splits=["dev"])


@pytest.mark.parametrize(
    ("task", "settings", "named"),
    [
        ("xvnli", dict(annotations="none"), "images"),
        ("xvnli", dict(annotations="", images="here"), "annotations"),
        ("xvnli", dict(annotations="none", images="."), "none: no such folder .*; check the path"),
        ("xvnli", dict(images="none"), "none: no such folder of images; check the path"),
        ("xvnli", dict(images=".", english="."), "leave english out"),
        ("xvnli", dict(images=".", generated=GeneratedSizes().config_dict()), "annotations"),
        ("mscoco", dict(images="."), "captions.jsonl"),
    ],
)
def test_settings_are_checked(tmp_path, monkeypatch, task, settings, named):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ConfigError, DataError), match=named):
        load_task(task_config(task, tmp_path, **settings))
    for split in ("train", "dev", "test"):
        write(tmp_path / "en" / f"{split}.jsonl", xvnli())
    draw(tmp_path, "1.jpg")
    load_task(task_config("xvnli", tmp_path, images="."))
