"""Numbers of a report, against sums done by hand."""

from __future__ import annotations

import json
import math

import pytest

from rc3_jax.downstream.report import write_report
from rc3_jax.downstream.report_numbers import Numbers, Setting, shots_order
from tests.downstream.report_results import (
    FEW,
    ZERO,
    percent,
    read,
    recalls,
    result,
    rows_by_name,
    seeds_of_xvnli,
)


def test_means_errors_and_gaps_are_over_seeds():
    results, english, german, french = seeds_of_xvnli()
    text, tables = read(results)
    summary = rows_by_name(tables["Summary", 0])
    assert summary["ours: zero-shot, English"]["xvnli"] == percent(english)
    others = (german + french) / 2
    assert summary["ours: zero-shot, mean of the other languages"]["xvnli"] == percent(others)
    assert set(summary["ours: zero-shot, English"].values()) == {percent(english), "–"}
    task = rows_by_name(tables["xvnli", 0], names=2)
    assert task[ZERO, "accuracy"] == {
        "en": percent(english),
        "de": percent(german),
        "fr": percent(french),
        "mean without en": percent(others),
    }
    gap = task[ZERO, "accuracy: gap to English"]
    assert gap["de"] == percent(english - german) and gap["fr"] == percent(english - french)
    assert gap["en"] == "–"
    assert task[ZERO, "ECE"]["de"] == percent(german / 10)
    assert "over 3 seeds (0, 1, 2)" in text and "*" not in text


def test_the_files_hold_the_numbers_and_what_they_are_of(tmp_path):
    results, _, german, french = seeds_of_xvnli()
    results.append(result("xvnli", {"de": 0.6}, FEW, shots="10x2"))
    path = write_report(tmp_path / "new" / "report", results, {"wit": "no images"})
    assert path == tmp_path / "new" / "report" / "report.md"
    assert path.read_text(encoding="utf-8") == read(results, {"wit": "no images"})[0]
    found = json.loads((path.parent / "report.json").read_text(encoding="utf-8"))
    cell = found["aggregated"]["xvnli"][ZERO]["null"]["accuracy"]["de"]
    assert cell["mean"] == pytest.approx(german.mean()) and cell["n"] == 3
    assert cell["error"] == pytest.approx(german.std(ddof=1) / math.sqrt(3))
    cell = found["aggregated"]["xvnli"][FEW]["10x2"]["accuracy"]["de"]
    assert cell == {"mean": 0.6, "error": None, "n": 1, "partial": False}
    mean = found["without_english"]["xvnli"][ZERO]["null"]["accuracy"]
    others = (german + french) / 2
    assert mean["error"] == pytest.approx(others.std(ddof=1) / math.sqrt(3))
    assert found["results"] == results and found["not_run"] == {"wit": "no images"}


def test_one_seed_has_no_error():
    text, tables = read([result("xvnli", {"en": 0.7, "de": 0.625}, seed=7)])
    assert "One seed (7)" in text and "±" not in text
    assert rows_by_name(tables["xvnli", 0], 2)[ZERO, "accuracy"]["de"] == "62.5"


def test_seeds_with_other_languages_say_how_many_they_are():
    results = [
        result("xgqa", {"en": 0.5, "de": 0.4, "ko": 0.2}),
        result("xgqa", {"en": 0.6, "de": 0.5}, seed=1),
        result("xgqa", {"en": 0.7, "de": 0.3, "ko": 0.4}, seed=2),
    ]
    _, tables = read(results)
    row = rows_by_name(tables["xgqa", 0], 2)[ZERO, "accuracy"]
    assert row["de"] == percent([0.4, 0.5, 0.3])
    assert row["ko"] == percent([0.2, 0.4]) + " (n = 2)"
    # Only two seeds have all the languages.
    assert row["mean without en"] == percent([0.3, 0.35]) + " (n = 2)"
    gap = rows_by_name(tables["xgqa", 0], 2)[ZERO, "accuracy: gap to English"]
    assert gap["ko"] == percent([0.3, 0.3]) + " (n = 2)"


def test_no_seed_with_all_languages_has_no_mean():
    _, tables = read([result("xvnli", {"de": 0.4}), result("xvnli", {"fr": 0.5}, seed=1)])
    row = rows_by_name(tables["xvnli", 0], 2)[ZERO, "accuracy"]
    assert row == {"de": "40.0 (n = 1)", "fr": "50.0 (n = 1)", "mean without en": "–"}


def test_scores_of_some_rows_are_marked_wherever_they_stand():
    results = [
        result("xvnli", {"en": 0.7, "de": 0.6, "fr": 0.5}, left_out={"de": 3, "fr": 0}),
        result("xvnli", {"de": 0.65}, FEW, shots="48", left_out={"de": 3}),
        result("xvnli", {"de": 0.65, "fr": 0.6}, "translate-test"),
        result("wit", {"en": recalls(0.5), "ja": recalls(0.4)}, left_out={"en": 2})
        | {"across": {"IR rank variance": 12.25}},
    ]
    text, tables = read(results)
    task = rows_by_name(tables["xvnli", 0], 2)
    assert task[ZERO, "accuracy"] == dict(
        zip(("en", "de", "fr", "mean without en"), ("70.0", "60.0*", "50.0", "55.0*"), strict=True)
    )
    assert task[ZERO, "accuracy: gap to English"]["de"] == "10.0*"
    assert task["translate-test", "accuracy"]["de"] == "65.0"
    assert rows_by_name(tables["wit", 0], 2)[ZERO, "IR@1: gap to English"]["ja"] == "10.0*"
    assert tables["wit", 1][1] == [ZERO, "en ja", "12.2*"]
    summary = rows_by_name(tables["Summary", 0])
    assert summary["ours: zero-shot, mean of the other languages"]["xvnli"] == "55.0*"
    assert summary["ours: few-shot with the most shots, mean"]["xvnli"] == "65.0*, 48 shots"
    assert summary["ours: zero-shot, English"]["wit IR@1"] == "50.0*"
    assert tables["xvnli, by shots", 0][1] == ["de", "accuracy", "60.0*", "65.0*"]
    assert "Scores marked * are of less than all rows" in text
    assert tables["Left out", 0][1:] == [
        ["xvnli", ZERO, "de", "3", "300", "0"],
        ["xvnli", "few-shot, 48", "de", "3", "300", "0"],
        ["wit", ZERO, "en", "2", "300", "0"],
    ]


def test_without_english_there_is_no_gap():
    text, tables = read([result("marvl", {"id": 0.6, "sw": 0.5})])
    assert not any("gap" in score for _, score in rows_by_name(tables["marvl", 0], 2))
    summary = rows_by_name(tables["Summary", 0])
    assert summary["ours: zero-shot, mean of the other languages"]["marvl"] == "55.0"
    assert "ours: zero-shot, English" not in summary
    assert "published: UC2, zero-shot, English" not in text


def test_english_alone_has_no_mean():
    _, tables = read([result("xvnli", {"en": 0.6})])
    assert rows_by_name(tables["xvnli", 0], 2)[ZERO, "accuracy"]["mean without en"] == "–"


def test_retrieval_is_headed_by_re_ranked_scores_where_all_have_them():
    again = {"re-ranked IR@1": 0.7, "re-ranked TR@1": 0.6, "re-ranked mean": 0.8}
    both = {"en": recalls(0.5, **again), "de": recalls(0.4, **again)}
    some = {"en": recalls(0.5, **again), "de": recalls(0.4)}
    text, tables = read([result("xflickrco", both), result("multi30k", both), result("wit", some)])
    row = rows_by_name(tables["Summary", 0])["ours: zero-shot, mean of the other languages"]
    assert row["xflickrco IR@1"] == "70.0" and row["xflickrco TR@1"] == "60.0"
    assert row["wit IR@1"] == "40.0" and row["wit TR@1"] == "30.0"
    assert row["multi30k mean"] == "80.0" and "mscoco mean" not in row
    assert "re-ranked for xflickrco, multi30k and by vectors alone for wit" in text
    # Every score stands in the task's table.
    assert rows_by_name(tables["xflickrco", 0], 2)[ZERO, "IR@1"]["de"] == "40.0"


def test_rank_variances_of_the_same_languages_are_averaged():
    scores = {"en": recalls(0.5), "de": recalls(0.4)}
    results = [
        result("wit", scores, across={"IR rank variance": 10.0, "TR rank variance": 4.0}),
        result("wit", scores, seed=1, across={"IR rank variance": 13.0, "TR rank variance": 6.0}),
        result("wit", {"ja": recalls(0.3), "ko": recalls(0.2)}, across={"IR rank variance": 99.0}),
    ]
    text, tables = read(results)
    assert tables["wit", 1] == [
        ["protocol", "languages", "IR rank variance", "TR rank variance"],
        [ZERO, "en de", "11.5 ± 1.5", "5.0 ± 1.0"],
        [ZERO, "ja ko", "99.0 (n = 1)", "–"],
    ]
    assert "CCRK" in text


def test_few_shot_is_sorted_by_shots():
    zero = result("marvl", {"en": 0.7, "id": 0.5, "zh": 0.4, "ta": 0.3})
    few = [
        result("marvl", {code: score}, FEW, shots=shots)
        for shots, score in (("10x2", 0.65), ("2", 0.55), ("10", 0.6), ("25", 0.62))
        for code in ("zh", "id")
        if (shots, code) != ("25", "id")
    ]
    text, tables = read([zero, *few])
    assert tables["marvl, by shots", 0] == [
        ["language", "score", "0", "2", "10", "10x2", "25"],
        ["id", "accuracy", "50.0", "55.0", "60.0", "65.0", "–"],
        ["zh", "accuracy", "40.0", "55.0", "60.0", "65.0", "62.0"],
    ]
    # With 25 only one language was trained, so that 10x2 is the most for a mean.
    row = rows_by_name(tables["Summary", 0])["ours: few-shot with the most shots, mean"]
    assert row["marvl"] == "65.0, 10x2 shots"
    assert "marvl few-shot, 10x2 (zh, id)" in text  # fewer languages than zero-shot


def test_most_shots_are_the_most_where_no_number_has_all_languages():
    few = [
        result("xvnli", {"de": 0.5}, FEW, shots="1"),
        result("xvnli", {"fr": 0.5}, FEW, shots="48"),
    ]
    assert Numbers(few).most_shots("xvnli") == Setting(FEW, "48")
    assert Numbers([result("xvnli", {"de": 0.5})]).most_shots("xvnli") is None


def test_shots_are_in_order():
    shots = ["100", "5", "10x2", "1", "100x5", "10", "25", "200"]
    in_order = ["1", "5", "10", "10x2", "25", "100", "100x5", "200"]
    assert sorted(shots, key=shots_order) == in_order
