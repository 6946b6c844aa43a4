"""Texts of caption files and plain text, of chosen languages."""

from __future__ import annotations

import gzip
import json
import pathlib
import re

import pytest

from rc3_jax.convert.corpus_texts import corpus_texts
from rc3_jax.data.record import DataError, Skips


def _write(folder: pathlib.Path) -> dict[str, pathlib.Path]:
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
    }
    for name, content in contents.items():
        data = content.encode()
        (folder / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return {name: folder / name for name in contents}


def test_texts_come_from_captions_and_plain_text(tmp_path):
    files = _write(tmp_path)
    in_captions = ["A dog.", "Ein Hund.", "A cat.", "Cats.", "Un chat."]
    for name in ("captions.jsonl", "captions.jsonl.gz"):
        assert list(corpus_texts([files[name]], None)) == in_captions
        assert list(corpus_texts([str(files[name])], ["en"])) == ["A dog.", "A cat.", "Cats."]
    everything = [text for f in files.values() for text in corpus_texts([f], None)]
    assert list(corpus_texts(list(files.values()), None)) == everything
    assert everything[10:] == ["Zwei Hunde.", "Drei.", "Pes.", "Kočka.", "狗。", "No language."]
    named = [files[n] for n in files if n not in ("plain.txt", "captions.jsonl")]
    chosen = ["Ein Hund.", "Zwei Hunde.", "Drei.", "狗。"]
    assert list(corpus_texts(named, ["zh-Hant", "de"])) == chosen
    assert list(corpus_texts([files["news.2014.cs.txt"]], ["cs"])) == ["Pes.", "Kočka."]


@pytest.mark.parametrize(
    ("name", "languages", "message"),
    [
        ("missing.de.gz", ["de"], r"missing\.de\.gz: no such file; check the path"),
        ("", None, r": no such file; check the path"),
        ("plain.txt", ["de"], r"plain\.txt: unknown language code ''.* such as train\.de\.gz"),
        ("x.images.txt", ["de"], r"images\.txt: unknown language code 'images'.*rename the file"),
        ("x.eng.txt", ["en"], r"eng\.txt: language code 'eng' is not in standard form; use en"),
        ("captions.jsonl", ["en", "EN"], "languages: language code 'EN' is not in standard form"),
        ("captions.jsonl", [], "at least one language or None for all of them"),
    ],
)
def test_what_cannot_be_read_is_told_before_the_first_text(tmp_path, name, languages, message):
    _write(tmp_path)
    for other in ("x.images.txt", "x.eng.txt"):
        (tmp_path / other).write_text("A.\n")
    with pytest.raises(DataError, match=message):
        corpus_texts([tmp_path / "captions.jsonl", tmp_path / name], languages)
    with pytest.raises(DataError, match="give at least one file"):
        corpus_texts([], languages)


@pytest.mark.parametrize(
    ("names", "languages", "message"),
    [
        (["captions.jsonl"], ["cs", "ja"], "no text in cs, ja; the languages there are de, en, fr"),
        (["captions.jsonl", "train.de.gz"], ["de", "ja"], "no text in ja; .* are de, en, fr. Add"),
        (["train.de.gz", "news.2014.cs.txt"], ["en"], "no text in en; .* there are cs, de. Add"),
        (["empty.ja.txt"], ["ja"], r"empty\.ja\.txt: no text in ja; the languages there are none"),
    ],
)
def test_languages_without_a_text_are_an_error(tmp_path, names, languages, message):
    files = _write(tmp_path)
    with pytest.raises(DataError, match=message):
        list(corpus_texts([files[name] for name in names], languages))


def test_bad_lines_are_counted_named_and_limited(tmp_path):
    captions, plain = tmp_path / "c.jsonl", tmp_path / "t.de"
    bad_rows = ["{", "[]", "{}", '{"captions": {"en": ""}}', '{"captions": {"english": "A"}}']
    bad_rows.append('{"captions": {"en": "\\ud800"}}')
    captions.write_text("\n".join(['{"captions": {"en": "A"}}', *bad_rows]))
    plain.write_bytes(b"Gut.\n\xff\xfe\nBesser.\n" + b"x" * 2**21 + b"\n")
    skips = Skips(0.99)
    assert list(corpus_texts([captions, plain], ["en", "de"], skips)) == ["A", "Gut.", "Besser."]
    lines = [f"{captions}:{n}" for n in range(2, 8)] + [f"{plain}:2", f"{plain}:4"]
    assert list(skips.reasons) == lines
    assert all(reason.startswith(where) for where, reason in skips.reasons.items())
    for path, count in ((captions, "6 of 7"), (plain, "2 of 4")):
        message = f"{re.escape(str(path))}: {count} records cannot be used, more than 1%"
        with pytest.raises(DataError, match=message):
            list(corpus_texts([path], ["en", "de"]))
