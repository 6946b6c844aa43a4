from __future__ import annotations

import gzip
import json
import pickle

import numpy as np
import pytest
from PIL import Image

from rc3_jax.data import image
from rc3_jax.data.record import DataError, Skips
from rc3_jax.data.sources.folder import read_folder
from rc3_jax.data.sources.lines import MAX_LINE_BYTES
from rc3_jax.data.sources.rows import ImageTextSource

STRICT = {"en": "A dog.", "de": "Ein Hund.", "fr": "Un chien."}
WEAK = {"en": ["A brown dog.", "A dog runs."], "zh": ["一只狗。"]}


@pytest.fixture
def root(tmp_path):
    (tmp_path / "root" / "images").mkdir(parents=True)
    for name in ("a.png", "b.png", "c.png"):
        Image.new("RGB", (40, 20), "red").save(tmp_path / "root" / "images" / name)
    return tmp_path / "root"


def record(**fields) -> dict:
    return {"image": "images/a.png", "captions": {"en": "A dog."}, **fields}


def read(root, *records, split=None, skips=None, **options):
    """Reads records, or lines of bytes, written to a captions file."""
    lines = [r if isinstance(r, bytes) else json.dumps(r).encode() for r in records]
    (root / "captions.jsonl").write_bytes(b"\n".join(lines))
    return read_folder(root / "captions.jsonl", root, split, skips, **options)


def reasons(root, *records, **options) -> list[str]:
    """Reads what has bad records among good ones, and returns why they were skipped."""
    skips = Skips(limit=1.0)
    rows = read(root, record(), *records, skips=skips, **options)
    assert len(rows) + len(skips.reasons) == 1 + len(records)
    return list(skips.reasons.values())


def numbers(source) -> dict:
    """Language pair → numbers of its records."""
    return {pair: list(of_pair) for pair, of_pair in source.pairs.items()}


def test_each_kind_takes_the_texts_meant_for_it(root):
    rows = read(
        root,
        record(translations=STRICT, captions=WEAK),
        record(image="images/b.png", captions={"en": ["One.", "Two."]}),
        record(image="images/c.png", translations={"de": "Nur eins."}, captions=None),
        record(image="images/a.png", captions={"en": "Again.", "cs": "Pes."}),
    )
    strict, weak, retrieval = (ImageTextSource(rows, k) for k in ("strict", "weak", "retrieval"))

    assert [r.texts for r in strict] == [{lang: (text,) for lang, text in STRICT.items()}]
    assert numbers(strict) == {("de", "en"): [0], ("de", "fr"): [0], ("en", "fr"): [0]}

    assert [r.where.rsplit(":")[-1] for r in weak] == ["1", "2", "4"]
    assert weak[0].texts == {lang: tuple(texts) for lang, texts in WEAK.items()}
    assert numbers(weak) == {("en", "zh"): [0], ("en", "en"): [1], ("cs", "en"): [2]}

    # The translation replaces captions of its language, for it is comparable across languages.
    assert retrieval[0].texts == {lang: (t,) for lang, t in STRICT.items()} | {"zh": ("一只狗。",)}
    assert retrieval[2].texts == {"de": ("Nur eins.",)} and len(retrieval) == 4

    # Rows of one picture are one group, in every kind.
    assert [r.group for r in retrieval] == [0, 1, 2, 0]
    assert [r.group for r in weak] == [0, 1, 0]
    assert strict.groups == weak.groups == retrieval.groups == 3
    assert image.decode(weak[1].image, weak[1].where).shape == (20, 40, 3)


def test_repeated_and_untidy_texts(root):
    [row] = read(root, record(captions={"en": [" A dog. ", "A dog.", "Two dogs."], "de": []}))
    assert row.captions == {"en": ("A dog.", "Two dogs.")}


def test_kind_that_no_record_offers_is_an_error_with_the_remedy(root):
    rows = read(root, record())
    with pytest.raises(DataError, match=r"jsonl:1: none of 1 .* strict .*`translations` into"):
        ImageTextSource(rows, "strict")
    with pytest.raises(DataError, match="at least two `captions` of the same image"):
        ImageTextSource(rows, "weak")
    with pytest.raises(DataError, match="not 'parallel'"):
        ImageTextSource(rows, "parallel")


def test_split_is_selected_and_others_do_not_count(root):
    records = [record(split="train"), record(split="val", captions={"en": ""}), record()]
    skips = Skips(limit=0.5)
    rows = read(root, *records, split="train", skips=skips)
    assert len(rows) == 1
    [reason] = skips.reasons.values()
    assert "captions.jsonl:3: field split is missing" in reason and "None" in reason
    with pytest.raises(DataError, match="no record of split 'test'; .*change the split"):
        read(root, *records[:2], split="test")


def test_boxes_in_either_form_and_of_another_size(root):
    rows = read(
        root,
        record(boxes_xyxy=[[4, 5, 24, 15]]),  # of the image itself, 40 x 20
        record(boxes_xywh=[[4, 5, 20, 10], [0, 0, 40.8, 20]]),
        record(boxes_xywh=[[8, 10, 40, 20]], width=80, height=40),
        record(boxes_xyxy=[]),
        record(boxes_xyxy=[[4, 5, 24, 15]]),
    )
    for row in (rows[0], rows[1], rows[2]):
        np.testing.assert_allclose(row.boxes[0], [0.1, 0.25, 0.6, 0.75])
    assert rows[1].boxes.shape == (2, 4) and rows[1].boxes.dtype == np.float32
    assert rows[1].boxes[1].tolist() == [0, 0, 1, 1]
    assert rows[3].boxes is None
    source = ImageTextSource(rows, "retrieval")
    assert np.array_equal(source[0].boxes, rows[0].boxes) and source[0].features is None


def test_region_features_are_read_with_the_record(root):
    np.savez(root / "a.npz", boxes=[[8.0, 10, 48, 30]], features=[[1.0, 2, 3]])
    rows = read(root, record(region_features="a.npz", width=80, height=40))
    source = pickle.loads(pickle.dumps(ImageTextSource(rows, "retrieval")))
    np.testing.assert_allclose(source[0].boxes, [[0.1, 0.25, 0.6, 0.75]])
    assert source[0].features.tolist() == [[1, 2, 3]]
    (root / "a.npz").write_bytes(b"damaged")
    with pytest.raises(DataError, match="captions.jsonl:1: .*a.npz: region file cannot be read"):
        source[0]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (record(image="images/none.png"), "image 'images/none.png' is missing in .*; add"),
        (record(image="images"), "image 'images' is missing"),
        (record(image="captions.jsonl"), "cannot be decoded"),
        (record(image="../../../etc/passwd"), "leads out of .*; give paths relative"),
        (record(image="/etc/passwd"), "leads out of"),
        (record(image="images/../../root2/a.png"), "leads out of"),
        (record(image="images/a\0.png"), "leads out of"),
        (record(image="images/\ud800.png"), "leads out of"),
        (record(image="x" * 5000), "is missing"),
        (record(image=7), "field image is missing or not a text; give a relative path"),
        ({"captions": {"en": "A dog."}}, "field image is missing"),
        (record(captions=None), "no text; give captions or translations"),
        (record(captions={"en": []}), "no text"),
        (record(captions={"en": "A dog.", "de": " \n"}), r"captions\['de'\] holds an empty text"),
        (record(captions={"en": ["A dog.", ""]}), "empty text; remove it"),
        (record(captions={"en": 7}), r"captions\['en'\] is int 7, not a text"),
        (record(captions={"en": [None]}), "holds NoneType None, not a text"),
        (record(captions="A dog."), r"captions is str 'A dog.'; write \{language: text\}"),
        (record(captions={"en": "\ud800 dog"}), "is not Unicode"),
        (record(captions={"xx": "A dog."}), "unknown language code 'xx'; use an ISO 639"),
        (record(captions={"english": "A dog."}), "unknown language code 'english'"),
        (record(captions={"EN": "A dog."}), "'EN' is not in standard form; use en"),
        (record(translations={"en": ["A.", "B."], "de": "C."}), r"translations\['en'\] .*several"),
        (record(boxes_xyxy=[[0, 0, 42, 10]]), "outside of the image"),
        (record(boxes_xywh=[[30, 0, 12, 10]]), "outside of the image"),
        (record(boxes_xyxy=[[5, 5, 5, 10]]), "has no area"),
        (record(boxes_xywh=[[5, 5, 0, 10]]), "has no area"),
        (record(boxes_xywh=[[5, 5, 10]]), "boxes_xywh must be lists of 4 numbers"),
        (record(boxes_xywh=7), "boxes_xywh must be lists of 4 numbers"),
        (record(boxes_xyxy="x"), "finite numbers"),
        (record(boxes_xyxy=[[0, 0, 5, 5]], boxes_xywh=[[0, 0, 5, 5]]), "exclude one another"),
        (record(width=40), "width and height must both be positive"),
        (record(width="40", height=20), "width and height must both be positive"),
        (record(width=True, height=20), "width and height must both be positive"),
        (record(region_features="../a.npz"), "region_features '../a.npz' leads out of"),
        (record(region_features="a.npz"), "region_features 'a.npz' is missing"),
        (b'{"image": "images/a.png", ', "not JSON .*; write one object a line"),
        (b'["images/a.png"]', "list is not a JSON object"),
        (b"null", "NoneType is not a JSON object"),
        (b"[" * 200_000, "not JSON"),
        (b'{"id": ' + b"1" * 10_000 + b"}", "not JSON"),
        (b'{"image": "images/\xff.png"}', "not UTF-8 .*; convert the file"),
        (b'{"id": "' + b"x" * 3 * MAX_LINE_BYTES + b'"}', "longer than .* bytes"),
    ],
)
def test_bad_record_is_skipped_and_told_with_place_and_remedy(root, bad, message):
    [reason] = reasons(root, bad)
    assert reason.startswith(f"{root / 'captions.jsonl'}:2: ")
    assert len(reason) < 600
    with pytest.raises(DataError, match="(?s)1 of 2 records cannot be used.*:2: .*" + message):
        read(root, record(), bad)


def test_neither_absolute_paths_nor_links_may_lead_out_of_the_root(root):
    [reason] = reasons(root, record(image=str(root / "images" / "a.png")))
    assert "leads out of" in reason  # such a captions file would be of no use elsewhere
    outside = root.parent / "outside"
    outside.mkdir()
    Image.new("RGB", (4, 4)).save(outside / "secret.png")
    (root / "images" / "link.png").symlink_to(outside / "secret.png")
    (root / "images" / "folder").symlink_to(outside)
    (root / "images" / "inside.png").symlink_to("a.png")
    found = reasons(root, record(image="images/link.png"), record(image="images/folder/secret.png"))
    assert len(found) == 2 and all("leads out of" in reason for reason in found)
    first, second = read(root, record(), record(image="images/inside.png"))
    assert first.group == second.group
    (root.parent / "root_link").symlink_to(root)  # the root itself may be a link
    assert len(read_folder(root / "captions.jsonl", root.parent / "root_link")) == 2


def test_undecodable_image_is_noticed_unless_told_not_to_look(root):
    (root / "images" / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    [reason] = reasons(root, record(image="images/cut.png"))
    assert "cut.png: image cannot be decoded" in reason and "replace it" in reason
    assert not reasons(root, record(image="images/cut.png"), check_images=False)


def test_byte_order_mark_crlf_blank_lines_and_gzip(root):
    line = json.dumps(record()).encode()
    data = b"\xef\xbb\xbf" + line + b"\r\n\r\n  \n" + line + b"\r\n"
    (root / "plain.jsonl").write_bytes(data)
    (root / "packed.jsonl.gz").write_bytes(gzip.compress(data))
    for name in ("plain.jsonl", "packed.jsonl.gz"):
        rows = read_folder(root / name, root)
        assert [row.where for row in rows] == [f"{root / name}:1", f"{root / name}:4"]


def test_one_percent_of_bad_records_is_borne_but_not_more(root):
    good, bad = record(), record(image="none.png")
    skips = Skips()
    assert len(read(root, *[good] * 99, bad, skips=skips, check_images=False)) == 99
    assert list(skips.reasons) == [f"{root / 'captions.jsonl'}:100"]
    with pytest.raises(DataError, match=r"2 of 100 records .* more than 1%.*(?s:.)*none.png"):
        read(root, *[good] * 98, bad, bad, skips=skips, check_images=False)


def test_missing_or_empty_files_are_errors_with_the_remedy(root):
    with pytest.raises(DataError, match="none.jsonl: cannot be read .*check the path"):
        read_folder(root / "none.jsonl", root)
    with pytest.raises(DataError, match="cannot be read"):
        read_folder(root, root)
    with pytest.raises(DataError, match="no such folder of images; check image_root"):
        read_folder(root / "captions.jsonl", root / "none")
    with pytest.raises(DataError, match="no record; write one JSON object a line"):
        read(root, b"")
    packed = gzip.compress(json.dumps(record()).encode() * 100)
    for damaged in (packed[:-20], packed[:20] + bytes(20) + packed[40:]):
        (root / "captions.jsonl.gz").write_bytes(damaged)
        with pytest.raises(DataError, match="captions.jsonl.gz: damaged gzip file .*download"):
            read_folder(root / "captions.jsonl.gz", root)


def test_real_photographs_with_strict_and_weak_captions(shared_data):
    folder = shared_data / "flickr8k"
    skips = Skips()
    rows = read_folder(folder / "captions.jsonl.gz", folder, "val", skips)
    assert not skips.reasons and len(rows) > 200
    strict, weak = ImageTextSource(rows, "strict"), ImageTextSource(rows, "weak")
    assert set(strict[0].texts) == {"en", "de", "fr", "cs"}
    assert set(weak[0].texts) == {"en", "de", "zh", "ar"}
    assert strict.groups == len(rows) and len(strict.pairs["cs", "fr"]) == len(strict)
    assert image.decode(strict[3].image, strict[3].where).shape == (128, 128, 3)


def test_real_photographs_with_boxes(shared_data):
    skips = Skips()
    rows = read_folder(
        shared_data / "coco" / "annotations.jsonl", shared_data / "coco", skips=skips
    )
    assert not skips.reasons and len(rows) == 441
    assert numbers(ImageTextSource(rows, "weak")) == {("en", "en"): [*range(441)]}
    boxes = np.concatenate([row.boxes for row in rows if row.boxes is not None])
    assert len(boxes) > 1000 and boxes.min() >= 0 and boxes.max() <= 1
    assert np.all(boxes[:, 2:] > boxes[:, :2])
