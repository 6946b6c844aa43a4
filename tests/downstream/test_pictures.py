from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from rc3_jax.data.record import BadRecord, DataError
from rc3_jax.downstream.pictures import ImageFinder, Wanted


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    return root


def draw(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 20), "red").save(path)
    return path


def find(finder, name, *paths):
    return finder.find(Wanted(name, paths or (name,)), "test.jsonl:1")


def test_paths_and_roots_are_tried_in_their_order(root, tmp_path):
    draw(root / "images" / "a.jpg")
    draw(root / "val2014" / "b.jpg")
    other = draw(tmp_path / "other" / "a.jpg").parent
    draw(other / "c.png")
    finder = ImageFinder([root, other])
    assert find(finder, "a", "none.jpg", "a.jpg").image == root / "images" / "a.jpg"
    assert find(finder, "b.jpg", "b.jpg", "val2014/b.jpg").image == root / "val2014" / "b.jpg"
    picture = find(finder, "c", "c.jpg", "c.png")
    assert picture.image == other / "c.png" and picture.name == "c"
    assert picture.boxes is None and picture.features is None
    assert find(finder, "c", "never.looked/at.jpg") is picture
    assert finder.check() is None and not finder.missing


def test_missing_images_stop_below_95_percent(root):
    for number in range(95):
        draw(root / f"{number}.jpg")
    finder = ImageFinder(str(root))
    for number in range(100):
        picture = find(finder, f"{number}.jpg")
        assert (picture is None) == (number >= 95)
    warning = finder.check(what="test in de")
    assert warning.startswith("test in de: 95 of 100 images found (95.00%) in ")
    assert "missing are 95.jpg, 96.jpg, 97.jpg, 98.jpg, 99.jpg" in warning
    find(finder, "100.jpg")
    with pytest.raises(DataError, match=r"95 of 101 .*\(94.06%\).* \.\.\.\. .*allow_missing"):
        finder.check()
    assert "95 of 101" in finder.check(allow_missing=True)
    names = [f"{number}.jpg" for number in range(90, 96)]
    with pytest.raises(DataError, match="5 of 6"):
        finder.check(names=names)
    assert finder.check(names=names[:5]) is None


@pytest.mark.parametrize(
    "path", ["../secret.jpg", "/etc/passwd", "a/../../secret.jpg", "a\\b.jpg", "a\0b.jpg"]
)
def test_no_path_leads_out(root, path):
    draw(root.parent / "secret.jpg")
    finder = ImageFinder(root)
    with pytest.raises(BadRecord, match="test.jsonl:1: image .* leads out"):
        find(finder, "x", path)
    assert not finder.found and not finder.missing


def test_no_link_leads_out(root):
    draw(root.parent / "secret.jpg")
    (root / "a.jpg").symlink_to(root.parent / "secret.jpg")
    draw(root / "b.jpg")
    (root / "c.jpg").symlink_to(root / "b.jpg")
    finder = ImageFinder(root)
    with pytest.raises(BadRecord, match="'a.jpg' leads out of"):
        find(finder, "a.jpg")
    assert find(finder, "c.jpg").image == root / "b.jpg"


def test_names_no_file_can_have_are_missing(root):
    finder = ImageFinder(root)
    assert find(finder, "x" * 5000) is None and find(finder, "\ud800.jpg") is None
    assert find(finder, "folder", ".") is None


def test_one_file_is_not_two_images(root):
    draw(root / "39-0.jpg")
    finder = ImageFinder(root)
    find(finder, "id/39-Panci/39-0.jpg", "39-0.jpg")
    with pytest.raises(DataError, match="asked for as zh/39-x/39-0.jpg and as id/39-Panci.*folder"):
        find(finder, "zh/39-x/39-0.jpg", "39-0.jpg")


def test_folders_are_checked(tmp_path):
    with pytest.raises(DataError, match="none: no such folder of images"):
        ImageFinder(tmp_path / "none")
    with pytest.raises(DataError, match="name at least one"):
        ImageFinder([])


def test_region_features_beside_the_image(root):
    arrays = dict(boxes=[[4.0, 5, 24, 15]], features=[[1.0, 2, 3]])
    draw(root / "a.jpg")
    np.savez(root / "a.npz", **arrays)  # of the size of the image itself
    draw(root / "b.jpg")
    np.savez(root / "b.npz", **arrays, width=80, height=40)
    for name in ("c.jpg", "d.jpg"):
        draw(root / name)
    (root / "d.npz").write_bytes(b"damaged")
    finder = ImageFinder(root, regions=True)
    a, b, c = (find(finder, name) for name in ("a.jpg", "b.jpg", "c.jpg"))
    np.testing.assert_allclose(a.boxes, [[0.1, 0.25, 0.6, 0.75]])
    np.testing.assert_allclose(b.boxes, [[0.05, 0.125, 0.3, 0.375]])
    assert a.features.tolist() == [[1, 2, 3]] and c.boxes is None
    assert finder.check() == "images: 1 of 3 have no region file, as c.jpg"
    with pytest.raises(BadRecord, match="test.jsonl:1: .*d.npz: region file cannot be read"):
        find(finder, "d.jpg")
    assert find(ImageFinder(root), "a.jpg").boxes is None
