"""Where images are looked for; images that are missing or damaged take their rows with them."""

from __future__ import annotations

import numpy as np
import pytest

from rc3_jax.data.record import BadRecord, DataError
from rc3_jax.settings import ConfigError
from rc3_jax.tasks import images
from rc3_jax.tasks.base import ImageRef
from rc3_jax.tasks.batches import picture_fields
from rc3_jax.tasks.images import ImageFinder
from tests.tasks.task_files import counts, draw, flickr, marvl, read, write
from tests.tiny import tiny_config


def find(finder, name, *paths):
    return finder.find(ImageRef(name, paths or (name,)), "test.jsonl:1")


def test_paths_and_roots_are_tried_in_their_order(tmp_path):
    root, other = tmp_path / "root", tmp_path / "other"
    draw(root, "images/a.jpg", "val2014/b.jpg")
    draw(other, "a.jpg", "c.png")
    finder = ImageFinder([root, other])
    assert find(finder, "a", "none.jpg", "a.jpg").image == root / "images" / "a.jpg"
    assert find(finder, "b.jpg", "b.jpg", "val2014/b.jpg").image == root / "val2014" / "b.jpg"
    picture = find(finder, "c", "c.jpg", "c.png")
    assert picture.image == other / "c.png" and picture.name == "c"
    assert picture.boxes is None and picture.features is None
    assert find(finder, "c", "never.looked/at.jpg") is picture
    for name in ("x" * 5000, "\ud800.jpg", "val2014"):  # of no file
        assert find(finder, name) is None and name in finder.missing
    with pytest.raises(DataError, match="none"):
        ImageFinder([tmp_path / "none"])


@pytest.mark.parametrize(
    "path", ["../secret.jpg", "/etc/passwd", "a/../../secret.jpg", "a\\b.jpg", "a\0b.jpg"]
)
def test_no_path_leads_out(tmp_path, path):
    draw(tmp_path, "secret.jpg", "root/b.jpg")
    finder = ImageFinder([tmp_path / "root"])
    with pytest.raises(BadRecord, match=r"test.jsonl:1.*leads out"):
        find(finder, "x", path)
    assert not finder.found and not finder.missing


def test_links_of_the_user_are_followed(tmp_path):
    draw(tmp_path, "disk/a.jpg", "disk/sub/b.jpg", "root/d.jpg")
    root = tmp_path / "root"
    (root / "a.jpg").symlink_to(tmp_path / "disk/a.jpg")
    (root / "images").symlink_to(tmp_path / "disk/sub")
    (root / "c.jpg").symlink_to(root / "d.jpg")
    (tmp_path / "link").symlink_to(root)
    for place in (root, tmp_path / "link"):
        finder = ImageFinder([place])
        assert find(finder, "a.jpg").image == tmp_path / "disk/a.jpg"
        assert find(finder, "b.jpg").image == tmp_path / "disk/sub/b.jpg"
        assert find(finder, "c.jpg").image == root / "d.jpg"
        with pytest.raises(BadRecord, match=r"disk/a.jpg"):
            find(finder, "x", "../disk/a.jpg")


def test_a_finder_decodes_every_image_once(tmp_path, monkeypatch):
    decoded = []
    original = images.decode
    monkeypatch.setattr(
        images, "decode", lambda image, *more: decoded.append(image.name) or original(image, *more)
    )
    finder = draw(tmp_path, "1.jpg", "2.jpg", "3.jpg")
    (tmp_path / "2.jpg").write_bytes(b"damaged")
    write(tmp_path / "de/test.jsonl", flickr(1), flickr(2))
    write(tmp_path / "de/dev.jsonl", flickr(2), flickr(3))
    for split, found, lost in (("test", 1, "2.jpg"), ("dev", 1, "2.jpg"), ("test", 1, "2.jpg")):
        notes = []
        data = read("xflickrco", tmp_path, finder, [split], notes, allow_missing=True)
        assert counts(data) == {f"{split}/de": found} and lost in notes[0]
    assert sorted(decoded) == ["1.jpg", "2.jpg", "3.jpg"]


def test_one_file_is_not_two_images(tmp_path):
    finder = draw(tmp_path, "39-0.jpg")
    find(finder, "id/39-Panci/39-0.jpg", "39-0.jpg")
    with pytest.raises(DataError, match="zh/39-x/39-0.jpg.* each language in a folder of its own"):
        find(finder, "zh/39-x/39-0.jpg", "39-0.jpg")
    finder = draw(tmp_path, "id/39-0.jpg", "zh/39-0.jpg")
    for language in ("id", "zh"):
        assert find(finder, f"{language}/39-x/39-0.jpg", f"{language}/39-0.jpg")


def test_region_features_beside_the_image(tmp_path):
    draw(tmp_path, "a.jpg", "b.jpg", "c.jpg", "d.jpg")
    arrays = dict(boxes=[[4.0, 5, 24, 15]], features=[[1.0, 2, 3]])
    np.savez(tmp_path / "a.npz", **arrays)  # of the size of the image itself
    np.savez(tmp_path / "b.npz", **arrays, width=80, height=40)
    (tmp_path / "d.npz").write_bytes(b"damaged")
    finder = ImageFinder([tmp_path], regions=True)
    a, b, c = (find(finder, name) for name in ("a.jpg", "b.jpg", "c.jpg"))
    np.testing.assert_allclose(a.boxes, [[0.1, 0.25, 0.6, 0.75]])
    np.testing.assert_allclose(b.boxes, [[0.05, 0.125, 0.3, 0.375]])
    assert a.features.tolist() == [[1, 2, 3]] and c.boxes is None
    config = tiny_config()
    config.model.roi.feature_size = 3
    with pytest.raises(ConfigError, match="give region features, or another mode"):
        picture_fields(c, config, "regions")
    for picture, mode in ((a, "regions"), (c, "patches"), (c, "both")):
        picture_fields(picture, config, mode)
    with pytest.raises(BadRecord, match=r"test.jsonl:1.*d.npz"):
        find(finder, "d.jpg")
    assert find(ImageFinder([tmp_path]), "a.jpg").boxes is None
    (tmp_path / "links").mkdir()
    (tmp_path / "links/a.jpg").symlink_to(tmp_path / "a.jpg")
    (tmp_path / "links/c.jpg").symlink_to(tmp_path / "c.jpg")
    np.savez(tmp_path / "links/c.npz", **arrays)
    links = ImageFinder([tmp_path / "links"], regions=True)
    for name in ("a.jpg", "c.jpg"):
        np.testing.assert_array_equal(find(links, name).boxes, a.boxes)
    write(tmp_path / "test_de.jsonl", *(flickr(name) for name in "abc"))
    notes = []
    assert counts(read("xflickrco", tmp_path, finder, notes=notes)) == {"test/de": 3}
    assert "1 of 3 have no region file" in notes[0]


@pytest.mark.parametrize("regions", [False, True])
@pytest.mark.parametrize("content", [None, b"", b"no picture", "cut"])
def test_rows_about_unusable_images_are_left_out(tmp_path, content, regions):
    draw(tmp_path, *(f"de/{number}.jpg" for number in range(40)))
    rows = [
        marvl(n, language="de", left_img=f"{n}.jpg", right_img=f"{n + 1}.jpg") for n in range(39)
    ]
    write(tmp_path / "de" / "test.jsonl", *rows)
    file = tmp_path / "de" / "7.jpg"
    cut = file.read_bytes()[:-30]
    file.unlink()
    if content is not None:
        file.write_bytes(cut if content == "cut" else content)
    for number in range(40):
        np.savez(tmp_path / "de" / f"{number}.npz", boxes=[[4.0, 5, 24, 15]], features=[[1.0, 2]])
    finder, notes = ImageFinder([tmp_path], regions), []
    data = read("marvl", tmp_path, finder, notes=notes)
    kept = [example.identity for example in data.splits["test"]["de"]]
    assert kept == [f"id-{n}" for n in range(39) if n not in (6, 7)]
    assert data.left_out == {"test": {"de": 2}}
    assert len(notes) == 1 and "39 of 40" in notes[0] and "7.jpg" in notes[0]


def test_a_split_needs_95_percent_of_its_images(tmp_path):
    write(tmp_path / "de" / "train_100.jsonl", *(flickr(n) for n in range(100)))
    write(tmp_path / "de" / "test.jsonl", flickr(100))
    draw(tmp_path, *(f"{number}.jpg" for number in range(95)), "100.jpg")
    assert counts(read("xflickrco", tmp_path, ImageFinder([tmp_path])))["train_100/de"] == 95
    (tmp_path / "0.jpg").write_bytes(b"damaged")
    with pytest.raises(DataError, match=r"train_100 in de: 94 of 100 .*allow_missing"):
        read("xflickrco", tmp_path, ImageFinder([tmp_path]))
    (tmp_path / "100.jpg").unlink()
    given = dict(images=ImageFinder([tmp_path]), allow_missing=True)
    with pytest.raises(DataError, match=r"no usable rows of test.*0 of 1 images"):
        read("xflickrco", tmp_path, **given)
    data = read("xflickrco", tmp_path, **given, splits=["train_100"])
    assert counts(data) == {"train_100/de": 94} and data.left_out == {"train_100": {"de": 6}}
