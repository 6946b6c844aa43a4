"""Files that rows name: found and refused as looking for each would."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rc3_jax.data.files import FolderFiles, Listing, path_inside
from rc3_jax.data.record import BadRecord

PARTS = ("images", "a.png", "b.png", "link", "link.png", "gone.png", "lost", "loop", "..", ".", "")
PARTS += ("elsewhere", "\0", "\ud800", "images\\..", "back\\slash.png", "root")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("files") / "root"
    elsewhere = root.parent / "elsewhere"
    for folder in (root / "images", elsewhere):
        folder.mkdir(parents=True)
        for name in ("a.png", "b.png", "back\\slash.png"):
            (folder / name).touch()
    (root / "a.png").touch()
    (root / "images" / "link.png").symlink_to("a.png")
    (root / "images" / "gone.png").symlink_to("missing.png")
    (root / "link").symlink_to(elsewhere)
    (root / "link.png").symlink_to(elsewhere / "a.png")
    (root / "lost").symlink_to("nowhere")
    (root / "loop").symlink_to("loop")
    return root


def _found(find, *arguments) -> str:
    try:
        return str(find(*arguments))
    except BadRecord as error:
        return f"refused: {error}"


@pytest.mark.parametrize("kind", [FolderFiles, Listing])
@given(names=st.lists(st.lists(st.sampled_from(PARTS), max_size=4).map("/".join), max_size=5))
def test_each_finds_and_refuses_what_looking_for_each_would(root, kind, names):
    files = kind(str(root))
    names += [str(root / "a.png"), "images/a.png", "link/b.png"]
    for name in names:
        expected = _found(path_inside, str(root), "image", name, "rows:1")
        assert _found(files.path, "image", name, "rows:1") == expected


@pytest.mark.parametrize("kind", [FolderFiles, Listing])
def test_files_are_found_without_looking_for_each(root, kind, monkeypatch):
    files = kind(str(root))
    names = ("images/a.png", "images/b.png", "link/a.png", "a.png")
    expected = [str(path_inside(str(root), "image", name, "")) for name in names]
    monkeypatch.setattr("rc3_jax.data.files.path_inside", None)
    assert [files.path("image", name, "") for name in names] == expected
