"""Lines that are not as published: each is skipped, with file, line and remedy."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rc3_jax.data.record import BadRecord, DataError, Skips
from rc3_jax.data.sources.cclm import Layout
from tests.data.cclm_lines import (
    REGION,
    captioned,
    described,
    encoded,
    read,
    regions,
    write,
)


def broken(format: str) -> list[tuple[object, str]]:
    """Lines that cannot be used, and what is said of them."""
    made = {"captions": captioned, "regions": regions, "descriptions": described}[format]
    truncated = base64.b64encode(base64.b64decode(encoded())[:20]).decode()
    return [
        (b"{", "not JSON"),
        (b"[1]", "list is not a JSON object"),
        (b"\xff\xfe{}", "not UTF-8"),
        (b"[" * 100_000, "not JSON"),
        (b'{"binary": %s}' % (b"9" * 5000), "not JSON"),
        (made(binary=None), "field binary is missing"),
        (made(binary=5), "field binary is missing"),
        (made(binary="A"), "not base64"),
        (made(binary="ä" * 8), "not base64"),
        (made(binary="images/17.jpg"), "not base64|cannot be decoded"),
        (made(binary="AAAA"), "cannot be decoded"),
        (made(binary=truncated), "cannot be decoded"),
    ]


@pytest.mark.parametrize("format", ["captions", "regions", "descriptions"])
def test_broken_lines_are_told_with_file_line_and_remedy(tmp_path, format):
    made = {"captions": captioned, "regions": regions, "descriptions": described}[format]
    cases = broken(format)
    _assert_skipped(tmp_path, format, made(), cases)


@pytest.mark.parametrize("field", ["caption", "desc"])
def test_broken_captions(tmp_path, field):
    format = {"caption": "captions", "desc": "descriptions"}[field]
    made = {"captions": captioned, "descriptions": described}[format]
    cases = [
        (made(**{field: None}), f"no text in field {field}"),
        (made(**{field: []}), f"no text in field {field}"),
        (made(**{field: 7}), f"{field}.*int 7, not a text|{field} is int 7"),
        (made(**{field: [3]}), f"{field}.*int 3"),
        (made(**{field: " "}), "empty text|is str ' '"),
        (made(**{field: "\ud800"}), "not Unicode|is str"),
    ]
    if field == "caption":
        cases += [
            (made(caption={"en": " "}), "caption.'en'. holds an empty text"),
            (made(caption={"en": 3}), "caption.'en'. is int 3"),
            (made(caption={"EN": "A dog."}), "'EN' is not in standard form; use en"),
            (made(caption={"": "A dog."}), "unknown language code"),
            (made(caption={}), "no text in field caption"),
        ]
    _assert_skipped(tmp_path, format, made(), cases)


BOXES = [None, 5, "1234", [], [1, 2, 3], [1, 2, 3, 4, 5], ["1", 2, 3, 4], [True, 1, 1, 1], {}]
HUGE = [[1e300, 0, 1e300, 1], [0, 0, 10**400, 1], [float("nan"), 0, 1, 1], [0, float("-inf"), 1, 1]]


def test_broken_regions(tmp_path):
    def region(**fields):
        return regions(REGION, REGION | fields)

    cases = [(region(bb=box), "box is .*give x, y, width and height") for box in BOXES + HUGE]
    cases += [
        (regions(elems=None), "elems is NoneType None; give a list"),
        (regions(elems={}), "elems is dict {}"),
        (regions(elems=[]), "none of the 0 regions"),
        (regions("dog"), "region is str 'dog'; write an object"),
        (regions(REGION | {"bb": [50, 0, 10, 10]}), r"none of the 1 regions .* \(40 x 20\)"),
        (regions(REGION | {"bb": [0, 0, -5, 10]}), "none of the 1 regions"),
        (regions(REGION | {"caption": {"en": ""}}), "none of the 1 regions has a caption"),
        (region(caption="dog"), "caption is str 'dog'; write {language: text}"),
        (region(caption={"en": 3}), "caption.'en'. is int 3"),
        (region(attributes={"en": 3}), "attributes.'en'. is int 3"),
        (region(attributes=4), "attributes is int 4"),
        (regions(caption={"e n": "dog"}), "unknown language code 'e n'"),
    ]
    _assert_skipped(tmp_path, "regions", regions(), cases)


def test_broken_parallel_text(tmp_path):
    good = dict(source_text="a", target_text="b")
    cases = [
        (dict(source_text="a"), "target_text holds NoneType None, not a text"),
        (good | dict(source_text=3), "source_text holds int 3, not a text"),
        (good | dict(target_text=" "), "target_text holds an empty text"),
        (good | dict(target_text=["b"]), "target_text holds list"),
        (good | dict(target_text="\udcff"), "not Unicode"),
        (good | dict(source_text="x" * 2001), "source_text: 2001 characters, the limit is 2000"),
        (b"a\tb", "not JSON"),
    ]
    _assert_skipped(tmp_path, "parallel", good, cases)


def _assert_skipped(tmp_path, format, good, cases):
    lines = [good, *(line for line, _ in cases)]
    skips = Skips(limit=1.0)
    source = read(write(tmp_path / "x.jsonl", *lines), format, skips)
    assert len(source) == 1
    assert list(skips.reasons) == [f"{tmp_path / 'x.jsonl'}:{n + 2}" for n in range(len(cases))]
    for (where, reason), (_, message) in zip(skips.reasons.items(), cases, strict=True):
        assert reason.startswith(f"{where}: "), reason
        with pytest.raises(BadRecord, match=message):
            raise BadRecord(reason)
    with pytest.raises(DataError, match="cannot be used, more than 1%"):
        read(tmp_path / "x.jsonl", format)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.dictionaries(st.sampled_from(["bb", "caption", "attributes", "en"]), inner, max_size=4)
    ),
    max_leaves=12,
)
FIELDS = ("binary", "caption", "desc", "elems", "source_text", "target_text")
FORMATS = ("captions", "descriptions", "regions", "parallel")


@settings(max_examples=150)
@given(st.dictionaries(st.sampled_from(FIELDS), ANYTHING), st.sampled_from(FORMATS))
def test_whatever_a_line_holds_it_is_used_or_told(tmp_path_factory, fields, format):
    good = dict(source_text="a", target_text="b") | described() | captioned() | regions()
    file = write(tmp_path_factory.getbasetemp() / "any.jsonl", good, good | fields)
    skips = Skips(limit=1.0)
    source = read(file, format, skips)
    assert len(source) + len(skips.reasons) == 2
    for index in range(len(source)):
        assert source[index].where == f"{file}:{index + 1}"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(format="words"), "format='words' is unknown; use one of captions, desc"),
        (dict(format="captions", keys=dict(picture="x")), "keys: picture unknown; use image"),
        (dict(format="captions", root="/nowhere"), "/nowhere: no such folder of images"),
        (dict(format="parallel", source_language="english"), "unknown language code 'english'"),
        (dict(format="captions", languages=("EN",)), "'EN' is not in standard form"),
    ],
)
def test_settings_that_cannot_be_are_told(settings, message):
    with pytest.raises(DataError, match=message):
        Layout(**settings)


def test_nothing_to_read_is_told_with_the_remedy(tmp_path):
    with pytest.raises(DataError, match="gone: no such file or folder; check path"):
        read(tmp_path / "gone")
    with pytest.raises(DataError, match="no line to use"):
        read(tmp_path)
