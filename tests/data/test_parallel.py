"""Line-aligned files of parallel text."""

from __future__ import annotations

import gzip
import re

import pytest

from rc3_jax.data.record import DataError, Skips
from rc3_jax.data.sources.parallel import ParallelSource, read_parallel
from rc3_jax.settings import ConfigError


@pytest.fixture
def files(tmp_path):
    def write(**texts):
        paths = {}
        for language, lines in texts.items():
            data = lines if isinstance(lines, bytes) else "\n".join(lines).encode()
            paths[language] = str(tmp_path / f"train.{language}.txt")
            (tmp_path / f"train.{language}.txt").write_bytes(data)
        return paths

    return write


def test_lines_are_aligned_whatever_the_line_ends(files, tmp_path):
    paths = files(en=b"\xef\xbb\xbfA dog.\r\nA cat.\r\n", de=["Ein Hund.", "Eine Katze."])
    paths["fr"] = str(tmp_path / "train.fr.gz")
    (tmp_path / "train.fr.gz").write_bytes(gzip.compress("Un chien.\nUn\u2028chat.\n".encode()))
    source = read_parallel(paths, Skips())
    assert len(source) == 2 and source.groups == 2
    assert source[0].texts == {"en": ("A dog.",), "de": ("Ein Hund.",), "fr": ("Un chien.",)}
    assert source[1].texts["fr"] == ("Un\u2028chat.",)  # no line end in a text file
    assert source[1].where == f"{paths['en']}:2" and source[1].image is None
    assert source.pairs == dict.fromkeys([("de", "en"), ("de", "fr"), ("en", "fr")], range(2))


def test_rows_that_share_a_sentence_are_one_group(files):
    english = ["Go.", "Stop.", "go", "A", "B", "A"]
    paths = files(en=english, de=["Geh.", "Halt.", "Los!", "x", "y", "y"])
    source = read_parallel(paths, Skips())
    assert [record.group for record in source] == [0, 1, 0, 3, 3, 3]


@pytest.mark.parametrize("line", [b"", b" \t", b"x" * 2001, b"x" * 2**21, b"\xff\xfe"])
def test_unusable_lines_are_skipped_with_their_translations(files, line):
    german = b"\n".join([b"%d." % n if n != 3 else line for n in range(1, 101)])
    paths = files(en=[f"{n}." for n in range(1, 101)], de=german)
    skips = Skips()
    source = read_parallel(paths, skips)
    assert len(source) == 99
    assert all(record.texts["en"] == record.texts["de"] for record in source)
    assert list(skips.reasons) == [f"{paths['de']}:3"]
    with pytest.raises(DataError, match=r"1 of 100 (?s:.)*train.de.txt:3: "):
        read_parallel(paths, Skips(limit=0.0))


def test_wrong_files_are_named(files, tmp_path):
    paths = files(en=["A.", "B.", "C."], de=["A."])
    message = f"{paths['en']} has 3 lines, {paths['de']} has 1 lines"
    with pytest.raises(DataError, match=f"{re.escape(message)}; line n of each must translate"):
        read_parallel(paths, Skips())
    assert len(read_parallel(files(en=["A."], de=["A."]), Skips())) == 1
    with pytest.raises(DataError, match="none.txt: cannot be read"):
        read_parallel(paths | {"de": str(tmp_path / "none.txt")}, Skips())
    with pytest.raises(DataError, match="train.en.txt, .*train.de.txt: .* empty"):
        read_parallel(files(en=b"", de=b""), Skips())
    for wrong in ({"en": "a"}, {"english": "a", "de": "b"}):
        with pytest.raises(ConfigError, match=r"data.sources.text.files"):
            ParallelSource.parse(dict(type="parallel", files=wrong), "data.sources.text")


def test_real_parallel_text(shared_data):
    folder = shared_data / "parallel" / "multi30k"
    skips = Skips()
    codes = ("en", "de", "fr", "cs")
    source = read_parallel({code: str(folder / f"val.{code}.gz") for code in codes}, skips)
    assert len(source) == 1014 and not skips.reasons
    assert len(source.pairs) == 6 and set(source.pairs.values()) == {range(1014)}
    folder = shared_data / "parallel" / "tatoeba"
    for code, language in {"swh": "sw", "jpn": "ja", "tam": "ta"}.items():
        paths = {
            language: str(folder / f"tatoeba.{code}-eng.{code}.gz"),
            "en": str(folder / f"tatoeba.{code}-eng.eng.gz"),
        }
        assert read_parallel(paths, Skips()).pairs.keys() == {tuple(sorted(paths))}
