"""What a report writes, what it sets apart, and what it refuses."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console

from rc3_jax.downstream import published
from rc3_jax.downstream.report import DPI, summary_table, write_report
from rc3_jax.downstream.report_numbers import Cell, Numbers, Setting
from rc3_jax.downstream.report_tables import markdown_table, show
from tests.downstream.report_results import (
    FEW,
    ZERO,
    read,
    recalls,
    result,
    rows_by_name,
    seeds_of_xvnli,
    tables_of,
)


def test_without_few_shot_results_there_is_no_section_and_no_plot(tmp_path):
    write_report(tmp_path, [result("xvnli", {"de": 0.6}, FEW, shots="1")], {})
    assert (tmp_path / "few_shot.png").exists()
    path = write_report(tmp_path, [result("xvnli", {"en": 0.7, "de": 0.6})], {})
    assert not (tmp_path / "few_shot.png").exists()
    text = path.read_text(encoding="utf-8")
    assert "few_shot.png" not in text and "Few-shot" not in text and "languages.png" in text


def test_published_scores_stand_apart_with_their_sources():
    results = [
        result("xvnli", {"en": 0.7, "fr": 0.6}),
        result("xvnli", {"fr": 0.6}, "translate-test"),
        result("xvnli", {"fr": 0.6}, FEW, shots="48"),
        result("wit", {"en": recalls(0.4), "ja": recalls(0.3)}),
    ]
    _, tables = read(results)
    assert all(row[0].startswith("ours") for row in tables["Summary", 0][1:])
    found = rows_by_name(tables["Summary", 1])
    assert all(name.startswith("published: ") and row["source"] for name, row in found.items())
    iglue = "Bugliarello et al., IGLUE, ICML 2022"
    assert found["published: UC2, zero-shot, mean of the other languages"] == {
        "xvnli": "62.05",
        "wit IR@1": "7.83",
        "wit TR@1": "9.09",
        "source": iglue,
    }
    assert found["published: M3P, zero-shot, English"]["wit TR@1"] == "15.33"
    assert found["published: mUNITER, translate-test, mean"]["xvnli"] == "73.09"
    cclm = found["published: CCLM-4M, few-shot with the most shots, mean"]
    assert cclm["xvnli"] == "74.19, 48 shots" and cclm["wit IR@1"] == "–"
    assert "Cross-View" in cclm["source"]
    assert tables["xvnli", 1][1] == [
        "published: UC2, xvnli, zero-shot",
        "56.19",
        "57.47",
        "69.67",
        "64.86",
        iglue,
    ]


def test_published_languages_average_to_the_published_means():
    for model, by_column in published.ZERO_SHOT_LANGUAGES.items():
        means = dict(zip(published.COLUMNS, published.ZERO_SHOT[model], strict=True))
        for column, scores in by_column.items():
            assert np.mean(list(scores.values())) == pytest.approx(means[column], abs=0.0051)


def test_nothing_published_stands_beside_miniatures():
    made = result("xvnli", {"en": 0.7, "de": 0.6}, data="miniature")
    text, tables = read([made])
    assert "published: " not in text and ("Summary", 1) not in tables
    assert len(re.findall("the examples were generated", text)) == 1
    # Other tasks keep theirs.
    text, tables = read([made, result("marvl", {"en": 0.7, "id": 0.6})])
    assert list(rows_by_name(tables["Summary", 1])["published: UC2, zero-shot, English"]) == [
        "marvl",
        "source",
    ]
    assert "beside xvnli: the examples were generated" in text


def test_provenance_and_what_was_not_run():
    results = [
        result("xvnli", {"en": 0.7, "de": 0.6}, seed=seed, **{"from": "runs/a|b"})
        for seed in (1, 0)
    ]
    text, tables = read(results, {"wit": "no images", "xvnli, few-shot": "a|b\nc"})
    assert tables["Provenance", 0][1] == [
        *("xvnli", ZERO, "train, en: 3,000", "test: en de", "runs/a|b", "/data/iglue"),
        *("c" * 11 + "0", "d" * 11 + "9", "0, 1"),
    ]
    assert len(tables["Provenance", 0]) == 2
    assert tables["Not run", 0][1:] == [["wit", "no images"], ["xvnli, few-shot", "a|b c"]]
    assert "c" * 11 + "0123456789" not in text


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ([], "no results"),
        ([result("xvnli", {"en": 0.5}), result("xvnli", {"en": 0.6})], "seed 0: two results for en"),
        (
            [result("xvnli", {"de": 0.5, "fr": 0.5}, FEW, shots="1"),
             result("xvnli", {"fr": 0.5}, FEW, shots="1")],
            "few-shot, 1, seed 0: two results for fr",
        ),
        (
            [result("xvnli", {"en": 0.5}), result("xgqa", {"en": 0.6}) | {"system": "cclm"}],
            "more than one system, cclm and rc3",
        ),
        (
            [result("xvnli", {"en": 0.5}), result("xvnli", {"en": 0.5}, seed=1, data="miniature")],
            "xvnli: results on the miniature and on other data",
        ),
        ([result("xvqa", {"en": 0.5})], "xvqa"),
        ([result("xvnli", {"en": 0.5}, FEW)], "shots are None"),
    ],
)  # fmt: skip
def test_results_that_do_not_go_together_are_refused(tmp_path, results, message):
    with pytest.raises(ValueError, match=message):
        write_report(tmp_path / "report", results, {})
    assert not (tmp_path / "report").exists()


def test_the_same_results_make_the_same_files(tmp_path):
    results = seeds_of_xvnli()[0] + [result("xvnli", {"de": 0.6}, FEW, shots="1")]
    first = write_report(tmp_path / "a", results, {}).parent
    second = write_report(tmp_path / "b", results, {}).parent
    names = sorted(path.name for path in first.iterdir())
    assert names == ["few_shot.png", "languages.png", "report.json", "report.md"]
    assert all((first / name).read_bytes() == (second / name).read_bytes() for name in names)


def test_plots_have_a_panel_for_each_score(tmp_path):
    results = seeds_of_xvnli()[0]
    results += [result("multi30k", {"en": recalls(0.5), "de": recalls(0.4)})]
    results += [result("xvnli", {"de": 0.6}, FEW, shots=shots) for shots in ("1", "10x2")]
    folder = write_report(tmp_path, results, {}).parent
    # xvnli and three of multi30k: two rows of three panels; of few-shot xvnli alone, as wide as two.
    for name, wide, high in (("languages.png", 3, 2), ("few_shot.png", 2, 1)):
        with Image.open(folder / name) as picture:
            picture.load()
            assert picture.size == (wide * 4 * DPI, round((high * 3.2 + 0.5) * DPI))
            assert len(picture.convert("RGB").getcolors(2**20)) > 10  # something is drawn
            assert "Software" not in picture.info


def test_terminal_table():
    results = seeds_of_xvnli()[0]
    results += [result("wit", {"ja": recalls(0.3), "ko": recalls(0.2)}, left_out={"ko": 1})]
    results += [result("marvl", {"id": 0.3}, "translate-test")]
    console = Console(width=100)
    with console.capture() as capture:
        console.print(summary_table(results))
    lines = capture.get().splitlines()
    shown = [re.split(r"\s*│\s*", line.strip("│ ")) for line in lines if "│" in line]
    assert shown == [
        ["xvnli", "72.3", "57.3", "de 61.7 (10.7)  fr 53.0 (19.3)"],
        ["wit IR@1", "", "25.0*", "ja 30.0  ko 20.0*"],
        ["wit TR@1", "", "15.0*", "ja 20.0  ko 10.0*"],
    ]


def test_cells_as_text():
    assert show(None, 1) == "–"
    assert show(Cell(0.61234, math.nan, 1), 1) == "61.2"
    assert show(Cell(0.61234, 0.012, 3, partial=True), 5) == "61.2 ± 1.2* (n = 3)"
    assert show(Cell(0.61234, 0.0003, 3), 3) == "61.23 ± 0.03"
    assert show(Cell(-0.0001, 0.01, 2), 2) == "0.0 ± 1.0"  # not -0.0


@given(st.lists(st.lists(st.text(max_size=8), min_size=3, max_size=3), max_size=4))
def test_a_table_keeps_its_columns_whatever_it_holds(rows):
    table = tables_of(markdown_table(("a", "b", "c"), [("x", "y", "z"), *rows, ("x", "y", "z")]))
    (found,) = table.values()
    assert all(len(row) == 3 for row in found) and len(found) == len(rows) + 3
    assert found[-1] == ["x", "y", "z"]


@given(
    st.dictionaries(
        st.integers(0, 99), st.lists(st.floats(0, 1), min_size=3, max_size=3), min_size=1
    )
)
def test_numbers_are_the_mean_and_error_of_the_seeds(by_seed):
    numbers = Numbers(
        [
            result("xvnli", dict(zip(("en", "de", "fr"), scores, strict=True)), seed=seed)
            for seed, scores in by_seed.items()
        ]
    )
    english, german, french = np.array(list(by_seed.values())).T
    zero = Setting(ZERO)
    for cell, values in (
        (numbers.cell("xvnli", zero, "accuracy", "de"), german),
        (numbers.average("xvnli", zero, "accuracy"), (german + french) / 2),
        (numbers.gap("xvnli", "accuracy", "fr"), english - french),
    ):
        assert cell.mean == pytest.approx(np.mean(values), abs=1e-12) and cell.n == len(by_seed)
        if len(values) == 1:
            assert math.isnan(cell.error)
        else:
            error = np.sqrt(np.sum((values - values.mean()) ** 2) / (len(values) - 1) / len(values))
            assert cell.error == pytest.approx(error, abs=1e-12)
