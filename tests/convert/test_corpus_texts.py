"""Texts of caption files and plain text, of chosen languages."""

from __future__ import annotations

import gzip
import json
import pathlib
import re
import shutil

import pytest

from rc3_jax.convert.corpus_texts import corpus_texts
from rc3_jax.data.record import DataError, Skips


@pytest.fixture
def files(tmp_path) -> dict[str, pathlib.Path]:
    """A corpus of all kinds of files; name → path."""
    rows = [
        {"image": "1.jpg", "split": "train", "translations": {"en": " A dog. ", "de": "Ein Hund."}},
        {"image": "2.jpg", "captions": {"en": ["A cat.", "Cats."], "fr": "Un chat."}},
    ]
    captions = "".join(json.dumps(row) + "\n" for row in rows) + "\n"
    contents = {
        "captions.jsonl": captions,
        "captions.jsonl.gz": captions,
        "train.de.gz": "Zwei Hunde.\n\n \nDrei.\n",
        "news.2014.cs.txt": "\ufeffPes.\r\nKočka.",
        "train.zh-Hant.txt.gz": "狗。\n",
        "plain.txt": "No language.\n",
        "empty.ja.txt": "\n",
        "x.eng.txt": "A.\n",
    }
    for name, content in contents.items():
        data = content.encode()
        (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    return {name: tmp_path / name for name in contents}


def test_texts_come_from_captions_and_plain_text(files):
    in_captions = ["A dog.", "Ein Hund.", "A cat.", "Cats.", "Un chat."]
    for name in ("captions.jsonl", "captions.jsonl.gz"):
        assert list(corpus_texts([files[name]], None)) == in_captions
        assert list(corpus_texts([str(files[name])], ["en"])) == ["A dog.", "A cat.", "Cats."]
    del files["x.eng.txt"]
    everything = list(corpus_texts(list(files.values()), None))
    assert everything[10:] == ["Zwei Hunde.", "Drei.", "Pes.", "Kočka.", "狗。", "No language."]
    named = [files[n] for n in files if n not in ("plain.txt", "captions.jsonl")]
    chosen = ["Ein Hund.", "Zwei Hunde.", "Drei.", "狗。"]
    assert list(corpus_texts(named, ["zh-Hant", "de"])) == chosen
    assert list(corpus_texts([files["news.2014.cs.txt"]], ["cs"])) == ["Pes.", "Kočka."]


@pytest.mark.parametrize(
    ("names", "languages", "named"),
    [
        (["captions.jsonl", "missing.de.gz"], ["de"], "missing.de.gz"),
        (["plain.txt"], ["de"], "plain.txt"),
        (["x.eng.txt"], ["en"], "x.eng.txt.*use en"),
        ([], ["en"], "no files"),
        (["captions.jsonl"], ["cs", "ja"], "cs, ja; .* de, en, fr"),
        (["train.de.gz", "news.2014.cs.txt"], ["en"], "in en; .* cs, de"),
        (["empty.ja.txt"], ["ja"], "empty.ja.txt"),
    ],
)
def test_files_and_languages_that_cannot_be_used(files, tmp_path, names, languages, named):
    with pytest.raises(DataError, match=named) as refused:
        list(corpus_texts([tmp_path / name for name in names], languages))
    paths, advice = [tmp_path / name for name in names], str(refused.value)
    if missing := re.search(r"(\S+): no such file; check the path", advice):
        shutil.copy(files["train.de.gz"], missing[1])
        assert list(corpus_texts(paths, languages))
    if end := re.search(r"such as train\S+ or train(\S+); rename the file, or choose no", advice):
        renamed = paths[0].rename(tmp_path / f"new{end[1]}")
        assert list(corpus_texts([renamed], ["de"])) and list(corpus_texts([renamed], None))
    if there := re.search(r"languages there are (.*)\. Add files or choose others", advice):
        for code in {*there[1].split(", ")} - {"none"}:
            assert list(corpus_texts(paths, [code]))
        assert list(corpus_texts([*paths, files["captions.jsonl"]], ["en"]))


def test_bad_lines_are_counted_named_and_limited(tmp_path):
    captions, plain = tmp_path / "c.jsonl", tmp_path / "t.de"
    bad_rows = ["{", "[]", "{}", '{"captions": {"en": ""}}', '{"captions": {"english": "A"}}']
    bad_rows.append('{"captions": {"en": "\\ud800"}}')
    captions.write_text("\n".join(['{"captions": {"en": "A"}}', *bad_rows]))
    bad_lines = [b"\xff\xfe", b"...", "\u200b".encode(), b"x" * 2001, b"x" * 2**21]
    plain.write_bytes(b"\n".join([b"Gut.", *bad_lines, "Bo\u0308se\x00.".encode(), b""]))
    skips = Skips(0.99)
    assert list(corpus_texts([captions, plain], ["en", "de"], skips)) == ["A", "Gut.", "Böse."]
    lines = [f"{captions}:{n}" for n in range(2, 8)] + [f"{plain}:{n}" for n in range(2, 7)]
    assert list(skips.reasons) == lines
    for path, count in ((captions, "6 of 7"), (plain, "5 of 7")):
        with pytest.raises(DataError, match=f"{re.escape(str(path))}: {count}"):
            list(corpus_texts([path], ["en", "de"]))
