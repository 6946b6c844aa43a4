"""Reports of made-up results, against sums done by hand."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from PIL import Image
from rich.console import Console

from rc3_jax.tasks.benchmarks import TASKS
from rc3_jax.tasks.report import markdown_table, report_text, show, summary_table, write_report
from rc3_jax.tasks.score_table import MEAN, Cell, ScoreTable, protocol_order

ZERO, FEW = "zero-shot", "few-shot"
RE_RANKED = {"re-ranked IR@1": 0.7, "re-ranked TR@1": 0.6, "re-ranked mean": 0.8}


def result(task, scores, protocol=ZERO, seed=0, shots=None, left_out=None, **more):
    """One `scores.json`; a bare number is an accuracy."""
    scores = {
        code: of if isinstance(of, dict) else {"accuracy": of, "ECE": of / 10}
        for code, of in scores.items()
    }
    split = "train" if shots is None else f"train_{shots}"
    return {
        **dict(task=task, system="rc3", protocol=protocol, seed=seed, shots=shots, scores=scores),
        "from": "runs/base",
        "data": "/data/iglue",
        "train": {"split": split, "languages": ["en"], "examples": 3000},
        "test": {"split": "test", "examples": dict.fromkeys(scores, 300), "left_out": left_out},
        "config_sha256": "c" * 11 + "0123456789",
        "data_sha256": "d" * 11 + "9876543210",
    } | more


def recalls(first, **more):
    """Retrieval by vectors; texts are found worse by 0.1."""
    return {"IR@1": first, "TR@1": first - 0.1, "mean": first + 0.2} | more


def xvnli(english, german, french):
    scores = zip(english, german, french, strict=True)
    return [
        result("xvnli", dict(zip(("en", "de", "fr"), of, strict=True)), seed=seed)
        for seed, of in enumerate(scores)
    ]


ENGLISH, GERMAN, FRENCH = map(np.array, ([0.7, 0.73, 0.74], [0.6, 0.64, 0.61], [0.55, 0.5, 0.54]))
THREE_SEEDS = xvnli(ENGLISH, GERMAN, FRENCH)


def test_texts_that_are_not_read_well_and_labels_of_no_class_are_told():
    russian = {"texts": 40, "cut": 0.25, "unknown": 0.92}
    texts = {"test ru": russian, "test en": {"texts": 300, "cut": 0.01, "unknown": 0.0}}
    one = result("xgqa", {"en": 0.5, "ru": 0.1}, texts=texts, no_class={"ru": 7})
    report = report_text(ScoreTable([one]), {})
    assert "| xgqa | test ru | 40 | 25.0% | 92.0% |" in report and "| test en |" not in report
    assert "ru 300 (7 of no class)" in report
    assert "unknown pieces" not in report_text(ScoreTable([result("xgqa", {"en": 0.5})]), {})


def percent(values):
    """Mean ± standard error, by hand."""
    values = 100 * np.asarray(values)
    error = math.sqrt(sum((values - values.mean()) ** 2) / (len(values) - 1)) / len(values) ** 0.5
    return f"{values.mean():.1f} ± {error:.1f}"


def tables_of(text):
    """Header and rows of every table, by the heading above it."""
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    heading, found = "", {}
    for before, token in zip([None, *tokens], tokens, strict=False):
        if token.type == "inline" and before.type == "heading_open":
            heading = token.content
        elif token.type == "table_open":
            found.setdefault(heading, []).append([])
        elif token.type == "tr_open":
            found[heading][-1].append([])
        elif token.type == "inline" and before.type in ("th_open", "td_open"):
            found[heading][-1][-1].append(token.content)
    return found


def read(results, heading, place=0):
    """A table of a report: first cells of a row → column → cell."""
    header, *rows = tables_of(report_text(ScoreTable(results), {}))[heading][place]
    names = 1 if header[0] == "" else 2
    return {
        row[0] if names == 1 else (row[0].removeprefix("ours: "), row[1]): dict(
            zip(header[names:], row[names:], strict=True)
        )
        for row in rows
    }


def test_means_errors_and_gaps_are_over_seeds():
    summary, others = read(THREE_SEEDS, "Summary"), (GERMAN + FRENCH) / 2
    assert summary["ours: zero-shot, English"]["xvnli"] == percent(ENGLISH)
    assert summary[f"ours: zero-shot, {MEAN}"]["xvnli"] == percent(others)
    task = read(THREE_SEEDS, "xvnli")
    scores = task[ZERO, "accuracy"]
    assert scores["de"] == percent(GERMAN) and scores[MEAN] == percent(others)
    gap = task[ZERO, "accuracy: gap to English"]
    assert gap["de"] == percent(ENGLISH - GERMAN) and gap["fr"] == percent(ENGLISH - FRENCH)
    assert gap["en"] == "–"
    assert task[ZERO, "ECE"]["de"] == percent(GERMAN / 10)


@given(st.lists(st.lists(st.floats(0, 1), min_size=3, max_size=3), min_size=1))
def test_cells_are_the_mean_and_error_of_the_seeds(scores):
    english, german, french = np.array(scores).T
    table = ScoreTable(xvnli(english, german, french))
    for metric, language, values in (
        ("accuracy", "de", german),
        ("accuracy", MEAN, (german + french) / 2),
        ("accuracy: gap to English", "fr", english - french),
    ):
        cell = table.cell("xvnli", ZERO, metric, language)
        assert cell.mean == pytest.approx(np.mean(values), abs=1e-12) and cell.n == len(scores)
        if len(values) > 1:
            squares = np.sum((values - values.mean()) ** 2)
            error = math.sqrt(squares / (len(values) - 1) / len(values))
            assert cell.error == pytest.approx(error, abs=1e-12)
        else:
            assert math.isnan(cell.error)


def test_the_files_hold_the_numbers_and_what_they_are_of(tmp_path):
    results = [*THREE_SEEDS, result("xvnli", {"de": 0.6}, FEW, shots="10x2")]
    path = write_report(tmp_path / "new" / "report", results, {"wit": "no images"})
    names = sorted(file.name for file in path.parent.iterdir())
    assert names == ["few_shot.png", "languages.png", "report.json", "report.md"]
    expected = report_text(ScoreTable(results), {"wit": "no images"})
    assert path.read_text(encoding="utf-8") == expected
    found = json.loads((path.parent / "report.json").read_text(encoding="utf-8"))
    keys = ("model", "task", "protocol", "metric", "language")
    cells = {tuple(cell.pop(key) for key in keys): cell for cell in found["cells"]}
    cell = cells["ours", "xvnli", ZERO, "accuracy", "de"]
    assert cell["mean"] == pytest.approx(GERMAN.mean()) and cell["n"] == 3
    assert cell["error"] == pytest.approx(GERMAN.std(ddof=1) / math.sqrt(3))
    few = cells["ours", "xvnli", "few-shot, 10x2", "accuracy", "de"]
    assert few == {"mean": 0.6, "error": None, "n": 1, "partial": False}
    assert found["results"] == results and found["not_run"] == {"wit": "no images"}
    again = write_report(tmp_path / "again", results, {"wit": "no images"}).parent
    assert all((again / name).read_bytes() == (path.parent / name).read_bytes() for name in names)
    text = write_report(path.parent, THREE_SEEDS, {}).read_text(encoding="utf-8")
    assert not (path.parent / "few_shot.png").exists() and "few_shot.png" not in text


def test_seeds_with_other_languages_say_how_many_they_are():
    results = [
        result("xgqa", {"en": 0.5, "de": 0.4, "ko": 0.2}),
        result("xgqa", {"en": 0.6, "de": 0.5}, seed=1),
        result("xgqa", {"en": 0.7, "de": 0.3, "ko": 0.4}, seed=2),
    ]
    rows = read(results, "xgqa")
    assert rows[ZERO, "accuracy"]["de"] == percent([0.4, 0.5, 0.3])
    assert rows[ZERO, "accuracy"]["ko"] == percent([0.2, 0.4]) + " (n = 2)"
    # Only two seeds have all the languages.
    assert rows[ZERO, "accuracy"][MEAN] == percent([0.3, 0.35]) + " (n = 2)"
    assert rows[ZERO, "accuracy: gap to English"]["ko"] == percent([0.3, 0.3]) + " (n = 2)"
    none = read([result("xvnli", {"de": 0.4}), result("xvnli", {"fr": 0.5}, seed=1)], "xvnli")
    assert none[ZERO, "accuracy"][MEAN] == "–"  # no seed has both
    assert (ZERO, "accuracy: gap to English") not in none  # nor English


def test_scores_of_some_rows_are_marked_wherever_they_stand():
    results = [
        result("xvnli", {"en": 0.7, "de": 0.6, "fr": 0.5}, left_out={"de": 3, "fr": 0}),
        result("xvnli", {"de": 0.65}, FEW, shots="48", left_out={"de": 3}),
        result("xvnli", {"de": 0.65, "fr": 0.6}, "translate-test"),
        result("wit", {"en": recalls(0.5), "ja": recalls(0.4)}, left_out={"en": 2})
        | {"across": {"IR rank variance": 12.25}},
    ]
    task = read(results, "xvnli")
    scores = [task[ZERO, "accuracy"][code] for code in ("en", "de", "fr", MEAN)]
    assert scores == ["70.0", "60.0*", "50.0", "55.0*"]
    assert task[ZERO, "accuracy: gap to English"]["de"] == "10.0*"
    assert task["translate-test", "accuracy"]["de"] == "65.0"
    assert read(results, "wit")[ZERO, "IR@1: gap to English"]["ja"] == "10.0*"
    assert read(results, "wit", 1)[ZERO, "IR rank variance"]["variance"] == "12.2*"
    few = read(results, "Summary")[f"ours: few-shot with the most shots, {MEAN}"]["xvnli"]
    assert few == "65.0*, 48 shots, de"  # fewer languages than zero-shot
    assert read(results, "xvnli, by shots")["de", "accuracy"] == {"0": "60.0*", "48": "65.0*"}
    tested = [row["tested on: examples"] for row in read(results, "Provenance").values()]
    assert tested[0] == "test: en 300, de 300 (3 left out), fr 300"


def test_retrieval_is_headed_by_re_ranked_scores_where_all_have_them():
    both = {"en": recalls(0.5, **RE_RANKED), "de": recalls(0.4, **RE_RANKED)}
    some = {"en": recalls(0.5, **RE_RANKED), "de": recalls(0.4)}
    results = [result("xflickrco", both), result("multi30k", both), result("wit", some)]
    row = read(results, "Summary")[f"ours: zero-shot, {MEAN}"]
    assert row["xflickrco re-ranked IR@1"] == "70.0" and row["multi30k re-ranked mean"] == "80.0"
    assert row["wit IR@1"] == "40.0" and row["wit TR@1"] == "30.0"
    assert read(results, "xflickrco")[ZERO, "IR@1"]["de"] == "40.0"  # every score stands there


def test_rank_variances_of_the_same_languages_are_averaged():
    scores = {"en": recalls(0.5), "de": recalls(0.4)}
    results = [
        result("wit", scores, across={"IR rank variance": 10.0, "TR rank variance": 4.0}),
        result("wit", scores, seed=1, across={"IR rank variance": 13.0, "TR rank variance": 6.0}),
        result("wit", {"ja": recalls(0.3), "ko": recalls(0.2)}, across={"IR rank variance": 99.0}),
    ]
    _, *rows = tables_of(report_text(ScoreTable(results), {}))["wit"][1]
    assert rows == [
        [ZERO, "IR rank variance", "en de", "11.5 ± 1.5"],
        [ZERO, "TR rank variance", "en de", "5.0 ± 1.0"],
        [ZERO, "IR rank variance", "ja ko", "99.0 (n = 1)"],
    ]


def test_few_shot_is_sorted_by_shots():
    zero = result("marvl", {"en": 0.7, "id": 0.5, "zh": 0.4, "ta": 0.3})
    few = [
        result("marvl", {code: score}, FEW, shots=shots)
        for shots, score in (("10x2", 0.65), ("2", 0.55), ("10", 0.6), ("25", 0.62))
        for code in ("zh", "id")
        if (shots, code) != ("25", "id")
    ]
    [table] = tables_of(report_text(ScoreTable([zero, *few]), {}))["marvl, by shots"]
    assert table == [
        ["language", "score", "0", "2", "10", "10x2", "25"],
        ["id", "accuracy", "50.0", "55.0", "60.0", "65.0", "–"],
        ["zh", "accuracy", "40.0", "55.0", "60.0", "65.0", "62.0"],
    ]
    # With 25 only one language was trained, so that 10x2 is the most for a mean.
    row = read([zero, *few], "Summary")[f"ours: few-shot with the most shots, {MEAN}"]
    assert row["marvl"] == "65.0, 10x2 shots, id zh"
    one_each = [
        result("xvnli", {code: 0.5}, FEW, shots=shots)
        for code, shots in (("de", "1"), ("fr", "48"))
    ]
    assert ScoreTable(one_each).most_shots("xvnli") == "few-shot, 48"
    shots = [f"few-shot, {shots}" for shots in ("100", "5", "10x2", "1", "100x5", "10", "25")]
    in_order = [name.partition(", ")[2] for name in sorted(shots, key=protocol_order)]
    assert in_order == ["1", "5", "10", "10x2", "25", "100", "100x5"]


def test_published_scores_stand_below_ours():
    results = [
        result("xvnli", {"en": 0.7, "fr": 0.6}),
        result("xvnli", {"fr": 0.6}, "translate-test"),
        result("xvnli", {"fr": 0.6}, FEW, shots="48"),
        result("wit", {"en": recalls(0.4), "ja": recalls(0.3)}),
        result("marvl", {"en": 0.7, "id": 0.6}, data="miniature"),
    ]
    found = read(results, "Summary")
    uc2 = found[f"UC2: zero-shot, {MEAN}"]
    assert (uc2["xvnli"], uc2["wit IR@1"], uc2["wit TR@1"]) == ("62.05", "7.83", "9.09")
    assert uc2["marvl"] == "–"  # nothing published compares with miniatures
    assert found[f"ours: zero-shot, {MEAN}"]["marvl"] == "60.0"
    assert found["M3P: zero-shot, English"]["wit TR@1"] == "15.33"
    assert found[f"mUNITER: translate-test, {MEAN}"]["xvnli"] == "73.09"
    cclm = found[f"CCLM-4M: few-shot with the most shots, {MEAN}"]
    assert cclm["xvnli"] == "74.19, 48 shots" and cclm["wit IR@1"] == "–"
    row = read(results, "xvnli")["UC2: zero-shot", "accuracy"]
    assert row == dict(en="76.38", ar="56.19", es="57.47", fr="69.67", ru="64.86") | {MEAN: "62.05"}
    text = report_text(ScoreTable(results), {})
    for model in TASKS["xvnli"].baselines:
        assert model.source in text
    assert "marvl: the examples were generated" in text


def test_provenance_and_what_was_not_run():
    results = [result("xvnli", {"en": 0.7}, seed=seed, **{"from": "runs/a|b"}) for seed in (1, 0)]
    text = report_text(ScoreTable(results), {"wit": "no images", "xvnli, few-shot": "a|b\nc"})
    tables = tables_of(text)
    assert tables["Provenance"][0][1:] == [
        [
            *("xvnli", ZERO, "train, en: 3,000", "test: en 300", "runs/a|b", "/data/iglue"),
            *("c" * 11 + "0", "d" * 11 + "9", "0, 1"),
        ]
    ]
    assert tables["Not run"][0][1:] == [["wit", "no images"], ["xvnli, few-shot", "a|b c"]]


@pytest.mark.parametrize(
    ("results", "named"),
    [
        ([], "no results"),
        ([result("xvnli", {"en": 0.5}), result("xvnli", {"en": 0.6})], "en, seed 0: .*runs/base"),
        ([result("xvnli", {"en": 0.5}), result("xgqa", {"en": 0.6}, system="cclm")], "rc3 .* cclm"),
        (
            [result("xvnli", {"en": 0.5}), result("xvnli", {"en": 0.5}, seed=1, data="miniature")],
            "xvnli: .* files and miniature",
        ),
        (
            [result("xvnli", {"en": 0.5}), result("xvnli", {"en": 0.5}, seed=1, train=None)],
            "xvnli, zero-shot, en: .* training languages",
        ),
        ([result("xvqa", {"en": 0.5})], "xvqa"),
        ([result("xvnli", {"en": 0.5}, FEW)], "shots are None"),
    ],
)
def test_results_that_do_not_go_together_are_refused(tmp_path, results, named):
    with pytest.raises(ValueError, match=named):
        write_report(tmp_path / "report", results, {})
    assert not (tmp_path / "report").exists()


def test_plots_have_a_panel_for_each_score(tmp_path):
    results = [*THREE_SEEDS, result("multi30k", {"en": recalls(0.5), "de": recalls(0.4)})]
    results += [result("xvnli", {"de": 0.6}, FEW, shots=shots) for shots in ("1", "10x2")]
    folder = write_report(tmp_path, results, {}).parent
    # xvnli and three of multi30k: two rows of three panels; few-shot of xvnli alone, as wide as two.
    for name, wide, high in (("languages.png", 3, 2), ("few_shot.png", 2, 1)):
        with Image.open(folder / name) as picture:
            assert picture.size == (wide * 4 * 150, round((high * 3.2 + 0.5) * 150))
            assert len(picture.convert("RGB").getcolors(2**20)) > 10  # something is drawn


def test_terminal_table():
    results = [*THREE_SEEDS, result("marvl", {"id": 0.3}, "translate-test")]
    results += [result("wit", {"ja": recalls(0.3), "ko": recalls(0.2)}, left_out={"ko": 1})]
    console = Console(width=100)
    with console.capture() as capture:
        console.print(summary_table(results))
    lines = [line for line in capture.get().splitlines() if "│" in line]
    assert [re.split(r"\s*│\s*", line.strip("│ ")) for line in lines] == [
        ["xvnli", "72.3 ± 1.2", "57.3 ± 0.2", "de 61.7 ± 1.2  fr 53.0 ± 1.5"],
        ["wit IR@1", "–", "25.0* (n = 1)", "ja 30.0 (n = 1)  ko 20.0* (n = 1)"],
        ["wit TR@1", "–", "15.0* (n = 1)", "ja 20.0 (n = 1)  ko 10.0* (n = 1)"],
    ]


def test_cells_as_text():
    assert show(None, 1) == "–"
    assert show(Cell(0.61234, math.nan, 1), 1) == "61.2"
    assert show(Cell(0.61234, 0.012, 3, partial=True), 5) == "61.2 ± 1.2* (n = 3)"
    assert show(Cell(0.61234, 0.0003, 3), 3) == "61.23 ± 0.03"
    assert show(Cell(-0.0001, 0.01, 2), 2) == "0.0 ± 1.0"  # not -0.0


@given(st.lists(st.lists(st.text(max_size=8), min_size=3, max_size=3), max_size=4))
def test_a_table_keeps_its_columns_whatever_it_holds(rows):
    [[table]] = tables_of(markdown_table(("a", "b", "c"), [*rows, ("x", "y", "z")])).values()
    assert all(len(row) == 3 for row in table) and len(table) == len(rows) + 2
    assert table[-1] == ["x", "y", "z"]
