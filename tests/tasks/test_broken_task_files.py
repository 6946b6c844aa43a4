"""Annotation files that are broken, hostile, or of another task."""

from __future__ import annotations

import contextlib
import shutil

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rc3_jax.data.record import DataError
from rc3_jax.tasks.load import MAX_LINE_BYTES
from tests.tasks.task_files import (
    captions,
    counts,
    flickr,
    gqa,
    marvl,
    nlvr2,
    read,
    wit,
    write,
    write_json,
    xgqa,
    xvnli,
)

ROWS = dict(xvnli=xvnli(), xgqa=gqa(sent="Apa?"), marvl=marvl(), nlvr2=nlvr2(), xflickrco=flickr())
ROWS |= dict(wit=wit(language="id"), multi30k=captions(split="test"))
"""Task, or English part of one → a row that can be used."""
NEEDED = {
    "xvnli": {"gold_label", "sentence2", "pairID", "Flikr30kID"},
    "xgqa": {"question_id", "sent", "img_id"},
    "marvl": {"concept", "caption", "left_img", "right_img", "id", "label"},
    "nlvr2": {"sentence", "identifier", "label"},
    "xflickrco": {"img_path", "sentences"},
    "wit": {"wit_ix", "image_url", "caption_reference_description"},
    "multi30k": {"image", "split"},
}
BAD_ROWS = [
    ("xvnli", xvnli(9, "maybe"), "gold_label"),
    ("xvnli", xvnli(9, Flikr30kID="../9"), "Flikr30kID"),
    ("xvnli", xvnli(9, sentence2=None), "sentence2"),
    ("xvnli", xvnli(1), "1.jpg#3r1n"),  # twice
    ("xvnli", {"gold_label": "neutral", "sentence2": "A."}, "Flikr30kID, pairID"),
    ("xgqa", gqa(9, label={"no": True}), "label"),
    ("xgqa", gqa(9, label={"no": 10**400}), "label"),
    ("xgqa", gqa(9, img_id=True), "img_id"),
    ("xgqa", {"question": "A?", "imageId": "1", "question_id": "9"}, "answer"),
    ("xgqa", gqa(9, label="no"), "label"),
    ("xgqa", gqa(9, label={"no": float("nan")}), "label"),
    ("xgqa", gqa(9, img_id=None), "img_id"),
    ("xgqa", gqa(9, img_id="../../n1"), "n1.jpg"),
    ("xgqa", gqa(9, question_id=True), "question_id"),
    ("xgqa", {**xgqa(answer=3), "question_id": "9"}, "answer"),
    ("marvl", marvl(9, "yes"), "label"),
    ("marvl", marvl(9, 1), "label"),
    ("marvl", marvl(9, language="tr"), "language"),
    ("marvl", marvl(9, right_img="../../../x.jpg"), "x.jpg"),
    ("marvl", marvl(9, left_img=["x.jpg"]), "left_img"),
    ("nlvr2", nlvr2("dev-850-0"), "identifier"),
    ("nlvr2", nlvr2("dev-9-0-0", "true"), "label"),
    ("xflickrco", flickr(9, sentences="Ein Hund."), "sentences"),
    ("xflickrco", flickr(9, sentences=[]), "sentences"),
    ("xflickrco", flickr(9, "Ein Hund.", None), "sentences"),
    ("xflickrco", flickr(9, img_path=" "), "img_path"),
    ("xflickrco", flickr(9, img_path="/etc/passwd"), "/etc/passwd"),
    ("wit", wit(9, wit_ix="../x", language="id"), "wit_ix"),
    ("wit", wit(3, image_url="https://other", language="id"), "wit-test_3"),
    ("wit", wit(9), "language"),
    ("multi30k", captions(captions={"EN": "A dog."}), "captions"),
    ("multi30k", captions(captions={}, translations=None), "captions"),
    ("multi30k", captions(split="test", image="../x.jpg"), "x.jpg"),
    ("multi30k", captions(split="test", image=""), "image"),
    ("xflickrco", b'{"img_path": "1.jpg", "img_path": "2.jpg", "sentences": ["A."]}', "img_path"),
    ("xflickrco", b"{", "JSON"),
    ("xflickrco", b"[1]", "JSON"),
    ("xflickrco", b'{"a": "\xff"}', "UTF-8"),
    ("xflickrco", b"[" * 100_000, "JSON"),
    ("xflickrco", b'"' + b"x" * MAX_LINE_BYTES + b'"', str(MAX_LINE_BYTES)),
]


def write_rows(tmp_path, task, *rows):
    """Writes a test split, and returns its file and what `read` needs for it."""
    write_json(tmp_path / "trainval_ans2label.json", {"no": 0})
    if task != "nlvr2":
        name = "captions.jsonl" if task == "multi30k" else "test_id.jsonl"
        return write(tmp_path / name, *rows), dict(task=task, folder=tmp_path)
    write(tmp_path / "marvl" / "marvl-id.jsonl", marvl())
    given = dict(task="marvl", folder=tmp_path / "marvl", english=str(tmp_path / "nlvr2"))
    return write(tmp_path / "nlvr2" / "test.jsonl", *rows), given


@pytest.mark.parametrize(("task", "row", "named"), BAD_ROWS)
def test_files_with_many_bad_rows_are_refused_with_file_and_line(tmp_path, task, row, named):
    path, given = write_rows(tmp_path, task, ROWS[task], row)
    with pytest.raises(DataError) as raised:
        read(**given, splits=["test"])
    message = str(raised.value)
    assert f"{path}:2" in message and named in message and len(message) < 2000
    write_rows(tmp_path, task, ROWS[task])  # "mend or remove them"
    assert counts(read(**given, splits=["test"]))


def test_few_bad_rows_are_left_out_and_counted(tmp_path):
    rows = [flickr(number) for number in range(199)]
    path, given = write_rows(tmp_path, "xflickrco", *rows, flickr(9, sentences=[]))
    notes = []
    data = read(**given, notes=notes)
    assert counts(data) == {"test/id": 199} and data.left_out == {"test": {"id": 1}}
    assert len(notes) == 1 and f"{path}:200" in notes[0]


@pytest.mark.parametrize("task", ROWS)
def test_rows_of_another_task_are_recognised(tmp_path, task):
    for other in ROWS.keys() - {task}:
        path, given = write_rows(tmp_path, task, ROWS[other])
        with pytest.raises(DataError, match=f"{path.name}:1: a row of {other}") as raised:
            read(**given, splits=["test"])
        keys = NEEDED[task] - ROWS[other].keys()
        assert keys and all(key in str(raised.value) for key in keys)


def test_a_document_of_another_task_is_recognised_by_its_rows(tmp_path):
    path = write_json(tmp_path / "fr" / "test.json", {"7": xgqa()})
    with pytest.raises(DataError, match="a row of xgqa") as raised:
        read("xvnli", tmp_path, splits=["test"])
    assert str(path) in str(raised.value) and "pairID" in str(raised.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=4,
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data(), st.sampled_from(sorted(ROWS)))
def test_any_value_in_any_field_is_read_or_refused(tmp_path, data, task):
    row = ROWS[task] | {data.draw(st.sampled_from(sorted(ROWS[task]))): data.draw(JSON)}
    _, given = write_rows(tmp_path, task, row)
    with contextlib.suppress(DataError):
        assert set(counts(read(**given, splits=["test"]))) <= {"test/id", "test/en"}


BAD_DOCUMENTS = (b'{"1": {"question": "A?"}, "1": {}}', b'[{"img_id": NaN}]', b"{", b"\xff\xfe")


@pytest.mark.parametrize("content", [*BAD_DOCUMENTS, b"[" * 100_000, b'"text"', b"[1]"])
def test_broken_json_documents(tmp_path, content):
    write_json(tmp_path / "trainval_ans2label.json", {"no": 0})
    (tmp_path / "test_de.json").write_bytes(content)
    with pytest.raises(DataError, match="test_de.json"):
        read("xgqa", tmp_path)


@pytest.mark.parametrize(
    "answers", [{}, [], {"no": 1}, {"no": 0, "yes": 0}, {"no": "0"}, ["a", "a"], [1], "no"]
)
def test_lists_of_answers_that_are_none(tmp_path, answers):
    write_json(tmp_path / "test_de.json", {"1": xgqa()})
    write_json(tmp_path / "trainval_ans2label.json", answers)
    with pytest.raises(DataError, match=r"download trainval_ans2label\.json again"):
        read("xgqa", tmp_path)
    write_json(tmp_path / "trainval_ans2label.json", {"no": 0})
    read("xgqa", tmp_path)


def test_pickle_and_packed_files_are_not_read(tmp_path):
    folder = tmp_path / "few_shot"
    write_json(folder / "de/dev.json", {"1": xgqa()})
    with pytest.raises(DataError, match=r"trainval_ans2label\.json.* give its path as answers"):
        read("xgqa", folder)
    read("xgqa", folder, answers=str(write_json(tmp_path / "x.json", {"no": 0})))
    write_json(tmp_path / "GQA/trainval_ans2label.json", {"no": 0})
    (folder / "de/test.pkl").write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    (folder / "de/train.json.zip").write_bytes(b"PK")
    (folder / "de/hard_negative.pkl").write_bytes(b"")
    for name, split in (("test.pkl", "test"), ("train.json.zip", "train")):
        with pytest.raises(DataError, match=name):
            read("xgqa", folder, splits=["dev", split])
    notes = []
    assert counts(read("xgqa", folder, splits=["dev"], notes=notes)) == {"dev/de": 1}
    assert "hard_negative.pkl" in notes[0]
    write_json(folder / "de/test.json", {"1": xgqa()})  # beside test.pkl
    (folder / "de/train.json.zip").unlink()
    write_json(folder / "de/train.json", {"1": xgqa()})
    found = counts(read("xgqa", folder, splits=["dev", "test", "train"]))
    assert found == {"dev/de": 1, "test/de": 1, "train/de": 1}


def test_folders_that_are_not_as_they_should_be(tmp_path):
    folder = tmp_path / "XVNLI"
    write(folder / "de/test.jsonl", xvnli())
    (folder / "fr").mkdir()
    (folder / "fr/readme.txt").write_text("")
    with pytest.raises(DataError, match="fr: no annotations .* add files, or remove the folder"):
        read("xvnli", folder)
    shutil.rmtree(folder / "fr")
    assert counts(read("xvnli", folder)) == {"test/de": 1}
    write(folder / "fr/test.jsonl", xvnli())
    assert counts(read("xvnli", folder)) == {"test/de": 1, "test/fr": 1}
    write(folder / "annotations/fr/test.jsonl", xvnli())
    with pytest.raises(DataError, match="have one split .* keep one"):
        read("xvnli", folder)
    shutil.rmtree(folder / "annotations")
    assert counts(read("xvnli", folder)) == {"test/de": 1, "test/fr": 1}


def test_links_of_the_user_are_followed_and_never_in_circles(tmp_path):
    folder = tmp_path / "XVNLI"
    write(folder / "de/test.jsonl", xvnli())
    write(tmp_path / "elsewhere/test.jsonl", xvnli(2))
    (folder / "fr").symlink_to(tmp_path / "elsewhere")
    (folder / "de/dev.jsonl").symlink_to(write(tmp_path / "outside.jsonl", xvnli(3)))
    (folder / "de/up").symlink_to(folder)
    (tmp_path / "link").symlink_to(folder)
    for place in (folder, tmp_path / "link"):
        assert counts(read("xvnli", place)) == {"dev/de": 1, "test/de": 1, "test/fr": 1}
    write_json(tmp_path / "elsewhere/xgqa/de/test.json", {"1": xgqa()})
    write_json(tmp_path / "GQA/trainval_ans2label.json", {"no": 0})
    (tmp_path / "xGQA").symlink_to(tmp_path / "elsewhere/xgqa")
    [example] = read("xgqa", tmp_path / "xGQA").splits["test"]["de"]
    assert example.label == 0  # by the answers in the folder GQA beside the link


WORDLESS = (
    ".",
    "...",
    "\u200b",
    "\u3164\u2800",
    "  ",
    "\x00\x1b",
    "\u202e\u2066",
    "\ud800",
    "x " * 1001,
)


@pytest.mark.parametrize("text", WORDLESS)
@pytest.mark.parametrize("task", ROWS)
def test_texts_without_words_are_left_out_counted_and_told(tmp_path, task, text):
    field = dict(xvnli="sentence2", xgqa="sent", marvl="caption", nlvr2="sentence")
    field |= dict(wit="caption_reference_description", multi30k="captions", xflickrco="sentences")
    shape = {"multi30k": {"id": ["Satu.", text]}, "xflickrco": ["Satu.", text]}
    name = {"xvnli": "pairID", "xgqa": "question_id", "marvl": "id", "nlvr2": "identifier"}
    bad = ROWS[task] | {field[task]: shape.get(task, text)}
    if task in name:
        bad[name[task]] = "dev-1-2-3"
    path, given = write_rows(tmp_path, task, ROWS[task], bad)
    notes = []
    data = read(**given, splits=["test"], notes=notes)
    language = "en" if task == "nlvr2" else "id"
    assert data.left_out == {"test": {language: 1}}
    assert not any(example.text == text.strip() for example in data.examples())
    assert len(data.splits["test"].get(language, ())) == (2 if task == "xflickrco" else 1)
    [note] = [note for note in notes if "left out" in note]
    assert f"{path}:2" in note and f"test in {language}: 1 " in note


def test_a_split_of_wordless_texts_alone_is_no_split(tmp_path):
    write(tmp_path / "test_de.jsonl", flickr(1, "."), flickr(2, "?!"))
    with pytest.raises(DataError, match=r"no usable rows of test.*test_de.jsonl:1"):
        read("xflickrco", tmp_path, splits=["test"])


@pytest.mark.parametrize("language, refused", [("de", True), ("en", False)])
@pytest.mark.parametrize("form", ["list", "object"])
def test_english_questions_are_of_no_other_language(tmp_path, language, refused, form):
    questions = ("Is it red?", "What color is the car?", "Are there any cats?", "Ist es rot?")
    rows = [gqa(n, sent=question) for n, question in enumerate(questions)]
    if form == "object":
        rows = {n: xgqa(question=question) for n, question in enumerate(questions)}
    write_json(tmp_path / "trainval_ans2label.json", {"no": 0})
    path = write_json(tmp_path / language / "testdev.json", rows)
    write_json(tmp_path / "annotations_machine-translate/de/testdev.json", rows)
    assert counts(read("xgqa", tmp_path, splits=["testdev_mt"])) == {"testdev_mt/de": 4}
    if refused:
        with pytest.raises(DataError, match=f"{path}: 3 of 4.* move it to a folder en, or put"):
            read("xgqa", tmp_path, splits=["testdev"])
        path.parent.rename(tmp_path / "en")
    assert counts(read("xgqa", tmp_path, splits=["testdev"])) == {"testdev/en": 4}


def test_empty_and_unknown_files_are_noted(tmp_path):
    write(tmp_path / "de/test.jsonl", xvnli())
    write(tmp_path / "de/train_1.jsonl")
    unknown = ("results.jsonl", "test.csv", "test_de_fr.jsonl", "dev_5.jsonl", "train.jsonl")
    for name in unknown:
        write(tmp_path / name, b"")
    (tmp_path / "readme.md").write_text("")
    notes = []
    read("xvnli", tmp_path, splits=["test"], notes=notes)
    assert len(notes) == 1 and all(name in notes[0] for name in unknown)
    (tmp_path / "de/test.jsonl").write_bytes(b"\n\n")
    with pytest.raises(DataError, match=r"no usable rows of test.*no rows"):
        read("xvnli", tmp_path, splits=["test"])


def test_damaged_gzip_file(tmp_path):
    path = write(tmp_path / "test_de.jsonl.gz", *(flickr(n) for n in range(100)))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"test_de.jsonl.gz: damaged"):
        read("xflickrco", tmp_path)
