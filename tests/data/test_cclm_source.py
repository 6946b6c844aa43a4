"""The published line formats of CCLM: every one of them, lines that are none, and batches."""

from __future__ import annotations

import base64
import io
import json
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from rc3_jax.data.image import decode
from rc3_jax.data.record import BadRecord, DataError, Skips
from rc3_jax.data.sources.cclm import CCLMSource, RegionSource
from rc3_jax.data.sources.images import ImageTextSource
from rc3_jax.settings import ConfigError
from tests.data.files import (
    REGION,
    TEXTS,
    captioned,
    colour,
    described,
    encoded,
    pairs,
    png,
    regions,
    sentences,
    write,
)

FORMATS = ("captions", "descriptions", "regions", "parallel")
MADE = dict(zip(FORMATS, (captioned, described, regions, sentences), strict=True))


def read(path, format="captions", skips=None, **settings):
    values = dict(type="cclm", path=str(path), format=format, **settings)
    source, skips = CCLMSource.parse(values), skips or Skips()
    if format == "regions":
        return RegionSource(source, skips)
    return (
        source.read_sentences(skips) if format == "parallel" else source.read_captions(path, skips)
    )


def test_captions_of_a_folder_of_files_whatever_they_are_called(tmp_path):
    write(tmp_path / "b.jsonl", captioned(1), b"", captioned(3, caption={"fr": "Un chien."}))
    write(tmp_path / "a", captioned(3))
    write(tmp_path / "_SUCCESS", b"not a line")
    write(tmp_path / ".hidden", b"not a line")
    (tmp_path / "more").mkdir()
    rows = read(tmp_path)
    assert [row.where.rsplit("/")[-1] for row in rows] == ["a:1", "b.jsonl:1", "b.jsonl:3"]
    assert [colour(row) for row in rows] == [3, 1, 3]
    source = ImageTextSource(rows, "captioned")
    assert [record.group for record in source] == [0, 1, 0]  # lines with the same image
    assert source[0].texts == {"en": ("A dog.",), "de": ("Ein Hund.",)}
    assert pairs(source) == {("de",): [0, 1], ("en",): [0, 1], ("fr",): [2]}
    # One mapping translates itself; strict rows need two languages.
    assert len(ImageTextSource(rows, "strict")) == 2
    assert [row.where for row in read(tmp_path / "b.jsonl")] == [row.where for row in rows][1:]


def test_several_captions_of_an_image_are_captions_and_no_translations(tmp_path):
    several = [{"en": "A dog.", "zh": "狗"}, {"en": "A pet.", "zh": "狗"}, {"fr": "Un chien."}]
    [row] = rows = read(write(tmp_path / "x", captioned(caption=several)))
    assert row.translations == {} and row.captions == {
        "en": ("A dog.", "A pet."),
        "zh": ("狗",),
        "fr": ("Un chien.",),
    }
    assert sorted(pairs(ImageTextSource(rows, "weak"))) == [
        ("en", "fr"),
        ("en", "zh"),
        ("fr", "zh"),
    ]
    [alone] = read(write(tmp_path / "y", captioned(caption=[TEXTS])))
    assert alone.translations == {"en": ("A dog.",), "de": ("Ein Hund.",)} and not alone.captions


def test_captions_in_the_chosen_languages_alone(tmp_path):
    lines = [captioned(caption=TEXTS | {"cs": "Pes."}), captioned(1, caption={"en": "A dog."})]
    skips = Skips(limit=0.0)
    [row] = read(write(tmp_path / "x", *lines), languages=("cs", "de"), skips=skips)
    assert row.translations == {"de": ("Ein Hund.",), "cs": ("Pes.",)} and not skips.reasons
    with pytest.raises(DataError, match=r"x: languages: .*\bja\b.*cs, de, en"):
        read(tmp_path / "x", languages=("ja",))


def test_chosen_languages_without_a_text_are_refused(tmp_path):
    file = write(tmp_path / "x", captioned(caption={"en": "A dog.", "zh-CN": "狗"}))
    with pytest.raises(DataError, match=r"x: languages: .*\bzh .*zh-CN"):
        read(file, languages=("en", "zh"))
    assert len(read(file, languages=("en", "zh-CN"))) == 1
    with pytest.raises(DataError, match=r"x: languages: .*\bzh .*zh-CN"):
        read(file, languages=("zh",))
    region = REGION | {"caption": {"en": "dog", "zh-CN": "狗"}}
    file = write(tmp_path / "y", regions(region), regions(REGION))
    for wrong in (("zh",), ("en", "zh")):
        with pytest.raises(DataError, match=r"y: languages: .*\bzh .*zh-CN.*en, zh-CN"):
            read(file, "regions", languages=wrong)
    [record] = read(file, "regions", languages=("zh-CN",))  # the other line is passed over
    assert [element.texts for element in record.elements] == [{"zh-CN": ("狗",)}]


def test_base64_may_be_wrapped_and_is_otherwise_strict(tmp_path):
    wrapped = base64.encodebytes(png(9)).decode()
    [row] = read(write(tmp_path / "x", captioned(binary=wrapped)))
    assert "\n" in wrapped and colour(row) == 9
    skips = Skips(limit=1.0)
    bad = captioned(binary="*" + encoded(9)[:40] + "$" + encoded(9)[40:])
    assert len(read(write(tmp_path / "x", captioned(), bad), skips=skips)) == 1
    assert "base64" in skips.reasons[f"{tmp_path / 'x'}:2"]


def test_regions_that_are_left_out_are_counted_and_fractions_are_refused(tmp_path):
    flat = {"bb": [0, 0, 0, 20], "caption": {"en": "line"}}
    fractions = {"bb": [0.25, 0.25, 0.5, 0.5], "caption": {"en": "dog"}}
    skips = Skips(limit=1.0)
    source = read(
        write(tmp_path / "x", regions(flat, REGION), regions(fractions)), "regions", skips
    )
    assert [len(record.elements) for record in source] == [1]
    [counts] = skips.left_out.values()
    assert counts == {f"{tmp_path / 'x'}:1": 1}
    assert "0…1" in skips.reasons[f"{tmp_path / 'x'}:2"]


def test_images_as_paths_plain_and_gzipped(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(png(9))
    line = dict(binary="a.png", caption=TEXTS, elems=[REGION])
    root = str(tmp_path / "images")
    for name in ("x.jsonl", "x.jsonl.gz"):
        file = write(tmp_path / name, line, line)
        rows = read(file, root=root)
        assert [colour(row) for row in rows] == [9, 9]
        assert ImageTextSource(rows, "strict").groups == 1
        source = read(file, "regions", root=root)
        assert [colour(record) for record in source] == [9, 9] and source.groups == 3
    with pytest.raises(DataError, match="set root in the config if this is a path"):
        read(tmp_path / "x.jsonl")
    skips = Skips(limit=1.0)
    names = ("../x.jsonl", "b.png", 3, "/etc/passwd", "")
    file = write(tmp_path / "y", line, *(line | {"binary": name} for name in names))
    assert len(read(file, root=root, skips=skips)) == 1
    assert all(r.startswith(f"{w}: ") and "binary" in r for w, r in skips.reasons.items())
    assert list(skips.reasons) == [f"{file}:{number}" for number in range(2, 7)]


def test_images_within_gzip_files_are_refused(tmp_path):
    file = write(tmp_path / "x.jsonl.gz", captioned(), regions())
    for format in ("captions", "regions"):
        with pytest.raises(DataError, match=r"x.jsonl.gz:\d: .*; unpack it"):
            read(file, format)
        assert read(write(tmp_path / "x.jsonl", MADE[format]()), format)


def test_descriptions_are_in_the_language_that_the_config_names(tmp_path):
    lines = [dict(binary=encoded(i), desc=d) for i, d in enumerate(["A dog.", ["One.", "Two."]])]
    rows = read(write(tmp_path / "x", *lines), "descriptions", language="en")
    assert [row.captions for row in rows] == [{"en": ("A dog.",)}, {"en": ("One.", "Two.")}]
    assert read(tmp_path / "x", "descriptions")[0].captions == {"und": ("A dog.",)}
    assert pairs(ImageTextSource(rows, "weak")) == {("en", "en"): [0]}


def test_parallel_text_without_and_with_languages(tmp_path):
    lines = [sentences(source_text="Go.", target_text=text) for text in ("Geh.", "Los.")]
    write(tmp_path / "b.jsonl.gz", sentences(source_text=" Stop. ", target_text="Halt."))
    write(tmp_path / "a", *lines)
    source = read(tmp_path, "parallel")
    assert [record.texts["und"] for record in source] == [
        ("Go.", "Geh."),
        ("Go.", "Los."),
        ("Stop.", "Halt."),
    ]
    assert source.pairs == {("und", "und"): range(3)}
    assert [record.group for record in source] == [0, 0, 2]
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
    assert [record.group for record in source] == [0, 1, 2] and source.groups == 8
    assert [record.element_group for record in source] == [3, 6, 7]
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
    (tmp_path / "y").unlink()
    for place in (0, 1):
        with pytest.raises(BadRecord, match=f"x:{place + 1}: "):
            decode(rows[place].image, rows[place].where)
    with pytest.raises(BadRecord, match="y:1: "):
        source[0]


def _assert_skipped(tmp_path, format, bad, named):
    file = write(tmp_path / "x.jsonl", MADE[format](), bad)
    skips = Skips(limit=1.0)
    assert len(read(file, format, skips)) == 1
    [(where, reason)] = skips.reasons.items()
    assert where == f"{file}:2" and reason.startswith(f"{where}: ") and named in reason


@pytest.mark.parametrize("format", ["captions", "regions", "descriptions"])
@pytest.mark.parametrize(
    "binary",
    [None, 5, "A", "ä" * 8, "images/17.jpg", "AAAA", base64.b64encode(png()[:20]).decode()],
)
def test_broken_images_are_named(tmp_path, format, binary):
    is_base64 = binary and len(str(binary)) in (4, 28)
    named = "cannot be decoded" if is_base64 else "binary"
    _assert_skipped(tmp_path, format, MADE[format](binary=binary), named)


def _region(**fields) -> dict:
    return regions(REGION, REGION | fields)


BOXES = [None, 5, "1234", [], [1, 2, 3], [1, 2, 3, 4, 5], ["1", 2, 3, 4], [True, 1, 1, 1], {}]
BOXES += [[1e300, 0, 1e300, 1], [0, 0, 10**400, 1], [float("nan"), 0, 1, 1]]


@pytest.mark.parametrize(
    ("format", "bad", "named"),
    [
        *(("captions", captioned(caption=c), "caption") for c in (None, [], {}, 7, [3], " ")),
        *(("captions", captioned(caption={"en": c}), "caption") for c in (" ", 3, "\ud800")),
        ("captions", captioned(caption={"EN": "A dog."}), "'EN'"),
        *(("descriptions", described(desc=c), "desc") for c in (None, [], 7, [3], " ", "\ud800")),
        *(("regions", _region(bb=box), "bb") for box in BOXES),
        *(("regions", regions(elems=given), "elems") for given in (None, {}, ["dog"])),
        ("regions", regions(elems=[]), "none of the 0 regions"),
        ("regions", regions(REGION | {"bb": [50, 0, 10, 10]}), "(40 x 20)"),
        ("regions", regions(REGION | {"bb": [0, 0, -5, 10]}), "none of the 1 regions"),
        ("regions", regions(REGION | {"caption": {"en": ""}}), "none of the 1 regions"),
        ("regions", _region(caption="dog"), "caption"),
        ("regions", _region(caption={"en": 3}), "caption"),
        ("regions", _region(attributes={"en": 3}), "attributes"),
        ("regions", regions(caption={"e n": "dog"}), "caption"),
        ("parallel", dict(source_text="a"), "target_text"),
        *(("parallel", sentences(target_text=t), "target_text") for t in (" ", ["b"], "\udcff")),
        ("parallel", sentences(source_text="x" * 2001), "source_text"),
    ],
)
def test_broken_lines_are_skipped_and_named(tmp_path, format, bad, named):
    _assert_skipped(tmp_path, format, bad, named)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.dictionaries(st.sampled_from(["bb", "caption", "attributes", "en"]), inner, max_size=4)
    ),
    max_leaves=12,
)
FIELDS = ("binary", "caption", "desc", "elems", "source_text", "target_text")


@settings(max_examples=150)
@given(st.dictionaries(st.sampled_from(FIELDS), ANYTHING), st.sampled_from(FORMATS))
def test_whatever_a_line_holds_it_is_used_or_skipped(tmp_path_factory, fields, format):
    good = sentences() | described() | captioned() | regions()
    file = write(tmp_path_factory.getbasetemp() / "any.jsonl", good, good | fields)
    skips = Skips(limit=1.0)
    source = read(file, format, skips)
    assert len(source) + len(skips.reasons) == 2
    for index in range(len(source)):
        assert source[index].where == f"{file}:{index + 1}"


def test_invalid_settings_and_missing_files_are_named(tmp_path):
    for name, values in {
        "format": dict(format="words"),
        "keys.picture": dict(keys=dict(picture="x")),
        "source_language": dict(format="parallel", source_language="english"),
        "languages.0": dict(languages=("EN",)),
        "heldout_path": dict(format="regions", heldout_path="y"),
        "heldout": dict(heldout="x"),
    }.items():
        with pytest.raises(ConfigError, match=rf"^x\b.*{name}"):
            CCLMSource.parse(dict(path="x", format="captions") | values, "x")
    with pytest.raises(DataError, match="gone: no such file or folder; correct path in the config"):
        read(tmp_path / "gone")
    with pytest.raises(DataError, match="no line to use; check path"):
        read(tmp_path)
