"""Means, intervals and verdicts against SciPy; files of results that are joined; the report."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from scipy import stats

from rc3_jax.convert.output import write_json
from rc3_jax.scenes.languages import LANGUAGES
from rc3_jax.settings import ConfigError
from rc3_jax.studies.execute import execute
from rc3_jax.studies.report import report_text, write_report
from rc3_jax.studies.results import (
    FAILS,
    HOLDS,
    OPEN,
    Results,
    collect,
    mean_interval,
    read_results,
    verdict,
)
from rc3_jax.studies.study import Claim, Run
from tests.studies.fake import command
from tests.studies.tiny_study import get_study
from tests.tiny import ROOT

STUDY = get_study()
HUNDREDTHS = st.integers(-1000, 1000).map(lambda number: number / 100)
VALUES = st.lists(HUNDREDTHS, min_size=2, max_size=12)
BETTER = Claim(sentence="", score="text", variants=("fast",), than="slow")
WORSE = BETTER.model_copy(update={"direction": "below"})


@given(st.lists(st.tuples(HUNDREDTHS, HUNDREDTHS), min_size=2, max_size=12))
def test_intervals_are_those_of_the_paired_t_test(pairs):
    ours, theirs = np.array(pairs).T
    assume(np.ptp(ours - theirs) > 1e-6)
    found = mean_interval(ours - theirs)
    expected = stats.ttest_rel(ours, theirs).confidence_interval(0.95)
    np.testing.assert_allclose(found[1:3], [expected.low, expected.high], atol=1e-9)
    assert found.n == len(pairs)


@given(VALUES, HUNDREDTHS)
def test_verdicts_follow_the_interval_alone(values, shift):
    found = mean_interval([value + shift for value in values])
    assert found.low <= found.mean <= found.high
    swapped = mean_interval([-value - shift for value in values])
    assert verdict(BETTER, found) == verdict(WORSE, swapped)
    opposite = {HOLDS: FAILS, FAILS: HOLDS, OPEN: OPEN}
    assert verdict(WORSE, found) == opposite[verdict(BETTER, found)]
    if np.ptp(values) > 0:
        p = stats.ttest_1samp([value + shift for value in values], 0.0).pvalue
        assert (verdict(BETTER, found) == OPEN) == (p > 0.05)


def test_one_seed_tells_nothing():
    assert mean_interval([3.0]) == (3.0, -math.inf, math.inf, 1)
    assert verdict(BETTER, mean_interval([3.0])) == verdict(BETTER, None) == OPEN


def results(scores, study=STUDY):
    """Results in which a run has text dependence and accuracies as given."""
    runs = [
        dict(
            variant=variant,
            seed=seed,
            settings_sha256="0",
            scores={"dependence/text_dependence": value}
            | {f"xvnli/{code}/accuracy": value for code in ("en", "de", "cs", "ja")}
            | {f"retrieval/regions/{code}/IR@1": value for code in ("cs", "ja")},
            seconds=1800.0,
            versions={"jax": "1.2"},
        )
        for (variant, seed), value in scores.items()
    ]
    outline = study.model_dump(exclude={"base"})
    return Results.parse({"study": outline, "runs": runs})


def test_differences_are_of_the_seeds_that_both_have():
    known = {("slow", 0): 0.125, ("slow", 1): 0.25, ("fast", 1): 0.5, ("fast", 0): 0.375}
    found = results(known)
    assert found.difference("text", "fast", "slow") == mean_interval([0.25, 0.25])
    assert found.difference("text", "fast", 0.125) == mean_interval([0.375, 0.25])
    fresh = results(known | {("fast", 7): 0.5})
    assert fresh.values("text", "fast") == {7: 0.5}  # nothing was chosen on it
    assert fresh.difference("text", "fast", "slow") is None
    with pytest.raises(ConfigError, match="no fast, seed 3"):
        results({("fast", 3): 0.5})


def test_results_are_collected_from_folders_and_files(tmp_path):
    one, other, out = tmp_path / "one", tmp_path / "other", tmp_path / "results.json"
    runs = STUDY.runs()
    execute(STUDY, runs[:2], one, command(one), 1, print)
    execute(STUDY, runs[1:5], other, command(other), 1, print)
    first = collect(STUDY, one, out)
    assert [run.run for run in first.runs] == runs[:2]
    assert "other" not in first.runs[0].scores  # the study has no use for it
    write_json(out, first.model_dump(mode="json"))
    both = collect(STUDY, other, out)
    assert [run.run for run in both.runs] == runs[:5]
    write_json(out, both.model_dump(mode="json"))
    assert [collect(STUDY, one, out)] == [both] == read_results([out])
    with pytest.raises(ConfigError, match="two files of the study tiny"):
        read_results([out, out])
    assert both.runs[0].settings_sha256 == STUDY.checksum(runs[0])

    fewer = get_study(about="Other words.", scores={"text": STUDY.scores["text"]}, claims=())
    other_words = collect(fewer, one, out)
    assert other_words.study.about == "Other words."
    assert other_words.runs[4].scores == {"dependence/text_dependence": 0.25}
    without = get_study(variants={"slow": {}}, claims=())
    with pytest.raises(ConfigError, match=r"results\.json.*no fast, seed 0; fast, seed 1"):
        collect(without, one, out)
    changed = get_study(variants={"slow": {"steps": 3}, "fast": {}})
    with pytest.raises(ConfigError, match=r"results\.json: slow, seed 0 is of other settings"):
        collect(changed, tmp_path / "nowhere", out)
    file = Run("slow", 0).folder(one) / "result.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"seconds": 5.0}))
    with pytest.raises(ConfigError, match="slow, seed 0 has another result"):
        collect(STUDY, one, out)


def test_the_report_says_what_the_numbers_say(tmp_path):
    scores = {("slow", 0): 0.1, ("slow", 1): 0.2, ("fast", 0): 0.5, ("fast", 1): 0.602}
    write_report(tmp_path / "evidence.md", [results(scores)])
    text = (tmp_path / "evidence.md").read_text()
    assert "| tiny 1 | Fast wins. | fast | – | – |" in text
    assert "| tiny 2 | Text counts. | – | – | slow, fast |" in text
    assert "| slow | 15.0 ± 5.0 | 15.0 ± 5.0 | 0.150 ± 0.050 | 2 |" in text
    low, high = stats.ttest_rel([0.5, 0.602], [0.1, 0.2]).confidence_interval(0.95)
    difference = f"+40.1 [{100 * low:+.1f}, {100 * high:+.1f}]"
    assert f"| fast | {difference} | 2 | holds |" in text
    assert "optimizer.lr = 0.004, steps = 2" in text
    assert "verdicts are preliminary" in text and "Not run" not in text
    assert "4 runs of 2.0 hours in all, with jax 1.2." in text
    pictures = [
        token.attrs["src"]
        for line in MarkdownIt().parse(text)
        for token in line.children or ()
        if token.type == "image"
    ]
    assert pictures == ["evidence/tiny_1.png", "evidence/tiny_2.png"]
    assert all((tmp_path / picture).stat().st_size > 5000 for picture in pictures)


def test_the_report_names_what_is_missing(tmp_path):
    text = report_text([results({("fast", 7): 0.5})], "evidence")
    assert "Not run: slow, seed 7." in text and "preliminary" not in text
    assert "| fast | – | 0 | cannot be told |" in text
    assert "| fast | +0.500 | 1 | cannot be told |" in text
    nothing = report_text([results({})], "evidence")
    assert "png" not in nothing and "Not run: slow, seed 0; fast, seed 0" in nothing


def test_the_evidence_is_what_the_results_give():
    files, report = sorted((ROOT / "results").glob("*.json")), ROOT / "docs" / "evidence.md"
    if not files:
        assert not report.exists()
        return
    text = report_text(read_results(files), "evidence")
    assert report.read_text(encoding="utf-8") == text
    pictures = {f"evidence/{file.name}" for file in (ROOT / "docs" / "evidence").iterdir()}
    assert all(f"]({picture})" in text for picture in pictures)
    assert text.count("](evidence/") == len(pictures)


def test_the_readme_has_the_figures_of_the_demo():
    [demo] = read_results([ROOT / "results" / "demo.json"])
    runs = [run.scores for run in demo.runs if run.variant == "demo"]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")

    def cell(score):
        values = [100 * scores[score] for scores in runs]
        return f"{np.mean(values):.1f} ({min(values):.0f} to {max(values):.0f})"

    for code in LANGUAGES:
        of = (
            "retrieval/both/{}/IR@1",
            "matching/both/{}/IR@1",
            "matching/both/{}/pairwise_accuracy",
        )
        cells = [code, *(cell(score.format(code)) for score in of)]
        assert f"| {' | '.join(cells)} |" in readme
