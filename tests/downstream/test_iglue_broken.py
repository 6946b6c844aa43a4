"""Annotation files that are broken, hostile, or of another task."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rc3_jax.data.record import DataError, Skips
from rc3_jax.downstream import reading
from rc3_jax.downstream.readers import read_task
from tests.downstream.iglue_rows import (
    AllFound,
    counts,
    flickr,
    folder_row,
    gqa,
    marvl,
    nlvr2,
    wit,
    write,
    write_json,
    xgqa,
    xvnli,
)

EVERY_TASK = {
    "xvnli": ("XVNLI", xvnli()),
    "xgqa": ("GQA or xGQA", gqa()),
    "gqa": ("GQA or xGQA", {**xgqa(), "question_id": "1"}),
    "marvl": ("MaRVL", marvl()),
    "nlvr2": ("NLVR2", nlvr2()),
    "xflickrco": ("Flickr30k or xFlickr&CO", flickr()),
    "wit": ("WIT", wit(language="de")),
    "multi30k": ("captions of a folder", folder_row()),
}


@pytest.mark.parametrize("task", EVERY_TASK)
def test_files_of_another_task_are_recognised(tmp_path, task):
    write_json(tmp_path / "trainval_ans2label.json", {"no": 0})
    assert {name for name, _ in EVERY_TASK.values()} == set(reading.SIGNATURES)
    for other, (name, row) in EVERY_TASK.items():
        if name == EVERY_TASK[task][0] or "GQA" in task.upper() and "GQA" in other.upper():
            continue
        write(tmp_path / ("captions.jsonl" if task == "multi30k" else "test_de.jsonl"), row)
        with pytest.raises(DataError, match=rf":1: looks like {name}, while .*check folder"):
            read_task(task, tmp_path, AllFound())


BAD_ROWS = [
    ("xvnli", xvnli(9, "maybe"), "gold_label str 'maybe' is none of contradiction, neutral"),
    ("xvnli", xvnli(9, 1), "field gold_label holds int 1, not a text"),
    ("xvnli", xvnli(9, Flikr30kID="../9"), "Flikr30kID str '../9' is no number"),
    ("xvnli", xvnli(9, sentence2="  "), "field sentence2 holds an empty text"),
    ("xvnli", xvnli(9, sentence2=float("nan")), "field sentence2 holds float nan, not a text"),
    ("xvnli", xvnli(1), "'1.jpg#3r1n' was on .*test_id.jsonl:1 already; remove one"),
    ("xvnli", {"gold_label": "neutral", "sentence2": "A."}, "Flikr30kID is missing"),
    ("xgqa", gqa(9, label="no"), "label str 'no' is not answer: weight"),
    ("xgqa", gqa(9, label={"no": float("nan")}), "label dict .* is not answer: weight"),
    ("xgqa", gqa(9, label={"no": "1"}), "is not answer: weight"),
    ("xgqa", gqa(9, img_id=None), "field img_id holds NoneType None, not a text"),
    ("xgqa", gqa(9, img_id="../../n1"), "image str '../../n1.jpg' leads out"),
    ("xgqa", gqa(9, question_id=True), "field question_id holds bool True"),
    ("xgqa", gqa(1), "str '1' was on .* already"),
    ("xgqa", {**xgqa(answer=3), "question_id": "9"}, "field answer holds int 3, not a text"),
    ("marvl", marvl(9, "yes"), "label str 'yes' is neither true nor false"),
    ("marvl", marvl(9, None), "label NoneType None is neither"),
    ("marvl", marvl(9, 1), "label int 1 is neither"),
    ("marvl", marvl(9, language="tr"), "language str 'tr' in a file of id"),
    ("marvl", marvl(9, right_img="../../../x.jpg"), "leads out"),
    ("marvl", marvl(9, left_img=["x.jpg"]), "field left_img holds list"),
    ("nlvr2", nlvr2("dev-850-0"), "identifier str 'dev-850-0' is not like dev-850-0-0"),
    ("nlvr2", nlvr2("../x-1-2-3"), "is not like dev-850-0-0"),
    ("nlvr2", nlvr2("dev-9-0-0", "true"), "label str 'true' is neither"),
    ("xflickrco", flickr(9, sentences="Ein Hund."), "sentences is str 'Ein Hund.', not a list"),
    ("xflickrco", flickr(9, sentences=[]), "sentences is list .*, not a list of texts"),
    ("xflickrco", flickr(9, "Ein Hund.", None), "holds NoneType None, not a text"),
    ("xflickrco", flickr(9, img_path="/etc/passwd"), "image str '/etc/passwd' leads out"),
    ("xflickrco", flickr(9, "\ud800"), "is not Unicode"),
    ("wit", wit(9, wit_ix="../x", language="id"), "wit_ix str '../x' is not like wit-test_3"),
    ("wit", wit(3, image_url="https://other", language="id"), "of wit-test_3, which was"),
    ("wit", wit(9), "language str 'ar' in a file of id"),
    ("multi30k", folder_row(captions={"EN": "A dog."}), "language code 'EN'"),
    ("multi30k", folder_row(captions={}, translations=None), "no text; give captions"),
    ("multi30k", folder_row(split=None), "field split holds NoneType"),
    ("multi30k", folder_row(image="../x.jpg"), "leads out"),
    *[
        (task, line, message)
        for task in ("xvnli", "xflickrco")
        for line, message in (
            (b"{", "not JSON"),
            (b"[1]", "list is not a JSON object"),
            (b"NaN", "float is not a JSON object"),
            (b'{"a": "\xff"}', "not UTF-8"),
            (b"[" * 100_000, "not JSON"),
            (b'"' + b"x" * reading.MAX_LINE_BYTES + b'"', "longer than 4194304 bytes"),
        )
    ],
]
GOOD_ROWS = {task: row for task, (_, row) in EVERY_TASK.items()} | {"wit": wit(3, language="id")}


@pytest.mark.parametrize(("task", "row", "message"), BAD_ROWS)
def test_bad_rows_are_skipped_counted_and_stop_above_the_limit(tmp_path, task, row, message):
    write_json(tmp_path / "trainval_ans2label.json", {"no": 0})
    name = "captions.jsonl" if task == "multi30k" else "test_id.jsonl"
    path = write(tmp_path / name, GOOD_ROWS[task], row)
    with pytest.raises(DataError, match=rf"(?s){name}: 1 of 2 records .*:2: .*{message}") as raised:
        read_task(task, tmp_path, AllFound())
    assert len(str(raised.value)) < 2000
    skips, notes = Skips(limit=0.5), []
    data = read_task(task, tmp_path, AllFound(), skips=skips, notes=notes)
    good = 2 if task == "multi30k" else 1  # captions of the good row
    assert sum(counts(data).values()) == good
    assert list(skips.reasons) == [f"{path}:2"]
    assert notes[0].startswith(f"{path}: 1 of 2 rows cannot be used; first: {path}:2")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"1": {"question": "A?"}, "1": {}}', "key '1' stands twice"),
        (b'[{"img_id": NaN}]', "NaN is not a number"),
        (b"{", "not usable JSON"),
        (b"\xff\xfe", "not usable JSON"),
        (b"[" * 100_000, "not usable JSON"),
        (b'"text"', "is no list or object of rows"),
        (b"[1]", r"1 of 1 records [^:]*:\s*.*test.json\[0\]: int 1 is not a row"),
    ],
)
def test_broken_json_files(tmp_path, content, message):
    write_json(tmp_path / "trainval_ans2label.json", {"no": 0})
    (tmp_path / "de").mkdir()
    (tmp_path / "de" / "test.json").write_bytes(content)
    with pytest.raises(DataError, match=rf"test.json: .*{message}"):
        read_task("xgqa", tmp_path, AllFound())


@pytest.mark.parametrize(
    "answers", [{}, [], {"no": 1}, {"no": 0, "yes": 0}, {"no": "0"}, ["a", "a"], [1], "no"]
)
def test_lists_of_answers_that_are_none(tmp_path, answers):
    write_json(tmp_path / "trainval_ans2label.json", answers)
    with pytest.raises(DataError, match="trainval_ans2label.json: "):
        read_task("xgqa", tmp_path, AllFound())


def test_pickle_files_are_refused(tmp_path):
    few_shot = tmp_path / "xGQA" / "few_shot"
    with pytest.raises(DataError, match=r"no such folder"):
        read_task("xgqa", few_shot, AllFound())
    write_json(few_shot / "de" / "dev.json", {"1": xgqa()})
    with pytest.raises(DataError, match="no trainval_ans2label.json .*pkl twin is not read"):
        read_task("xgqa", tmp_path / "xGQA", AllFound())
    write_json(tmp_path / "GQA" / "trainval_ans2label.json", {"no": 0})
    (few_shot / "de" / "test.pkl").write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    (few_shot / "de" / "hard_negative.pkl").write_bytes(b"")
    with pytest.raises(DataError, match="test.pkl: pickle files are not read.*test.json beside"):
        read_task("xgqa", tmp_path / "xGQA", AllFound())
    notes = []
    data = read_task("xgqa", tmp_path / "xGQA", AllFound(), splits=["dev"], notes=notes)
    assert counts(data) == {("dev", "de"): 1} and "hard_negative.pkl: name of no" in notes[0]


def test_folders_that_are_not_as_they_should_be(tmp_path):
    folder = tmp_path / "XVNLI"
    write(folder / "de" / "test.jsonl", xvnli())
    (folder / "fr").mkdir()
    (folder / "fr" / "readme.txt").write_text("")
    with pytest.raises(DataError, match="fr: folder of a language without a file"):
        read_task("xvnli", folder, AllFound())
    write(folder / "fr" / "test.jsonl", xvnli())
    write(folder / "annotations" / "fr" / "test.jsonl", xvnli())
    with pytest.raises(DataError, match="both split test in fr; keep one"):
        read_task("xvnli", folder, AllFound())
    (folder / "fr" / "test.jsonl").unlink()
    (folder / "fr" / "dev.jsonl").symlink_to(write(tmp_path / "outside.jsonl", xvnli()))
    with pytest.raises(DataError, match="dev.jsonl: leads out of"):
        read_task("xvnli", folder, AllFound())


def test_empty_and_unknown_files_are_noted(tmp_path):
    write(tmp_path / "de" / "test.jsonl", xvnli())
    write(tmp_path / "de" / "train_1.jsonl")
    for name in ("results.jsonl", "test.csv", "test_de_fr.jsonl", "dev_5.jsonl", "train.jsonl"):
        write(tmp_path / name, b"")
    (tmp_path / "readme.md").write_text("")
    notes = []
    data = read_task("xvnli", tmp_path, AllFound(), notes=notes)
    assert counts(data) == {("test", "de"): 1}
    assert "5 files are not read: " in notes[0] and "results.jsonl: name of no split" in notes[0]
    assert notes[1].endswith("train_1.jsonl: no rows") and len(notes) == 2
    (tmp_path / "de" / "test.jsonl").write_bytes(b"\n\n")
    with pytest.raises(DataError, match="no usable rows.*test/de, train_1/de.*no rows"):
        read_task("xvnli", tmp_path, AllFound())


def test_damaged_gzip_file(tmp_path):
    path = write(tmp_path / "test_de.jsonl.gz", *(flickr(n) for n in range(100)))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match="test_de.jsonl.gz: damaged gzip file"):
        read_task("xflickrco", tmp_path, AllFound())


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=4,
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data(), st.sampled_from(sorted(GOOD_ROWS)))
def test_any_value_in_any_field_is_read_or_skipped(tmp_path, data, task):
    row = dict(GOOD_ROWS[task])
    row[data.draw(st.sampled_from(sorted(row)))] = data.draw(JSON)
    write_json(tmp_path / "trainval_ans2label.json", {"no": 0})
    for path in tmp_path.glob("*.jsonl"):
        path.unlink()
    path = tmp_path / ("captions.jsonl" if task == "multi30k" else "test_id.jsonl")
    good = {**GOOD_ROWS[task], **({"split": "good"} if task == "multi30k" else {})}
    write(path, good, row)
    skips = Skips(limit=0.5)
    read = counts(read_task(task, tmp_path, AllFound(), skips=skips))
    if task != "multi30k":
        assert sum(read.values()) + len(skips.reasons) >= 2
    assert all(len(reason) < 2000 for reason in skips.reasons.values())
