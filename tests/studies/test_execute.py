"""Runs of a study: each is done once, whoever is killed; what fails does not stop the others."""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from rc3_jax.settings import ConfigError
from rc3_jax.studies.execute import core_shares, execute
from rc3_jax.studies.study import Run
from tests.processes import ROOT, environment, launch
from tests.studies.fake import command
from tests.studies.tiny_study import get_study

STUDY = get_study()
FILE = "--study=tests/studies/tiny_study.py"


def notes(workdir: pathlib.Path, run: Run) -> list[str]:
    file = run.folder(workdir) / "notes"
    return [line.split()[0] for line in file.read_text().splitlines()] if file.exists() else []


def do(workdir, processes=1, study=STUDY, runs=None, **options):
    said = []
    runs = study.runs() if runs is None else runs
    failed = execute(study, runs, workdir, command(workdir, **options), processes, said.append)
    return failed, said


@pytest.mark.parametrize("processes", [1, 3])
def test_each_run_is_done_once(tmp_path, processes):
    failed, said = do(tmp_path, processes)
    assert not failed
    assert said[0] == "tiny: 6 runs, 0 of them done"
    assert said[-1].startswith("6/6") and len(said) == 7
    assert all(notes(tmp_path, run) == ["begun", "ended"] for run in STUDY.runs())
    failed, said = do(tmp_path, processes)
    assert said == ["tiny: 6 runs, 6 of them done"]
    assert all(notes(tmp_path, run) == ["begun", "ended"] for run in STUDY.runs())


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="no affinity on this system")
def test_runs_at_a_time_have_their_own_cores(tmp_path):
    before = os.sched_getaffinity(0)
    do(tmp_path, 2)
    files = [run.folder(tmp_path) / "notes" for run in STUDY.runs()]
    cores = {frozenset(map(int, file.read_text().splitlines()[0].split()[1:])) for file in files}
    assert cores <= set(core_shares(2))
    assert os.sched_getaffinity(0) == before


def test_what_fails_is_told_and_tried_again(tmp_path):
    failed, said = do(tmp_path, failing=["fast"])
    assert list(failed) == [run for run in STUDY.runs() if run.variant == "fast"]
    assert all(log.read_text().strip() == "it went wrong" for log in failed.values())
    assert sum("failed after" in line for line in said) == 3
    assert all(notes(tmp_path, run)[-1] == "ended" for run in STUDY.runs() if run not in failed)
    failed, said = do(tmp_path)
    assert said[0] == "tiny: 6 runs, 3 of them done" and not failed
    assert notes(tmp_path, Run("fast", 0)) == ["begun", "begun", "ended"]


def test_runs_of_other_settings_are_refused(tmp_path):
    one = [Run("slow", 0)]
    do(tmp_path, runs=one)
    same = get_study(base=lambda seed: with_threads(STUDY.base(seed)))
    assert do(tmp_path, study=same, runs=one)[1] == ["tiny: 1 runs, 1 of them done"]
    for change in (
        {"variants": {"slow": {"optimizer.lr": 1.0}, "fast": {}}},
        {"task_settings": {**STUDY.task_settings, "epochs": 2}},
    ):
        with pytest.raises(ConfigError, match=r"slow/seed_0: slow, seed 0 is of other"):
            do(tmp_path, study=get_study(**change), runs=one)


def with_threads(config):
    config.data.threads = 1  # on which nothing depends
    return config


def wait_for(happened) -> None:
    for _ in range(6000):  # long enough for a machine that is busy
        if happened():
            return
        time.sleep(0.05)
    pytest.fail("it did not happen")


def test_a_killed_driver_does_nothing_twice(tmp_path):
    def driver(seconds: str):
        arguments = ["-m", "tests.studies.fake", str(tmp_path), seconds, "2"]
        return subprocess.Popen([sys.executable, *arguments], cwd=ROOT, env=environment())

    first, *_, last = runs = STUDY.runs()
    killed = driver("1")
    wait_for(lambda: notes(tmp_path, first) == ["begun", "ended"] and notes(tmp_path, runs[3]))
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not notes(tmp_path, last)
    assert driver("0").wait(timeout=300) == 0  # waits for the orphans of the first
    assert all(notes(tmp_path, run) == ["begun", "ended"] for run in runs)


def test_a_driver_that_ends_takes_its_runs_along(tmp_path):
    def interrupt(line):
        raise KeyboardInterrupt

    runs = [Run("slow", 0), Run("fast", 0)]
    say = iter([print, interrupt])
    waits = {"slow": 0.0, "fast": 60.0}
    with pytest.raises(KeyboardInterrupt):
        execute(
            STUDY,
            runs,
            tmp_path,
            lambda run: command(tmp_path, waits[run.variant])(run),
            2,
            lambda line: next(say)(line),
        )
    failed, _ = do(tmp_path, runs=runs)  # the lock is free
    assert not failed


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="no affinity on this system")
def test_processes_divide_the_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 2, 5})
    assert core_shares(1) == [frozenset()]
    assert core_shares(2) == [{0, 5}, {2}]
    assert core_shares(4) == [{0}, {2}, {5}, {0, 2, 5}]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([FILE, "--only=fsat"], "--only='fsat'"),
        (["report", "nowhere.json"], "nowhere.json"),
    ],
)
def test_mistakes_end_with_the_reason_in_one_line(tmp_path, arguments, message):
    done = launch("ablate.py", *arguments, f"--out={tmp_path / 'out'}")
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ") and message in last
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
