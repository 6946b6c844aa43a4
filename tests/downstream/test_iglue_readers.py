"""Every task in the formats and layouts in which the benchmark publishes it."""

from __future__ import annotations

import hashlib
import pathlib

import pytest

from rc3_jax.data.record import DataError
from rc3_jax.downstream import readers
from rc3_jax.downstream.readers import read_task
from tests.downstream.iglue_rows import (
    AllFound,
    coco,
    counts,
    flickr,
    folder_row,
    gqa,
    marvl,
    nlvr2,
    texts,
    touch,
    wit,
    write,
    write_json,
    xgqa,
    xvnli,
)


def test_xvnli(tmp_path):
    folder = tmp_path / "XVNLI"
    rows = [xvnli(1, "entailment"), xvnli(2, "neutral"), xvnli(3, "contradiction"), xvnli(4, "-")]
    write(folder / "annotations" / "fr" / "test.jsonl", *rows)
    write(folder / "annotations" / "fr" / "train_48.jsonl", xvnli(1))
    write(folder / "annotations" / "en" / "dev-fr_gmt.jsonl", xvnli(1))
    write(folder / "annotations" / "en" / "dev.jsonl", xvnli(1, Flikr30kID="1.jpg"))
    write(folder / "annotations_machine-translate" / "fr" / "test.jsonl", *rows)
    (folder / "annotations" / "en" / "train.jsonl.zip").write_bytes(b"PK")
    (folder / "annotations" / ".DS_Store").write_bytes(b"")
    notes = []
    data = read_task("xvnli", folder, AllFound(), notes=notes)
    assert data.classes == ("contradiction", "neutral", "entailment")
    assert counts(data) == {
        ("dev", "en"): 1,
        ("dev_mt", "fr"): 1,
        ("test", "fr"): 4,
        ("test_mt", "fr"): 4,
        ("train_48", "fr"): 1,
    }
    test = data.splits["test"]["fr"]
    assert [example.label for example in test] == [2, 1, 0, None]
    assert test[0].text == "Hypothesis 1." and test[0].identity == "1.jpg#3r1n"
    assert test[0].where.endswith("fr/test.jsonl:1")
    assert [picture.name for picture in test[3].pictures] == ["4.jpg"]
    assert data.splits["dev"]["en"][0].pictures == test[0].pictures
    assert len(notes) == 1 and "train.jsonl.zip: unpack it" in notes[0]


def test_xgqa_takes_its_answers_from_the_folder_of_gqa(tmp_path):
    write_json(tmp_path / "gqa/annotations/trainval_ans2label.json", {"yes": 1, "no": 0})
    few_shot = tmp_path / "xGQA" / "annotations" / "few_shot"
    questions = {"20": xgqa(answer="yes"), "3": xgqa("n2", "porcelain")}
    write_json(few_shot / "de" / "train_10.json", questions)
    (few_shot / "de" / "train_10.pkl").write_bytes(b"")
    zero_shot = tmp_path / "xGQA" / "annotations" / "zero_shot"
    write_json(zero_shot / "testdev_balanced_questions_bn.json", {"7": xgqa()})
    data = read_task("xgqa", tmp_path / "xGQA", AllFound())
    assert data.classes == ("no", "yes")
    assert counts(data) == {("testdev", "bn"): 1, ("train_10", "de"): 2}
    first, second = data.splits["train_10"]["de"]
    assert (first.identity, first.text, first.label) == ("20", "Ist es?", 1)
    assert second.label is None and second.pictures[0].image == pathlib.Path("n2.jpg")
    assert first.where.endswith("train_10.json['20']")


def test_gqa_in_the_list_form_and_as_published(tmp_path):
    folder = tmp_path / "gqa" / "annotations"
    write_json(folder / "trainval_label2ans.json", ["no", "yes"])
    write_json(folder / "trainval_ans2label.json", {"no": 0, "yes": 1})
    labels = [{"no": 0.3, "yes": 1.0}, {"maybe": 1}, {}, None]
    write_json(folder / "testdev.json", [gqa(i, label=one) for i, one in enumerate(labels)])
    write_json(folder / "testdev_balanced_questions.json", {"0": xgqa()})
    write_json(folder / "valid.json", [gqa(question_id=5)])
    notes = []
    data = read_task("gqa", tmp_path / "gqa", AllFound(), notes=notes)
    assert counts(data) == {("dev", "en"): 1, ("testdev", "en"): 4}
    assert [example.label for example in data.splits["testdev"]["en"]] == [1, None, None, None]
    assert data.splits["dev"]["en"][0].identity == "5"
    assert "testdev_balanced_questions.json: the same split as testdev.json" in notes[0]
    again = read_task("gqa", folder, AllFound(), answers=folder / "trainval_label2ans.json")
    assert again.classes == data.classes


def test_marvl_keeps_images_of_each_language_apart(tmp_path):
    folder = tmp_path / "marvl"
    zero_shot = folder / "zero_shot"
    write(zero_shot / "annotations" / "marvl-id.jsonl", marvl(0), marvl(1, False))
    write(zero_shot / "annotations_machine-translate" / "marvl-id_gmt.jsonl", marvl(0))
    chinese = marvl(language="zh", concept="39-锅", left_img="39-1.jpg")
    write(zero_shot / "annotations" / "marvl-zh.jsonl", chinese)
    few = marvl(left_img="39-Panci/39-n-5.jpg", right_img="39-Panci/39-11.jpg")
    write(folder / "few_shot" / "annotations" / "marvl-id_train10x2.jsonl", few)
    finder = touch(
        tmp_path / "images",
        "id/images/39-Panci/39-0.jpg",
        "id/39-Panci/39-11.jpg",
        "39-Panci/39-n-5.jpg",
        "zh/39-1.jpg",
        "zh/39-11.jpg",
    )
    data = read_task("marvl", folder, finder)
    assert data.classes == ("false", "true")
    assert counts(data) == {
        ("test", "id"): 2,
        ("test", "zh"): 1,
        ("test_mt", "id"): 1,
        ("train_10x2", "id"): 1,
    }
    first, second = data.splits["test"]["id"]
    assert (first.label, second.label) == (1, 0)
    left, right = first.pictures
    assert left.image == tmp_path / "images/id/images/39-Panci/39-0.jpg"
    assert right is data.splits["train_10x2"]["id"][0].pictures[1]
    assert data.splits["test"]["zh"][0].pictures[1].image == tmp_path / "images/zh/39-11.jpg"


def test_nlvr2_with_training_images_in_folders(tmp_path):
    folder = tmp_path / "nlvr2" / "annotations"
    write(folder / "dev.jsonl", nlvr2(), nlvr2("dev-850-0-1", "False"))
    write(folder / "dev-id_gmt.jsonl", nlvr2())
    write(folder / "test.jsonl", nlvr2("test1-0-1-0"))
    write(folder / "train.jsonl", nlvr2("train-10171-0-0", directory=64))
    finder = touch(
        tmp_path / "images",
        *(f"dev-850-0-img{side}.png" for side in (0, 1)),
        *(f"test1/test1-0-1-img{side}.png" for side in (0, 1)),
        *(f"images/train/64/train-10171-0-img{side}.png" for side in (0, 1)),
    )
    data = read_task("nlvr2", tmp_path / "nlvr2", finder)
    assert counts(data) == {
        ("dev", "en"): 2,
        ("dev_mt", "id"): 1,
        ("test", "en"): 1,
        ("train", "en"): 1,
    }
    assert [example.label for example in data.splits["dev"]["en"]] == [1, 0]
    names = [picture.name for picture in data.splits["dev"]["en"][1].pictures]
    assert names == ["dev-850-0-img0.png", "dev-850-0-img1.png"]


def test_xflickrco_and_its_english_training_set(tmp_path):
    folder, english = tmp_path / "xFlickrCO", tmp_path / "flickr30k"
    write(folder / "annotations/de/test.jsonl", flickr(1), coco("Eine Katze."))
    write(folder / "annotations/en/test.jsonl", flickr(1, "A dog."))
    write(folder / "annotations/de/train_100x5.jsonl", flickr(1, "Eins."), flickr(1, "Zwei."))
    write(folder / "annotations_machine-translate/de/test_gmt.jsonl", flickr(1))
    write(english / "annotations/train_ann.jsonl.gz", flickr(2, *"abcde"), flickr(3, *"fghij"))
    write(english / "annotations/valid_ann.jsonl", flickr(4, *"klmno"))
    write(english / "annotations/test_ann.jsonl", flickr(5, *"pqrst"))
    finder = touch(
        tmp_path,
        "1.jpg",
        "flickr30k-images/2.jpg",
        "images/3.jpg",
        "images/flickr30k-images/4.jpg",
        "val2014/COCO_val2014_000000369771.jpg",
    )
    notes = []
    data = read_task("xflickrco", folder, finder, english=english, notes=notes)
    assert counts(data) == {
        ("dev", "en"): 5,
        ("test", "de"): 2,
        ("test", "en"): 1,
        ("test_mt", "de"): 1,
        ("train", "en"): 10,
        ("train_100x5", "de"): 2,
    }
    identities = [example.identity for example in data.splits["train_100x5"]["de"]]
    assert identities == ["1.jpg#0", "1.jpg#1"] and data.classes == ()
    assert data.splits["test"]["de"][1].pictures[0].name == "COCO_val2014_000000369771.jpg"
    assert len({example.pictures[0].name for example in data.splits["train"]["en"]}) == 2
    assert any("test_ann.jsonl: not read, for" in note for note in notes)
    alone = read_task("flickr30k", english, finder, splits=["dev", "train"])
    assert alone.splits["dev"] == data.splits["dev"]


def test_phrase_numbers_are_part_of_the_benchmark_unless_stripped(tmp_path):
    numbered = "1男が、3メガネをかけた２人と"
    write(tmp_path / "ja" / "test.jsonl", flickr(1, numbered), coco("2人の男。"))
    write(tmp_path / "de" / "test.jsonl", flickr(1, "2 Hunde."))
    data = read_task("xflickrco", tmp_path, AllFound())
    assert texts(data, "test", "ja") == [numbered, "2人の男。"]
    data = read_task("xflickrco", tmp_path, AllFound(), strip_phrase_numbers=True)
    assert texts(data, "test", "ja") == ["男が、メガネをかけた２人と", "2人の男。"]
    assert texts(data, "test", "de") == ["2 Hunde."]


def test_wit_has_several_captions_an_image(tmp_path):
    folder = tmp_path / "wit" / "annotations"
    write(folder / "test_ar.jsonl", wit(3, "eins"), wit(26), wit(3, "zwei"))
    write(folder / "test_ja.jsonl", wit(3, "三", language="ja"))
    english = {"language": "en", "wit_ix": "wit_545045", "image_url": "http://a/4.JPG"}
    write(folder / "val_en.jsonl", english | {"caption_reference_description": "cathedral"})
    machine = folder.parent / "annotations_machine-translate"
    write(machine / "test_ar_gmt.jsonl", wit(3, image_url="http://upload.wikimedia.org/3.jpg"))
    hashed = hashlib.sha256(b"http://a/4.JPG").hexdigest()
    finder = touch(tmp_path, "wit-test_3.png", "images/wit-test_26.jpg", f"{hashed}.jpeg")
    data = read_task("wit", tmp_path / "wit", finder)
    assert counts(data) == {
        ("dev", "en"): 1,
        ("test", "ar"): 3,
        ("test", "ja"): 1,
        ("test_mt", "ar"): 1,
    }
    arabic = data.splits["test"]["ar"]
    three, other = (f"https://upload.wikimedia.org/{number}.jpg" for number in (3, 26))
    identities = [f"{three}#0", f"{other}#0", f"{three}#1"]
    assert [example.identity for example in arabic] == identities
    assert arabic[0].pictures == arabic[2].pictures == data.splits["test"]["ja"][0].pictures
    assert data.splits["dev"]["en"][0].pictures[0].image.name == f"{hashed}.jpeg"


@pytest.mark.parametrize("task", ["multi30k", "mscoco"])
def test_folders_of_captions(tmp_path, task):
    write(
        tmp_path / "captions.jsonl.gz",
        folder_row(translations={"en": "A dog.", "fr": "Un chien."}),
        folder_row(image="2.jpg", split="test", captions={"en": "A bird.", "zh-Hant": ["鳥。"]}),
        folder_row(image="1.jpg", captions={"en": "Again."}),
    )
    data = read_task(task, tmp_path, touch(tmp_path, "1.jpg", "images/2.jpg"))
    assert counts(data) == {
        ("dev", "en"): 3,
        ("dev", "fr"): 1,
        ("test", "en"): 1,
        ("test", "zh-Hant"): 1,
    }
    assert texts(data, "dev", "en") == ["A dog.", "A cat.", "Again."]
    assert data.splits["dev"]["en"][2].identity == "1.jpg#2"
    few = read_task(task, tmp_path, touch(tmp_path), splits=["test"], languages=["en"])
    assert counts(few) == {("test", "en"): 1}


def test_splits_and_languages_are_chosen_and_others_not_read(tmp_path):
    write(tmp_path / "de" / "test.jsonl", flickr())
    write(tmp_path / "fr" / "test.jsonl", b"broken")
    write(tmp_path / "de" / "train_1.jsonl", b"broken")
    data = read_task("xflickrco", tmp_path, AllFound(), splits=["test"], languages=["de"])
    assert counts(data) == {("test", "de"): 1}
    with pytest.raises(DataError, match=r"no usable rows of split 'dev'.*test/de, test/fr"):
        read_task("xflickrco", tmp_path, AllFound(), splits=["dev"])
    with pytest.raises(DataError, match="no usable rows of language 'es'"):
        read_task("xflickrco", tmp_path, AllFound(), languages=["es"])


def test_arguments_are_checked(tmp_path):
    with pytest.raises(DataError, match="task 'snli' is unknown; use one of xvnli, "):
        read_task("snli", tmp_path, AllFound())
    with pytest.raises(DataError, match="none: no such folder of annotations"):
        read_task("wit", tmp_path / "none", AllFound())
    with pytest.raises(DataError, match="xvnli has no English task"):
        read_task("xvnli", tmp_path, AllFound(), english=tmp_path)
    with pytest.raises(DataError, match="one file captions.jsonl or"):
        read_task("mscoco", tmp_path, AllFound())
    with pytest.raises(DataError, match=r"none; names are expected such as de/train_10.jsonl"):
        read_task("xvnli", tmp_path, AllFound())
    assert set(readers.ENGLISH_TASKS) | set(readers.ENGLISH_TASKS.values()) <= set(readers.TASKS)


def test_rows_about_missing_images_are_counted(tmp_path):
    write(tmp_path / "de" / "test.jsonl", *(flickr(n, "Eins.", "Zwei.") for n in range(20)))
    finder = touch(tmp_path, *(f"{n}.jpg" for n in range(19)))
    notes = []
    data = read_task("xflickrco", tmp_path, finder, notes=notes)
    assert counts(data) == {("test", "de"): 38}
    [note] = notes
    assert note.startswith("test in de: 19 of 20 images found") and "2 rows left out" in note


def test_a_split_without_its_images_stops_though_others_have_theirs(tmp_path):
    write(tmp_path / "de" / "train_100.jsonl", *(flickr(n) for n in range(99)))
    write(tmp_path / "de" / "test.jsonl", flickr(100))
    finder = touch(tmp_path, *(f"{n}.jpg" for n in range(99)))
    with pytest.raises(DataError, match="test in de: 0 of 1 images .*missing are 100.jpg"):
        read_task("xflickrco", tmp_path, finder)
    notes = []
    data = read_task("xflickrco", tmp_path, finder, allow_missing=True, notes=notes)
    assert counts(data) == {("train_100", "de"): 99}
    assert "0 of 1 images" in notes[0] and "1 rows left out" in notes[0]
    with pytest.raises(DataError, match=r"no usable rows of split 'test'.*0 of 1 images"):
        read_task("xflickrco", tmp_path, finder, allow_missing=True, splits=["test"])
