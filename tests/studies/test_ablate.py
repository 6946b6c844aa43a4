"""A run of a study from the command line, with real training."""

from __future__ import annotations

import json

import pytest

from tests.processes import launch

FILE = "--study=tests/studies/tiny_study.py"


@pytest.mark.slow
def test_a_run_is_trained_and_scored_and_reported(tmp_path):
    chosen = [FILE, "--only=fast", "--seeds=1", f"--workdir={tmp_path}"]
    done = launch("ablate.py", *chosen)
    log = tmp_path / "fast" / "seed_1" / "log.txt"
    assert done.returncode == 0, log.read_text()[-3000:]
    assert "1/1  fast, seed 1: done after" in done.stdout
    trained = json.loads((tmp_path / "fast" / "seed_1" / "model" / "scores.json").read_text())
    tuned = tmp_path / "fast/seed_1/tasks/xvnli/seed_1/zero_shot/scores.json"
    [run] = json.loads((tmp_path / "results.json").read_text())["runs"]
    scores = run["scores"]
    assert trained["step"] == 2
    assert scores["dependence/text_dependence"] == trained["dependence"]["text_dependence"]
    regions = trained["retrieval"]["regions"]
    assert scores["retrieval/regions/ja/IR@1"] == regions["ja"]["IR@1"]
    accuracy = json.loads(tuned.read_text())["scores"]["de"]["accuracy"]
    assert scores["xvnli/de/accuracy"] == accuracy
    assert run["versions"]["jax"] and run["seconds"] > 0

    kept = sorted(file.name for file in (tmp_path / "batches").glob("*/*.npz"))
    assert kept == ["0.npz", "1.npz"] and str(tmp_path / "batches") in done.stdout

    before = log.read_text()
    (log.parent / "result.json").unlink()  # as if it had been stopped before the end
    out = tmp_path / "again.json"
    assert launch("ablate.py", *chosen, f"--out={out}").returncode == 0
    assert len(log.read_text()) < 1.5 * len(before)  # nothing is trained again
    assert json.loads(out.read_text())["runs"][0]["scores"] == scores

    reported = launch("ablate.py", "report", out, f"--out={tmp_path / 'e.md'}")
    assert reported.returncode == 0, reported.stderr[-2000:]
    value = f"{scores['dependence/text_dependence']:+.3f}"
    assert f"| fast | {value} | 1 | cannot be told |" in (tmp_path / "e.md").read_text()
    assert (tmp_path / "e" / "tiny_2.png").is_file()
