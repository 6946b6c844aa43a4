"""The published line formats: every one of them, and lines that are none."""

from __future__ import annotations

import base64
import io
import json
import pickle

import numpy as np
import pytest
from PIL import Image

from rc3_jax.data.image import decode
from rc3_jax.data.record import BadRecord, DataError, Skips
from rc3_jax.data.sources.rows import ImageTextSource
from tests.data.cclm_lines import (
    REGION,
    TEXTS,
    captioned,
    colour,
    encoded,
    read,
    regions,
    write,
)


def test_captions_of_a_folder_of_files_whatever_they_are_called(tmp_path):
    write(tmp_path / "b.jsonl", captioned(1), b"", captioned(2, caption={"fr": "Un chien."}))
    write(tmp_path / "a", captioned(3))
    write(tmp_path / "_SUCCESS", b"not a line")
    write(tmp_path / ".hidden", b"not a line")
    (tmp_path / "more").mkdir()
    rows = read(tmp_path)
    assert [row.where.rsplit("/")[-1] for row in rows] == ["a:1", "b.jsonl:1", "b.jsonl:3"]
    assert [colour(row) for row in rows] == [3, 1, 2]
    source = ImageTextSource(rows, "captioned")
    assert source[0].texts == {"en": ("A dog.",), "de": ("Ein Hund.",)}
    pairs = {pair: list(numbers) for pair, numbers in source.pairs.items()}
    assert pairs == {("de",): [0, 1], ("en",): [0, 1], ("fr",): [2]}
    # One mapping translates itself; strict rows need two languages.
    assert len(ImageTextSource(rows, "strict")) == 2
    assert [row.where for row in read(tmp_path / "b.jsonl")] == [row.where for row in rows[1:]]


def test_several_captions_of_an_image_are_captions_and_no_translations(tmp_path):
    several = [{"en": "A dog.", "zh": "狗"}, {"en": "A pet.", "zh": "狗"}, {"fr": "Un chien."}]
    [row] = read(write(tmp_path / "x", captioned(caption=several)))
    assert row.translations == {} and row.captions == {
        "en": ("A dog.", "A pet."),
        "zh": ("狗",),
        "fr": ("Un chien.",),
    }
    weak = ImageTextSource([row], "weak")
    assert sorted(weak.pairs) == [("en", "fr"), ("en", "zh"), ("fr", "zh")]
    [alone] = read(write(tmp_path / "y", captioned(caption=[TEXTS])))
    assert alone.translations == {"en": ("A dog.",), "de": ("Ein Hund.",)} and not alone.captions


def test_captions_in_the_chosen_languages_alone(tmp_path):
    lines = [captioned(caption=TEXTS | {"cs": "Pes."}), captioned(1, caption={"en": "A dog."})]
    skips = Skips(limit=0.0)
    [row] = read(write(tmp_path / "x", *lines), languages=("cs", "de"), skips=skips)
    assert row.translations == {"de": ("Ein Hund.",), "cs": ("Pes.",)} and not skips.reasons
    with pytest.raises(DataError, match="x: no line to use; check path, format, keys and lang"):
        read(tmp_path / "x", languages=("ja",))


def test_lines_with_the_same_image_are_one_group(tmp_path):
    lines = [captioned(1), captioned(2), captioned(1, caption={"fr": "Un chien."})]
    assert [row.group for row in read(write(tmp_path / "x", *lines))] == [0, 1, 0]


def test_images_as_paths_plain_and_gzipped(tmp_path):
    (tmp_path / "images").mkdir()
    Image.new("RGB", (40, 20), (9, 0, 0)).save(tmp_path / "images" / "a.png")
    line = dict(binary="a.png", caption=TEXTS, elems=[REGION])
    root = str(tmp_path / "images")
    for name in ("x.jsonl", "x.jsonl.gz"):
        file = write(tmp_path / name, line, line)
        rows = read(file, root=root)
        assert [colour(row) for row in rows] == [9, 9] and [row.group for row in rows] == [0, 0]
        source = read(file, "regions", root=root)
        assert [colour(record) for record in source] == [9, 9] and source.groups == 4
    skips = Skips(limit=1.0)
    bad = [line | {"binary": name} for name in ("../x.jsonl", "b.png", 3, "/etc/passwd", "")]
    assert len(read(write(tmp_path / "y", line, *bad), root=root, skips=skips)) == 1
    leads, missing, number, absolute, empty = skips.reasons.values()
    assert "leads out of" in leads and "leads out of" in absolute
    assert "'b.png' is missing" in missing and "missing or not a text" in number
    assert "y:6: field binary is missing or not a text" in empty


def test_images_within_gzip_files_are_refused_with_the_remedy(tmp_path):
    file = write(tmp_path / "x.jsonl.gz", captioned(), regions())
    for format in ("captions", "regions"):
        with pytest.raises(DataError, match=r"x.jsonl.gz:\d: .* gzip .* unpack it with gunzip"):
            read(file, format)


def test_descriptions_are_in_the_language_that_the_config_names(tmp_path):
    lines = [dict(binary=encoded(i), desc=d) for i, d in enumerate(["A dog.", ["One.", "Two."]])]
    rows = read(write(tmp_path / "x", *lines), "descriptions", language="en")
    assert [row.captions for row in rows] == [{"en": ("A dog.",)}, {"en": ("One.", "Two.")}]
    assert read(tmp_path / "x", "descriptions")[0].captions == {"und": ("A dog.",)}
    assert list(ImageTextSource(rows, "weak").pairs) == [("en", "en")]


def test_parallel_text_without_and_with_languages(tmp_path):
    lines = [dict(source_text=a, target_text=b) for a, b in (("Go.", "Geh."), ("Go.", "Los."))]
    lines.append(dict(source_text=" Stop. ", target_text="Halt."))
    write(tmp_path / "b.jsonl.gz", lines[2])
    write(tmp_path / "a", *lines[:2])
    source = read(tmp_path, "parallel")
    assert [record.texts["und"] for record in source] == [
        ("Go.", "Geh."),
        ("Go.", "Los."),
        ("Stop.", "Halt."),
    ]
    assert source.pairs == {("und", "und"): range(3)}
    assert [record.group for record in source] == [0, 0, 1] and source.groups == 2
    assert source[2].where.endswith("b.jsonl.gz:1") and source[2].image is None
    source = read(tmp_path, "parallel", source_language="en", target_language="de")
    assert source[0].texts == {"en": ("Go.",), "de": ("Geh.",)}
    assert source.pairs == {("de", "en"): range(3)}


def test_fields_of_other_names(tmp_path):
    file = write(tmp_path / "x", dict(src="a", tgt="b"))
    [record] = read(file, "parallel", keys=dict(source="src", target="tgt"))
    assert record.texts == {"und": ("a", "b")}
    line = dict(img=encoded(7), parts=[dict(xywh=[0, 0, 40, 20], text={"en": "dog"})])
    keys = dict(image="img", elements="parts", box="xywh", caption="text")
    [record] = read(write(tmp_path / "y", line), "regions", keys=keys)
    assert record.elements[0].texts == {"en": ("dog",)} and colour(record) == 7


def test_regions_and_their_boxes(tmp_path):
    elements = [
        REGION | {"attributes": {"en": "brown", "de": ""}},
        {"bb": [30, 10, 20, 9.5], "caption": [{"en": "a"}, {"en": "b", "de": "c"}]},  # half outside
        {"bb": [-5, 0, 15, 20], "caption": [{"en": "a"}, {"en": "b", "de": "c"}]},  # a third
        {"bb": [0, 0, 0, 20], "caption": {"en": "line"}},
        {"bb": [0, 0, 40, 20], "caption": {}},
        {"bb": [0, 0, 40, 20], "caption": {"en": ""}},
        {"bb": [0, 0, 40, 20], "attributes": {"en": "brown"}},
        {"bb": [0, 0, 40, 20], "caption": {"en": "all"}, "attributes": None, "more": 1},
    ]
    whole = {"en": "Everything.", "fr": ""}
    lines = [regions(*elements, red=3, caption=whole), regions(red=4), regions(red=5, caption=None)]
    source = read(write(tmp_path / "x", *lines), "regions")
    first, second, third = source
    assert [colour(record) for record in source] == [3, 4, 5]
    assert first.texts == {"en": ("Everything.",)} and second.texts == third.texts == {}
    assert [e.texts for e in first.elements] == [
        {"en": ("dog",)},
        {"en": ("a", "b"), "de": ("c",)},
        {"en": ("all",)},
    ]
    assert [e.attributes for e in first.elements] == [{"en": ("brown",)}, {}, {}]
    expected = [(0.25, 0.25, 0.75, 0.75), (0, 0, 0.25, 1), (0, 0, 1, 1)]
    np.testing.assert_allclose([e.box for e in first.elements], expected)
    # A group for the image and for each element.
    assert [record.group for record in source] == [0, 4, 6] and source.groups == 8
    assert source.pairs == {(): range(3)} and source[1].where == f"{tmp_path / 'x'}:2"
    again = pickle.loads(pickle.dumps(source))[0]
    assert again.elements == first.elements and again.image == first.image


def test_long_lines_are_read_again_where_they_stand(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (900, 900, 3)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "PNG")
    long = captioned(binary=base64.b64encode(file.getvalue()).decode())  # beyond 3 MB
    text = b"\xef\xbb\xbf" + json.dumps(captioned(1)).encode()
    data = b"\r\n".join([text, json.dumps(long).encode(), b"", json.dumps(captioned(2)).encode()])
    (tmp_path / "x").write_bytes(data)
    rows = read(tmp_path / "x")
    assert np.array_equal(decode(rows[1].image, ""), noise)
    assert [colour(rows[0]), colour(rows[2])] == [1, 2] and rows[2].where.endswith("x:4")
    again = pickle.loads(pickle.dumps(rows))
    assert colour(again[2]) == 2


def test_files_that_change_or_go_make_bad_records(tmp_path):
    file = write(tmp_path / "x", captioned(1), captioned(2))
    rows, source = read(file), read(write(tmp_path / "y", regions()), "regions")
    write(file, b"x" * 40)
    with pytest.raises(BadRecord, match="x:1: not JSON"):
        decode(rows[0].image, rows[0].where)
    with pytest.raises(BadRecord, match="x:2: "):
        decode(rows[1].image, rows[1].where)
    (tmp_path / "y").unlink()
    with pytest.raises(BadRecord, match="y:1: cannot be read any more"):
        source[0]
