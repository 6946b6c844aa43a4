from __future__ import annotations

import gzip
import re

import pytest

from rc3_jax.data.record import DataError, Skips
from rc3_jax.data.sources.parallel import ParallelSource


@pytest.fixture
def files(tmp_path):
    def write(**texts):
        paths = {}
        for language, lines in texts.items():
            data = lines if isinstance(lines, bytes) else "\n".join(lines).encode()
            paths[language] = tmp_path / f"train.{language}.txt"
            paths[language].write_bytes(data)
        return paths

    return write


def test_lines_are_aligned_whatever_the_line_ends(files, tmp_path):
    paths = files(en=b"\xef\xbb\xbfA dog.\r\nA cat.\r\n", de=["Ein Hund.", "Eine Katze."])
    paths["fr"] = tmp_path / "train.fr.gz"
    paths["fr"].write_bytes(gzip.compress("Un chien.\nUn\u2028chat.\n".encode()))
    source = ParallelSource(paths)
    assert len(source) == 2 and source.groups == 2
    assert source[0].texts == {"en": ("A dog.",), "de": ("Ein Hund.",), "fr": ("Un chien.",)}
    assert source[1].texts["fr"] == ("Un\u2028chat.",)  # no line end in a text file
    assert source[1].where == f"{paths['en']}:2" and source[1].image is None
    assert source.pairs == dict.fromkeys([("de", "en"), ("de", "fr"), ("en", "fr")], range(2))


def test_rows_that_share_a_sentence_are_one_group(files):
    paths = files(en=["Go.", "Stop.", "Go.", "Halt."], de=["Geh.", "Halt.", "Los.", "Halt."])
    source = ParallelSource(paths)
    assert [record.group for record in source] == [0, 1, 0, 1] and source.groups == 2


def test_files_of_unequal_length_are_an_error_that_names_them(files):
    paths = files(en=["A.", "B.", "C."], de=["A."])
    message = f"{paths['en']} has 3 lines, {paths['de']} has 1 lines; line n of each"
    with pytest.raises(DataError, match=re.escape(message)):
        ParallelSource(paths)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"", r"train.de.txt:3: empty line; remove it from the files of all languages"),
        (b" \t", "train.de.txt:3: empty line"),
        (b"x" * 2001, "train.de.txt:3: 2001 characters, the limit is 2000; split it"),
        (b"x" * 2**21, "train.de.txt:3: longer than .* bytes"),
        (b"\xff\xfe", "train.de.txt:3: not UTF-8"),
    ],
)
def test_unusable_lines_are_skipped_with_their_translations(files, line, message):
    german = b"\n".join([b"%d." % n if n != 3 else line for n in range(1, 101)])
    paths = files(en=[f"{n}." for n in range(1, 101)], de=german)
    skips = Skips()
    source = ParallelSource(paths, skips)
    assert len(source) == 99
    assert all(record.texts["en"] == record.texts["de"] for record in source)
    [reason] = skips.reasons.values()
    assert re.search(message, reason)
    with pytest.raises(DataError, match=r"1 of 100 records cannot be used(?s:.)*" + message):
        ParallelSource(paths, Skips(limit=0.0))


def test_impossible_configurations_are_errors(files, tmp_path):
    paths = files(en=["A."], de=["A."])
    with pytest.raises(DataError, match="at least two languages"):
        ParallelSource({"en": paths["en"]})
    with pytest.raises(DataError, match="unknown language code 'english'"):
        ParallelSource({"english": paths["en"], "de": paths["de"]})
    with pytest.raises(DataError, match="none.txt: cannot be read .*check the path"):
        ParallelSource({"en": paths["en"], "de": tmp_path / "none.txt"})
    with pytest.raises(DataError, match="are empty; download"):
        ParallelSource(files(en=b"", de=b""))


def test_real_parallel_text(shared_data):
    folder = shared_data / "parallel" / "multi30k"
    skips = Skips()
    source = ParallelSource({c: folder / f"val.{c}.gz" for c in ("en", "de", "fr", "cs")}, skips)
    assert len(source) == 1014 and not skips.reasons
    assert len(source.pairs) == 6 and set(source.pairs.values()) == {range(1014)}
    folder = shared_data / "parallel" / "tatoeba"
    for code, language in {"swh": "sw", "jpn": "ja", "tam": "ta"}.items():
        paths = {
            language: folder / f"tatoeba.{code}-eng.{code}.gz",
            "en": folder / f"tatoeba.{code}-eng.eng.gz",
        }
        assert ParallelSource(paths).pairs.keys() == {tuple(sorted(paths))}
