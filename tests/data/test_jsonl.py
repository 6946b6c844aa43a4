"""Files of rows: every line is given or refused with its place, and fields are checked."""

from __future__ import annotations

import gzip
import json
import pickle
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from rc3_jax.data.jsonl import (
    Captions,
    Identity,
    Language,
    Row,
    Text,
    Translations,
    read_again,
    read_items,
    read_json,
    read_objects,
)
from rc3_jax.data.lines import read_lines
from rc3_jax.data.record import BadRecord, DataError, Skips


class SomeRow(Row):
    name: Text
    number: Identity = ""
    language: Language = "en"
    translations: Translations = Field({})
    captions: Captions = Field({})
    box: list[float] = Field([])


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz", "whatever"])
def test_lines_with_marks_blank_lines_and_gzip(tmp_path, name):
    data = b'\xef\xbb\xbf{"a": 1}\r\n\r\n  \n{"a": 2}'
    file = tmp_path / name
    file.write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    rows = list(read_objects(file))
    assert [(str(place), row) for place, row in rows] == [
        (f"{file}:1", {"a": 1}),
        (f"{file}:4", {"a": 2}),
    ]
    assert [line for _, line in read_lines(file)] == ['{"a": 1}', "", "  ", '{"a": 2}']
    if not name.endswith("gz"):
        assert read_again(rows[1][0]) == {"a": 2}
        file.unlink()
        with pytest.raises(BadRecord, match=f"{name}:4"):
            read_again(rows[1][0])


@pytest.mark.parametrize(
    "line",
    [
        b"{",
        b"[1]",
        b"\xff\xfe{}",
        b"[" * 100_000,
        b'{"a": %s}' % (b"9" * 5000),
        b'{"a": 1, "a": 2}',
        b'{"a": "%s"}' % (b"x" * 2**20),
    ],
    ids=lambda line: str(line[:12]),
)
def test_a_line_that_is_no_object_is_refused_and_the_next_one_read(tmp_path, line):
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b'{"a": 0}\n' + line + b'\n{"a": 3}\n')
    first, bad, last = (row for _, row in read_objects(file))
    assert (first, last) == ({"a": 0}, {"a": 3})
    assert isinstance(bad, BadRecord) and bad.where == f"{file}:2"
    assert str(bad).startswith(f"{file}:2: ")
    assert str(pickle.loads(pickle.dumps(bad))) == str(bad)


def test_files_that_cannot_be_read(tmp_path):
    packed = gzip.compress(b'{"a": 1}\n' * 100)
    for damaged in (packed[:-20], packed[:20] + bytes(20) + packed[40:]):
        (tmp_path / "rows.gz").write_bytes(damaged)
        with pytest.raises(DataError, match="rows.gz: damaged"):
            list(read_objects(tmp_path / "rows.gz"))
    for path in (tmp_path / "none.jsonl", tmp_path):
        for read in (read_objects, read_items):
            with pytest.raises(DataError, match=f"{path}: cannot be read"):
                list(read(path))


def test_rows_of_a_document(tmp_path):
    file = tmp_path / "rows.json"
    file.write_text(json.dumps([{"a": 1}, 2]))
    (first, row), (second, bad) = read_items(file)
    assert (str(first), row) == (f"{file}[0]", {"a": 1})
    assert isinstance(bad, BadRecord) and bad.where == str(second) == f"{file}[1]"
    file.write_text(json.dumps({"17": {"a": 1}}))
    [(place, row)] = read_items(file, key_field="id")
    assert (str(place), row) == (f"{file}['17']", {"id": "17", "a": 1})
    for content in ("3", '{"a": {"b": 1, "b": 2}}', "[" * 100_000, "\ud800", ""):
        file.write_bytes(content.encode("utf-8", "surrogatepass"))
        with pytest.raises(DataError, match="rows.json: "):
            list(read_items(file))
    file.write_text('{"answer": 1.5}')
    assert read_json(file) == {"answer": 1.5}


def test_fields_are_checked_and_made_alike():
    fields = {
        "name": " a b ",
        "number": 17,
        "language": "pt-BR",
        "translations": {"en": "x", "de": ["y", "y "], "fr": []},
        "captions": {"en": ["x", " z", "x"]},
        "box": [1, 2.5],
        "other": float("nan"),
    }
    row = SomeRow.parse(fields, "file:1")
    assert row.model_dump() == {
        "name": "a b",
        "number": "17",
        "language": "pt-BR",
        "translations": {"en": ("x",), "de": ("y",)},
        "captions": {"en": ("x", "z")},
        "box": [1.0, 2.5],
    }
    renamed = SomeRow.parse(
        {"title": "x", "name": 5, "captions": None}, "file:1", {"name": "title"}
    )
    assert renamed.name == "x" and renamed.captions == {}


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"name": None}, "name"),
        ({"name": " "}, "name"),
        ({"name": "\ud800"}, "name"),
        ({"number": True}, "number"),
        ({"language": "EN"}, "language"),
        ({"language": "zh_CN"}, "language"),
        ({"language": "english"}, "language"),
        ({"captions": "dog"}, "captions"),
        ({"captions": ["dog"]}, "captions"),
        ({"captions": {"en": 3}}, r"captions\['en'\]"),
        ({"captions": {"en": ["a", 3]}}, r"captions\['en'\]\[1\]"),
        ({"captions": {"en": ["a", " "]}}, r"captions\['en'\]\[1\]"),
        ({"captions": {"eng": "a"}}, r"captions\['eng'\]"),
        ({"captions": {"\ud800": "a"}}, r"captions\[.*\]"),
        ({"translations": {"en": ["a", "b"]}}, "translations"),
        ({"box": [True]}, r"box\[0\]"),
        ({"box": [10**400]}, r"box\[0\]"),
        ({"box": [float("nan")]}, r"box\[0\]"),
        ({"box": "12"}, "box"),
    ],
)
def test_a_wrong_field_is_named_with_its_place(fields, named):
    with pytest.raises(BadRecord, match=f"^file:1: field {named}[: ]") as refused:
        SomeRow.parse({"name": "x"} | fields, "file:1")
    if code := re.search(r"code '(\w+)' is not in standard form; use ([\w-]+)", str(refused.value)):
        advised = json.dumps(fields).replace(f'"{code[1]}"', f'"{code[2]}"')
        SomeRow.parse({"name": "x"} | json.loads(advised), "file:1")
    with pytest.raises(BadRecord, match="^file:1: field title is missing"):
        SomeRow.parse({}, "file:1", {"name": "title"})


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["en", "de", "\ud800", ""]), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(list(SomeRow.model_fields)), ANYTHING))
def test_whatever_fields_hold_they_are_parsed_or_refused(fields):
    try:
        row = SomeRow.parse(fields, "file:1")
    except BadRecord as error:
        assert str(error).startswith("file:1: field ")
    else:
        assert row.name.strip() and all(row.captions.values())


def test_usable_rows_are_used_and_the_others_counted():
    def use(place, number):
        if number % 50 == 0:
            raise BadRecord(place, "zero")
        return number or None

    rows = [(f"file:{n}", n) for n in range(1, 100)] + [("file:100", BadRecord("file:100", "bad"))]
    skips = Skips(0.02)
    skips.add(BadRecord("other:1", "bad"))
    assert list(skips.usable(rows, use, "file")) == [n for n in range(1, 100) if n != 50]
    assert list(skips.reasons) == ["other:1", "file:50", "file:100"]
    with pytest.raises(DataError, match="file: 2 of 100 (?s:.)*file:50: zero"):
        list(Skips(0.01).usable(rows, use, "file"))


LANGUAGES = st.dictionaries(
    st.sampled_from(["en", "de", "zh-Hant", "EN", "xx", "", "\ud800"]),
    st.sampled_from(
        ["a dog", " é\u200e ", "e\u0301", "", "\x00", "\ud800", "-", "🐕", None, 3, ("a",)]
    )
    | st.lists(st.sampled_from(["a dog", "a dog ", "é", "e\u0301", "", ".", 3, None]), max_size=3),
    max_size=3,
)


@given(st.dictionaries(st.sampled_from(["captions", "translations"]), LANGUAGES | st.none()))
def test_plain_captions_are_what_all_the_validators_give(fields):
    def parsed() -> object:
        try:
            return SomeRow.parse({"name": "x"} | fields, "file:1").model_dump()
        except BadRecord as error:
            return str(error)

    found = parsed()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rc3_jax.data.jsonl.plain_captions", lambda given: None)
        assert parsed() == found


def test_reading_says_how_far_it_is(monkeypatch):
    clock = iter(range(0, 1000, 2))
    monkeypatch.setattr("rc3_jax.data.record.time.monotonic", lambda: next(clock))
    said: list[str] = []
    skips = Skips(0.5, said.append)
    rows = [(f"file:{n}", n) for n in range(1, 5)]
    assert list(skips.usable(rows, lambda place, number: number, "file")) == [1, 2, 3, 4]
    assert said == ["file: 2 records read in 4 s", "file: 4 records read in 8 s"]
    silent = pickle.loads(pickle.dumps(skips))  # as in a process that reads rows
    assert list(silent.usable(rows, lambda place, number: number, "file")) == [1, 2, 3, 4]
