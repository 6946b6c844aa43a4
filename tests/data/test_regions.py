"""Boxes, detector features and their files."""

from __future__ import annotations

import json
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from rc3_jax.data.image import Frame, decode, image_frame
from rc3_jax.data.record import BadRecord, Skips
from rc3_jax.data.regions import boxes_as_fractions, load_region_file, pad_regions


def some_regions(count: int, feature_size: int = 5, seed: int = 0):
    rng = np.random.default_rng(seed)
    corners = np.sort(rng.random((count, 2, 2)), axis=1).reshape(count, 4)
    return corners.astype(np.float32), rng.random((count, feature_size), np.float32)


@given(
    visible=st.lists(st.booleans(), max_size=12),
    count=st.integers(0, 8),
    with_features=st.booleans(),
)
def test_padding_keeps_the_first_visible_regions_in_order(visible, count, with_features):
    boxes, features = some_regions(len(visible))
    given_features = features if with_features else None
    padded = pad_regions(boxes, given_features, np.array(visible, bool), count, 5)
    kept = [i for i, is_visible in enumerate(visible) if is_visible][:count]
    expected = {
        "region_features": np.zeros((count, 5), np.float32),
        "region_boxes": np.zeros((count, 4), np.float32),
        "region_mask": np.arange(count) < len(kept),
    }
    expected["region_boxes"][: len(kept)] = boxes[kept]
    if with_features:
        expected["region_features"][: len(kept)] = features[kept]
    assert padded.keys() == expected.keys()
    for name, array in padded.items():
        assert array.dtype == expected[name].dtype and np.array_equal(array, expected[name])
    assert not pad_regions(None, None, None, 3, 0)["region_mask"].any()


def test_features_that_do_not_fit_are_bad_records():
    boxes, features = some_regions(3)
    with pytest.raises(BadRecord, match=r"a:1: .*\[3, 5\].*feature_size=2048; set that to the det"):
        pad_regions(boxes, features, None, 36, 2048, "a:1")
    pad_regions(boxes, features, None, 36, 5, "a:1")
    with pytest.raises(BadRecord, match=r"\[2, 5\] for 3 boxes"):
        pad_regions(boxes, features[:2], None, 36, 5)


def test_boxes_become_fractions_and_may_stand_out_by_a_pixel():
    given = [[10, 20, 110, 220], [-0.9, 0, 200.9, 401]]
    boxes, kept = boxes_as_fractions(given, "a:1", Frame(200, 400))
    assert boxes.dtype == np.float32 and kept.tolist() == [True, True]
    np.testing.assert_allclose(boxes, [[0.05, 0.05, 0.55, 0.55], [0, 0, 1, 1]], rtol=1e-6)


NO_BOXES = [[[1, 2, 3]], [1, 2, 3, 4], [[1, 2, 3, 4], [1, 2, 3]], [[1, 2, float("nan"), 4]]]
NO_BOXES += [[[1, 2, float("inf"), 4]], [["1", "2", "3", "4"]], [[True, True, False, False]]]
NO_BOXES += [[[None] * 4], {"x": 1}]


@pytest.mark.parametrize(
    ("boxes", "named"),
    [
        ([[0, 0, 202, 10]], r"box \[0.0, 0.0, 202.0, 10.0\].*200 x 400.*width and height"),
        ([[0, 0, 5, 5], [-2, 0, 10, 10]], r"box \[-2.0, .*200 x 400"),
        ([[0.1, 0.2, 0.5, 1.0]], r"box .*0…1.*200 x 400"),
        *((boxes, "boxes") for boxes in NO_BOXES),
    ],
)
def test_impossible_boxes_are_bad_records(boxes, named):
    with pytest.raises(BadRecord, match="^a:1: " + named):
        boxes_as_fractions(boxes, "a:1", Frame(200, 400))


def test_boxes_without_area_are_left_out_with_their_features_and_counted(tmp_path):
    boxes = [[10, 10, 10, 20], [0, 0, 100, 200], [10, 20, 30, 15], [200, 10, 201, 20]]
    assert boxes_as_fractions(boxes, "a:1", Frame(200, 400))[1].tolist() == [0, 1, 0, 0]
    np.savez(tmp_path / "r.npz", boxes=boxes, features=np.eye(4))
    skips = Skips()
    read_boxes, features = load_region_file(tmp_path / "r.npz", "a:1", Frame(200, 400), None, skips)
    assert read_boxes.tolist() == [[0, 0, 0.5, 0.5]] and features.tolist() == [[0, 1, 0, 0]]
    assert skips.left_out == {"boxes without area": {"a:1": 3}}
    skips.write(tmp_path / "skipped.jsonl")
    assert json.loads((tmp_path / "skipped.jsonl").read_text()) == {
        "where": "a:1",
        "left_out": "3 boxes without area",
    }


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("has_size", [True, False])
def test_boxes_of_the_stored_photograph_turn_with_it(orientation, has_size, tmp_path):
    """The box of the only red part, given as it is stored, frames what `decode` makes of it."""
    stored = np.zeros((48, 64, 3), np.uint8)
    stored[8:16, 40:64, 0] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(stored).save(tmp_path / "a.png", exif=exif)
    pixels = decode(tmp_path / "a.png", "a:1")
    rows, columns = np.nonzero(pixels[:, :, 0])
    height, width = pixels.shape[:2]
    expected = [columns.min() / width, rows.min() / height]
    expected += [(columns.max() + 1) / width, (rows.max() + 1) / height]
    frame = image_frame(tmp_path / "a.png", "a:1")
    if orientation < 5:  # the size says nothing; the boxes are those of the upright picture
        box = np.array(expected) * ([width, height] * 2)
    else:
        box = [40, 8, 64, 16]
    boxes, _ = boxes_as_fractions([box], "a:1", frame, (64, 48) if has_size else None)
    np.testing.assert_allclose(boxes, [expected], atol=1e-6)


def test_region_files_of_turned_photographs_are_read_as_boxes_of_a_line_are(tmp_path):
    frame, box = (
        Frame(480, 640, 6),
        [0, 0, 600, 400],
    )  # stored as 640 x 480, and so was the box drawn
    np.savez(tmp_path / "r.npz", boxes=[box], features=[[1.0]])
    boxes, _ = load_region_file(tmp_path / "r.npz", "a:1", frame)
    np.testing.assert_array_equal(boxes, boxes_as_fractions([box], "a:1", frame)[0])
    np.testing.assert_allclose(boxes, [[1 - 400 / 480, 0, 1, 600 / 640]], atol=1e-6)


def test_a_nearly_square_photograph_turns_where_its_stored_size_is_given():
    box = [[0, 0, 500, 995]]
    turned, _ = boxes_as_fractions(box, "a:1", Frame(995, 1000, 6), (1000, 995))
    np.testing.assert_allclose(turned, [[0, 0, 1, 0.5]], atol=1e-6)
    upright, _ = boxes_as_fractions(box, "a:1", Frame(995, 1000, 6), (995, 1000))
    np.testing.assert_allclose(upright, [[0, 0, 500 / 995, 0.995]], atol=1e-6)


@pytest.mark.parametrize("given", [(480, 640), (240, 320), (48, 64)])
def test_exchanged_width_and_height_are_refused_with_both_sizes(given):
    with pytest.raises(BadRecord, match=rf"{given[0]} x {given[1]}.*640 x 480"):
        boxes_as_fractions([[1, 1, 9, 9]], "a:1", Frame(640, 480), given)


@pytest.mark.parametrize("given", [(640, 480), (320, 240), (333, 250), (224, 224), (1, 1)])
def test_boxes_may_be_drawn_on_the_picture_in_another_size(given):
    """What the messages advise for boxes in fractions, width 1 and height 1, works."""
    box = np.array([0.25, 0.5, 0.75, 1.0])
    drawn = box * [*given, *given]
    boxes, kept = boxes_as_fractions([drawn], "a:1", Frame(640, 480), given)
    np.testing.assert_allclose(boxes, [box], atol=1e-6)
    assert kept.all()


def test_features_beyond_32_bits_are_bad_records(tmp_path):
    np.savez(tmp_path / "r.npz", boxes=BOX, features=np.array([[1e39]]))
    with pytest.raises(BadRecord, match="r.npz.*features.*32"):
        load_region_file(tmp_path / "r.npz", "a:1", Frame(10, 10))


def test_region_file_round_trip(tmp_path):
    boxes, features = some_regions(4)
    pixels = boxes * [640, 480, 640, 480]
    np.savez(tmp_path / "own.npz", boxes=pixels, features=features, width=640, height=480)
    np.savez_compressed(tmp_path / "none.npz", boxes=pixels, features=features.astype(np.float16))
    for name, size in (("own.npz", None), ("own.npz", (1, 1)), ("none.npz", (640, 480))):
        read_boxes, read_features = load_region_file(tmp_path / name, "a:1", size)
        assert read_boxes.dtype == read_features.dtype == np.float32
        np.testing.assert_allclose(read_boxes, boxes, atol=1e-6)
        np.testing.assert_allclose(read_features, features, atol=1e-3)
    with pytest.raises(BadRecord, match=r"a:1: .*none.npz: .*width and height"):
        load_region_file(tmp_path / "none.npz", "a:1")


class Explosive:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was loaded",))


BOX = [[0, 0, 5, 5]]


@pytest.mark.parametrize(
    ("arrays", "named"),
    [
        ({"boxes": BOX}, "features"),
        ({"features": [[1.0]]}, "boxes"),
        ({"features": [[1.0], [2.0]], "boxes": BOX}, r"\[2, 1\] for 1 boxes"),
        ({"features": [1.0], "boxes": BOX}, r"features are \[1\]"),
        ({"features": [["a"]], "boxes": BOX}, "features"),
        ({"features": [[np.nan]], "boxes": BOX}, "features"),
        ({"features": [[1.0]], "boxes": [[0, 0, 50, 5]]}, "box .*10 x 10"),
        ({"features": [[1.0]], "boxes": BOX, "width": [3, 4], "height": 1}, "width and height"),
        ({"features": [[1.0]], "boxes": BOX, "width": 0, "height": 1}, "width and height"),
        ({"features": np.array([[Explosive()]], object), "boxes": BOX}, "allow_pickle"),
    ],
)
def test_region_files_that_make_no_sense_are_bad_records(arrays, named, tmp_path):
    np.savez(tmp_path / "r.npz", **arrays)
    with pytest.raises(BadRecord, match=r"(?s)^a:1: .*r.npz: .*" + named):
        load_region_file(tmp_path / "r.npz", "a:1", (10, 10))


def test_damaged_and_oversized_region_files_are_bad_records(tmp_path):
    path = tmp_path / "r.npz"
    with pytest.raises(BadRecord, match="r.npz: region file is missing; extract the features anew"):
        load_region_file(path, "a:1")
    boxes, features = some_regions(4)
    np.savez(path, boxes=boxes, features=features, width=1, height=1)
    load_region_file(path, "a:1")
    sound = path.read_bytes()
    for damaged in (b"", b"no zip", sound[:200], sound[:100] + b"\0" * 99 + sound[199:]):
        path.write_bytes(damaged)
        with pytest.raises(BadRecord, match="r.npz: region file cannot be read"):
            load_region_file(path, "a:1")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("features.npy", bytes(2**28 + 1))
    assert path.stat().st_size < 2**22
    with pytest.raises(BadRecord, match=f"{2**28} bytes"):
        load_region_file(path, "a:1")
