"""Runs of a study: each in a process of its own, several at a time, resumable."""

from __future__ import annotations

import contextlib
import fcntl
import importlib.metadata
import os
import pathlib
import platform
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO, NamedTuple

import jax
from flax.traverse_util import flatten_dict

from rc3_jax.convert.output import PACKAGES, write_json
from rc3_jax.data.jsonl import read_json
from rc3_jax.data.record import DataError
from rc3_jax.observe.log import Say
from rc3_jax.studies.study import Run, Study
from rc3_jax.tasks.suite import run_suite
from rc3_jax.training.pretrain import train

RESULT, SETTINGS, LOG, LOCK = "result.json", "settings.json", "log.txt", "lock"
"""Files of a run's folder: its scores, written last; the checksum of its settings; what it printed;
what its process locks as long as it lives."""
BATCHES = "batches"
"""Folder in that of a study: batches that its runs have in common, until all are done."""
POLL = 0.2
"""Seconds between two looks at the processes."""


def perform(study: Study, run: Run, workdir: pathlib.Path) -> None:
    """Trains a model, fine-tunes it on the tasks and writes `result.json`; goes on where it was.

    Raises:
      ConfigError, DataError, FloatingPointError, OutOfMemory: as `train`; a task was not run, or
        a score of the study is missing.
    """
    began, folder = time.monotonic(), run.folder(workdir)
    model = folder / "model"
    try:
        scores = read_json(model / "scores.json")
    except DataError:  # not there, or cut short
        config = study.config(run)
        config.data.batch_cache = str(workdir / BATCHES)  # variants of a seed read the same rows
        scores = train(config, model, resume=True)
    groups = {name: group for name, group in scores.items() if name not in ("step", "texts")}
    raw = flatten_dict(groups, sep="/")
    if study.tasks:
        run_suite(model, "miniature", "", folder / "tasks", study.options(run))
        report = read_json(folder / "tasks" / "report.json")
        for task, reason in report["not_run"].items():
            raise DataError(f"{task}: {reason}")
        for result in report["results"]:
            raw |= flatten_dict({result["task"]: result["scores"]}, sep="/")
    study.chosen(raw, run)
    versions = {name: importlib.metadata.version(name) for name in ("rc3_jax", *PACKAGES)}
    versions |= {"python": platform.python_version(), "device": jax.devices()[0].device_kind}
    result = {**run._asdict(), "settings_sha256": study.checksum(run), "scores": raw}
    result |= {"seconds": round(time.monotonic() - began, 1), "versions": versions}
    write_json(folder / RESULT, result)


class Job(NamedTuple):
    """A run at work."""

    run: Run
    process: subprocess.Popen
    began: float
    cores: frozenset[int]


def execute(
    study: Study,
    runs: Sequence[Run],
    workdir: pathlib.Path,
    command: Callable[[Run], Sequence[str]],
    processes: int,
    say: Say,
) -> Mapping[Run, pathlib.Path]:
    """Runs what is not done yet.

    Another program that runs the same study in the same folder, or a process that outlived its own,
    does no harm: a run that is at work is waited for.

    Args:
      command: the command of a run, which writes `result.json` in its folder.
      processes: runs at a time; they divide the cores.

    Raises:
      ConfigError: a run in the folder has other settings.

    Returns:
      Run that failed → what it printed.
    """
    for run in runs:
        folder = run.folder(workdir)
        if (folder / SETTINGS).is_file():
            study.check_settings(run, read_json(folder / SETTINGS)["settings_sha256"], folder)
    waiting = [run for run in runs if not (run.folder(workdir) / RESULT).is_file()]
    say(f"{study.name}: {len(runs)} runs, {len(runs) - len(waiting)} of them done")
    free, jobs, seconds = core_shares(processes), list[Job](), list[float]()
    failed: dict[Run, pathlib.Path] = {}
    elsewhere: set[Run] = set()
    try:
        while waiting or jobs:
            for run in waiting[:] if free else ():
                folder = run.folder(workdir)
                with locked(folder) as lock:
                    if lock is None:
                        if run not in elsewhere:
                            say(f"{run}: another process is at work on it")
                        elsewhere.add(run)
                        continue
                    waiting.remove(run)
                    if not (folder / RESULT).is_file():
                        settings = {"settings_sha256": study.checksum(run)}
                        write_json(folder / SETTINGS, settings)
                        jobs.append(_start(run, command(run), folder, lock, free.pop()))
                if not free:
                    break
            time.sleep(POLL)
            for job in [job for job in jobs if job.process.poll() is not None]:
                jobs.remove(job)
                free.append(job.cores)
                seconds.append(time.monotonic() - job.began)
                folder, left = job.run.folder(workdir), len(waiting) + len(jobs)
                ended = "done"
                if job.process.returncode or not (folder / RESULT).is_file():
                    failed[job.run], ended = folder / LOG, "failed"
                minutes = left * sum(seconds) / len(seconds) / processes / 60
                say(
                    f"{len(runs) - left}/{len(runs)}  {job.run}: {ended} after {seconds[-1]:.0f} s  "
                    f"ETA {minutes:.0f} min"
                )
    finally:
        for job in jobs:
            job.process.terminate()
        for job in jobs:
            job.process.wait()
    return failed


def core_shares(processes: int) -> list[frozenset[int]]:
    """The cores of each of so many processes; empty where a process is bound to none.

    Processes that exceed the cores share all of them.
    """
    if processes == 1 or not hasattr(os, "sched_getaffinity"):
        return [frozenset()] * processes
    cores = sorted(os.sched_getaffinity(0))
    return [frozenset(cores[number::processes] or cores) for number in range(processes)]


@contextlib.contextmanager
def locked(folder: pathlib.Path, waits: bool = False) -> Iterator[IO[str] | None]:
    """A locked file of the folder; None if another process holds the lock and this one does not wait.

    A child that inherits the file keeps the lock until it ends.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB))
        except BlockingIOError:
            yield None
        else:
            yield file


def _start(
    run: Run, command: Sequence[str], folder: pathlib.Path, lock: IO[str], cores: frozenset[int]
) -> Job:
    """Begins a run on some cores; its process holds the lock and prints to the log."""
    before = os.sched_getaffinity(0) if cores else ()
    with (folder / LOG).open("a", encoding="utf-8") as log:
        try:
            if cores:
                os.sched_setaffinity(0, cores)  # a child begins with the cores of its parent
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=[lock.fileno()],
            )
        finally:
            if cores:
                os.sched_setaffinity(0, before)
    return Job(run, process, time.monotonic(), cores)
