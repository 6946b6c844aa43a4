"""Lines that are read again, and the temporary files of those that were packed."""

from __future__ import annotations

import gc
import gzip
import os
import pathlib
import pickle
import subprocess
import sys
import tempfile
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rc3_jax.data.lines import LineFile, Lines, read_lines
from rc3_jax.data.record import BadRecord, DataError
from tests.processes import ROOT

TEXTS = st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n")))


def _read(path: pathlib.Path) -> tuple[Lines, list[str]]:
    """The places of the lines that are not empty, and these."""
    lines, texts = Lines(), []
    for place, text in read_lines(path, again=True):
        if text:
            lines.append(place)
            texts.append(text)
    return lines, texts


@given(TEXTS, st.sampled_from(["\n", "\r\n"]), st.booleans())
def test_every_line_is_read_again_as_it_was(tmp_path_factory, texts, end, is_packed):
    path = tmp_path_factory.getbasetemp() / "any.txt"
    data = end.join(texts).encode()
    path.write_bytes(gzip.compress(data) if is_packed else data)
    lines, found = _read(path)
    assert [place.read_line() for place in lines] == found
    by_hand = {n: t.removeprefix("\ufeff") for n, t in enumerate(end.join(texts).split("\n"), 1)}
    by_hand = {n: text.rstrip("\r") for n, text in by_hand.items() if text.rstrip("\r")}
    assert {place.row: place.read_line() for place in lines} == by_hand


def test_places_of_several_files(tmp_path):
    lines = Lines()
    for name, text in {"a": "1\n2", "b": "", "c": "3"}.items():
        (tmp_path / name).write_text(text)
        for place, _ in read_lines(tmp_path / name):
            lines.append(place)
    assert [str(place) for place in lines] == [f"{tmp_path}/{x}" for x in ("a:1", "a:2", "c:1")]
    assert [place.read_line() for place in pickle.loads(pickle.dumps(lines))] == ["1", "2", "3"]


def test_a_temporary_file_goes_with_the_lines_and_not_with_their_copies(tmp_path):
    (tmp_path / "x.gz").write_bytes(gzip.compress(b"one\ntwo"))
    lines, _ = _read(tmp_path / "x.gz")
    file = lines[0].file.path
    copy = pickle.loads(pickle.dumps(lines))
    assert copy[1].read_line() == "two" and str(copy[1]) == f"{tmp_path / 'x.gz'}:2"
    del copy
    gc.collect()
    assert lines[0].read_line() == "one" and file.is_file()
    del lines
    gc.collect()
    assert not file.exists()


def test_a_file_that_changes_is_noticed(tmp_path):
    path = tmp_path / "x"
    path.write_text("one\ntwo\n")
    lines, _ = _read(path)
    path.write_text("one\ntow\nthree\n")
    assert lines[0].read_line() == "one"
    with pytest.raises(BadRecord, match="x:2: .*changed since the start; start again"):
        lines[1].read_line()
    lines, _ = _read(path)
    assert lines[1].read_line() == "tow"
    path.rename(tmp_path / "y")
    with pytest.raises(BadRecord, match="x:2: cannot be read any more .*; restore the file"):
        lines[1].read_line()
    (tmp_path / "y").rename(path)
    assert lines[1].read_line() == "tow"


ICONV = ["iconv", "-f", "ISO-8859-1", "-t", "UTF-8"]


@pytest.mark.parametrize(
    ("data", "advice", "mended"),
    [
        (b"\xe9", "convert the file with iconv", lambda p: subprocess.check_output([*ICONV, p])),
        (b"a" * (2**20 + 1), "split it", lambda p: b"a" * 2**19 + b"\na"),
        (gzip.compress(b"one")[:9], "download it again", lambda p: b"one"),
    ],
    ids=["not UTF-8", "a long line", "a file cut short"],
)
def test_a_file_that_cannot_be_read_is_mended_as_advised(tmp_path, data, advice, mended):
    def check():
        for _, line in read_lines(tmp_path / "x"):
            if isinstance(line, BadRecord):
                raise line

    (tmp_path / "x").write_bytes(data)
    with pytest.raises((BadRecord, DataError), match=advice):
        check()
    (tmp_path / "x").write_bytes(mended(tmp_path / "x"))
    check()


def test_lines_may_be_added_to_a_file_that_does_not_end_in_one(tmp_path):
    path = tmp_path / "x"
    path.write_text("one\ntwo")
    lines, _ = _read(path)
    path.write_text("one\ntwo\nthree\n")
    assert [place.read_line() for place in lines] == ["one", "two"]


def test_lines_of_a_pipe_are_read_again(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=("one\ntwo\n",))
    writer.start()
    lines, found = _read(pipe)
    writer.join()
    assert [place.read_line() for place in lines] == found == ["one", "two"]


def test_a_folder_for_temporary_files_that_is_missing_is_named(tmp_path, monkeypatch):
    (tmp_path / "x.gz").write_bytes(gzip.compress(b"one"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    with pytest.raises(DataError, match=r"x\.gz: cannot be unpacked to .*none .*TMPDIR"):
        _read(tmp_path / "x.gz")
    (tmp_path / "x").write_bytes(b"one")  # unpacked
    assert _read(tmp_path / "x")[1] == ["one"]
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert _read(tmp_path / "x.gz")[1] == ["one"]


def test_a_fork_does_not_remove_the_temporary_file(tmp_path):
    (tmp_path / "x.gz").write_bytes(gzip.compress(b"one"))
    code = (
        "import os, sys, rc3_jax.data.lines as lines\n"
        "[(place, _)] = lines.read_lines(sys.argv[1], again=True)\n"
        "if (child := os.fork()):\n"
        "    assert os.waitpid(child, 0)[1] == 0 and place.read_line() == 'one'\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "x.gz")], check=True, cwd=ROOT)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
@pytest.mark.parametrize("lines", [1, 100_000])
def test_a_lack_of_room_to_unpack_is_told(tmp_path, monkeypatch, lines):
    (tmp_path / "x.gz").write_bytes(gzip.compress(b"a line\n" * lines))
    full = LineFile(pathlib.Path("/dev/full"), is_unpacked=True)
    monkeypatch.setattr(LineFile, "temporary", lambda: full)
    with pytest.raises(DataError, match=r"x\.gz: cannot be unpacked to /dev/full .*TMPDIR"):
        list(read_lines(tmp_path / "x.gz", again=True))
    assert len(list(read_lines(tmp_path / "x.gz"))) == lines
