"""Folders of images: texts by kind, splits, boxes, and lines that cannot be used."""

from __future__ import annotations

import pickle
import re

import numpy as np
import pytest

from rc3_jax.data import image
from rc3_jax.data.record import BadRecord, DataError, Skips
from rc3_jax.data.sources.folder import FolderSource
from rc3_jax.data.sources.images import ImageTextSource
from tests.data.files import pairs, png, write

STRICT = {"en": "A dog.", "de": "Ein Hund.", "fr": "Un chien."}
WEAK = {"en": ["A brown dog.", "A dog runs."], "zh": ["一只狗。"]}


@pytest.fixture
def root(tmp_path):
    (tmp_path / "root" / "images").mkdir(parents=True)
    for name in ("a.png", "b.png", "c.png"):
        (tmp_path / "root" / "images" / name).write_bytes(png())
    return tmp_path / "root"


def line(**fields) -> dict:
    return {"image": "images/a.png", "captions": {"en": "A dog."}, **fields}


def read(root, *lines, split=None, skips=None):
    file = write(root / "captions.jsonl", *lines)
    source = FolderSource(captions=str(file), root=str(root), train_split="", heldout_split="")
    [rows] = source.read([split], skips or Skips())
    return rows


def test_each_kind_takes_the_texts_meant_for_it(root):
    rows = read(
        root,
        line(translations=STRICT, captions=WEAK),
        line(image="images/b.png", captions={"en": ["One.", "Two."]}),
        line(image="images/c.png", translations={"de": "Nur eins."}, captions=None),
        line(image="images/a.png", captions={"en": "Again.", "cs": "Pes."}),
    )
    strict, weak, retrieval = (ImageTextSource(rows, k) for k in ("strict", "weak", "retrieval"))

    assert [r.texts for r in strict] == [{lang: (text,) for lang, text in STRICT.items()}]
    assert pairs(strict) == {("de", "en"): [0], ("de", "fr"): [0], ("en", "fr"): [0]}

    assert [r.where.rsplit(":")[-1] for r in weak] == ["1", "2", "4"]
    assert weak[0].texts == {lang: tuple(texts) for lang, texts in WEAK.items()}
    assert pairs(weak) == {("en", "zh"): [0], ("en", "en"): [1], ("cs", "en"): [2]}

    # The translation replaces captions of its language, for it is comparable across languages.
    assert retrieval[0].texts == {lang: (t,) for lang, t in STRICT.items()} | {"zh": ("一只狗。",)}
    assert retrieval[2].texts == {"de": ("Nur eins.",)} and len(retrieval) == 4

    # Rows of one picture are one group, in every kind.
    assert [r.group for r in retrieval] == [0, 1, 2, 0]
    assert [r.group for r in weak] == [0, 1, 0]
    assert strict.groups == weak.groups == retrieval.groups == 3
    assert image.decode(weak[1].image, weak[1].where).shape == (20, 40, 3)


def test_lines_of_other_splits_do_not_count(root):
    lines = [line(split="train"), line(split="val", captions={"en": ""}), line()]
    skips = Skips(limit=0.5)
    assert len(read(root, *lines, split="train", skips=skips)) == 1
    assert list(skips.reasons) == [f"{root / 'captions.jsonl'}:3"]
    with pytest.raises(DataError, match="captions.jsonl: no line of split 'test'"):
        read(root, *lines[:2], split="test")


def test_boxes_in_either_form_and_of_another_size(root):
    rows = read(
        root,
        line(boxes_xyxy=[[4, 5, 24, 15]]),  # of the image itself, 40 x 20
        line(boxes_xywh=[[4, 5, 20, 10], [0, 0, 40.8, 20]]),
        line(boxes_xywh=[[8, 10, 40, 20]], width=80, height=40),
        line(boxes_xyxy=[]),
    )
    for row in list(rows)[:3]:
        np.testing.assert_allclose(row.boxes[0], [0.1, 0.25, 0.6, 0.75])
    assert rows[1].boxes.shape == (2, 4) and rows[1].boxes.dtype == np.float32
    assert rows[1].boxes[1].tolist() == [0, 0, 1, 1]
    assert rows[3].boxes is None
    source = ImageTextSource(rows, "retrieval")
    assert np.array_equal(source[0].boxes, rows[0].boxes) and source[0].features is None


def test_boxes_without_area_are_counted_once(root):
    skips = Skips()
    rows = read(root, line(boxes_xyxy=[[4, 5, 24, 15], [3, 3, 3, 9]]), skips=skips)
    expected = {"boxes without area": {f"{root / 'captions.jsonl'}:1": 1}}
    assert skips.left_out == expected
    assert len(ImageTextSource(rows, "retrieval")[0].boxes) == 1
    assert skips.left_out == expected


def test_region_features_are_read_with_the_record(root):
    np.savez(root / "a.npz", boxes=[[8.0, 10, 48, 30]], features=[[1.0, 2, 3]])
    rows = read(root, line(region_features="a.npz", width=80, height=40))
    source = pickle.loads(pickle.dumps(ImageTextSource(rows, "retrieval")))
    np.testing.assert_allclose(source[0].boxes, [[0.1, 0.25, 0.6, 0.75]])
    assert source[0].features.tolist() == [[1, 2, 3]]
    (root / "a.npz").write_bytes(b"damaged")
    with pytest.raises(DataError, match="captions.jsonl:1: .*a.npz: "):
        source[0]


@pytest.mark.parametrize(
    ("bad", "named"),
    [
        (line(image="images"), "image 'images' is missing"),
        (line(image="../../../etc/passwd"), "image .* leads out of"),
        (line(image="/etc/passwd"), "image .* leads out of"),
        (line(image="images/a\0.png"), "image .* leads out of"),
        (line(image="images/\ud800.png"), "image .* leads out of"),
        (line(image="x" * 5000), "image .* is missing"),
        (line(image=""), "image '' is missing"),
        (line(image=7), "image"),
        (line(captions={"en": []}), "captions"),
        (line(captions={"en": ["A dog.", ""]}), r"captions\['en'\]\[1\]"),
        (line(boxes_xyxy=[[True, 0, 5, 5]]), "boxes_xyxy"),
        (line(boxes_xyxy=[[10**400, 0, 5, 5]]), "boxes_xyxy"),
        (line(width=10**400, height=20), "width"),
        (b'{"image": "images/a.png", "captions": {"en": "a", "en": "b"}}', "JSON"),
        (line(captions={"en": "\u200b"}), r"captions\['en'\]"),
        (line(captions={"en": "."}), r"captions\['en'\]"),
        (line(boxes_xywh=[[5, 5, 10]]), r"boxes_xywh\[0\]"),
        (line(boxes_xyxy="x"), "boxes_xyxy"),
        (line(boxes_xyxy=[[0, 0, 5, 5]], boxes_xywh=[[0, 0, 5, 5]]), "boxes_xyxy, boxes_xywh"),
        (line(width="40", height=20), "width"),
        (line(width=40, height=0), "height"),
        (line(region_features="../a.npz"), "region_features .* leads out of"),
        (line(region_features="a.npz"), "region_features 'a.npz' is missing"),
    ],
)
def test_a_bad_line_is_skipped_and_named(root, bad, named):
    with pytest.raises(DataError, match=rf"(?s)1 of 2 .*captions.jsonl:2: .*\b{named}") as error:
        read(root, line(), bad)
    assert len(str(error.value)) < 900 and "Mend or remove them" in str(error.value)
    lines = [line(), bad]
    del lines[int(re.search(r"captions\.jsonl:(\d)", str(error.value))[1]) - 1]
    assert len(read(root, *lines)) == 1
    skips = Skips(limit=0.5)
    assert len(read(root, line(), bad, skips=skips)) == 1
    assert list(skips.reasons) == [f"{root / 'captions.jsonl'}:2"]


TWO, LONG = line(translations={"en": ["A.", "B."]}), line(captions={"en": "a " * 1001})


@pytest.mark.parametrize(
    ("bad", "advice", "mended"),
    [
        (line(image="new.png"), "add the file", line(image="new.png")),
        (line(image="/a.png"), "paths relative to that folder", line(image="images/a.png")),
        ({"captions": {"en": "A."}}, "image is missing; add it", line()),
        (line(captions=None), "give captions or translations", line(translations={"en": "A."})),
        (line(captions={"en": ["A.", "!"]}), "write it, or remove it", line(captions={"en": "A."})),
        (LONG, "shorten", line(captions={"en": "a " * 1000})),
        (LONG, "or split it", line(captions={"en": ["a " * 501, "a"]})),
        (TWO, "give one", line(translations={"en": "B."})),
        (TWO, "call them captions", line(captions={"en": ["A.", "B."]})),
        (line(width=40), "both be given", line(width=40, height=20)),
        (b"[]", r"write {\.\.\.}", line()),
        (b"{}, {}", "write one object a line", line()),
    ],
)
def test_a_bad_line_is_mended_as_advised(root, bad, advice, mended):
    with pytest.raises(DataError, match=advice):
        read(root, bad)
    (root / "new.png").write_bytes(png())
    assert len(read(root, mended)) == 1


@pytest.mark.parametrize(
    ("bad", "named"),
    [
        (
            line(image="captions.jsonl", boxes_xyxy=[[0, 0, 5, 5]]),
            "captions.jsonl: image cannot be",
        ),
        (
            line(image="images/cut.png", boxes_xyxy=[[0, 0, 5, 5]]),
            "cut.png: image cannot be decoded",
        ),
        (line(boxes_xyxy=[[0, 0, 42, 10]]), r"box .* \(40 x 20\)"),
        (line(boxes_xywh=[[30, 0, 12, 10]]), r"box .* \(40 x 20\)"),
        (line(boxes_xyxy=[[0.1, 0.2, 0.5, 1.0]]), "box .* 40 x 20"),
        (line(boxes_xywh=[[0.1, 0.2, 0.5, 0.8]]), "box .* 40 x 20"),
        (line(width=20, height=40, boxes_xyxy=[[5, 5, 15, 10]]), "width and height .* 40 x 20"),
    ],
)
def test_boxes_that_do_not_fit_the_image_are_named_when_the_record_is_drawn(root, bad, named):
    (root / "images" / "cut.png").write_bytes(png()[:20])
    source = ImageTextSource(read(root, line(), bad), "retrieval")
    assert source[0].boxes is None
    with pytest.raises(BadRecord, match=rf"captions.jsonl:2: .*\b{named}"):
        source[1]


@pytest.mark.parametrize("name", ["captions.jsonl", "captions.jsonl.gz"])
def test_lines_are_read_again_wherever_they_stand(root, name):
    """Also in other processes, and those of gzip files."""
    texts = [[f"{'Hündin ' * (i % 9)}{i}", f"dog {i}"] for i in range(50)]
    lines: list = [line(captions={"en": several}) for several in texts]
    lines.insert(7, b"x" * 2**21)
    file = write(root / name, *lines)
    [rows] = FolderSource(
        captions=str(file), root=str(root), train_split="", heldout_split=""
    ).read([None], Skips(0.1))
    source = ImageTextSource(rows, "weak")
    for found in (source, pickle.loads(pickle.dumps(source))):
        assert [list(record.texts["en"]) for record in found] == texts
        numbers = [number for number in range(1, 52) if number != 8]
        assert [record.where for record in found] == [f"{file}:{n}" for n in numbers]


def test_names_do_not_lead_out_of_the_root_and_links_in_it_are_followed(root):
    elsewhere = root.parent / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "b.png").write_bytes(png())
    (root / "images" / "link.png").symlink_to(elsewhere / "b.png")
    (root / "images" / "folder").symlink_to(elsewhere)
    (root / "images" / "inside.png").symlink_to("a.png")
    absolute = str(root / "images" / "a.png")  # such a file would be of no use elsewhere
    out = [
        line(image=name)
        for name in ("../elsewhere/b.png", "images/../../elsewhere/b.png", absolute)
    ]
    skips = Skips(1.0)
    links = [line(image=f"images/{name}.png") for name in ("inside", "link", "folder/b")]
    rows = read(root, line(), *links, *out, skips=skips)
    first, same, *linked = rows
    assert rows.groups().tolist() == [0, 0, 1, 1]
    assert first.image == same.image != linked[0].image == linked[1].image
    assert len(skips.reasons) == 3 and all("leads out of" in r for r in skips.reasons.values())
    (root.parent / "root_link").symlink_to(root)  # the root itself may be a link
    assert len(read(root.parent / "root_link", line())) == 1


def test_missing_or_empty_files_are_named(root):
    file = str(write(root / "captions.jsonl", line(split="train")))
    source = FolderSource(captions=file, root=str(root), train_split="train", heldout_split="")
    for wrong, advice in (
        (dict(captions="none.jsonl"), "none.jsonl: cannot be read .*; check the path in"),
        (dict(root="nowhere"), "nowhere: no such folder of images; correct root in the config"),
        (dict(train_split="val"), "no line of split 'val'; add some, or change the split"),
    ):
        changed = source.model_copy(update=wrong)
        with pytest.raises(DataError, match=advice):
            changed.read([changed.train_split], Skips())
    assert len(source.read(["train"], Skips())[0]) == 1
    write(root / "captions.jsonl", line(split="val"))
    assert len(changed.read(["val"], Skips())[0]) == 1


def _shared(folder, name) -> FolderSource:
    return FolderSource(
        captions=str(folder / name), root=str(folder), train_split="train", heldout_split="val"
    )


def test_real_photographs_with_strict_and_weak_captions(shared_data):
    skips = Skips()
    [rows] = _shared(shared_data / "flickr8k", "captions.jsonl.gz").read(["val"], skips)
    assert not skips.reasons and len(rows) > 200
    strict, weak = ImageTextSource(rows, "strict"), ImageTextSource(rows, "weak")
    assert set(strict[0].texts) == {"en", "de", "fr", "cs"}
    assert set(weak[0].texts) == {"en", "de", "zh", "ar"}
    assert strict.groups == len(rows) and len(strict.pairs["cs", "fr"]) == len(strict)
    assert image.decode(strict[3].image, strict[3].where).shape == (128, 128, 3)


def test_real_photographs_with_boxes(shared_data):
    skips = Skips()
    [rows] = _shared(shared_data / "coco", "annotations.jsonl").read([None], skips)
    assert not skips.reasons and len(rows) == 441
    assert pairs(ImageTextSource(rows, "weak")) == {("en", "en"): [*range(441)]}
    boxes = np.concatenate([row.boxes for row in rows if row.boxes is not None])
    assert len(boxes) > 1000 and boxes.min() >= 0 and boxes.max() <= 1
    assert np.all(boxes[:, 2:] > boxes[:, :2])
