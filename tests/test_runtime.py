"""What is set before JAX starts, each in a process of its own."""

import multiprocessing
import os
import pathlib
import resource
import sys

import jax
import numpy as np
import pytest

from rc3_jax.runtime import WIDE_VECTORS, keep_freed_memory, keep_programs, tune_cpu


def in_new_process(function, *arguments):
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def fresh_pages(keeps: bool) -> int:
    """Pages that the system maps for 100 MiB that were freed just before."""
    assert not keeps or keep_freed_memory()
    for _ in range(2):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        np.ones(100 << 20, np.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(sys.platform != "linux", reason="the setting is glibc's")
def test_memory_that_is_freed_is_used_again_without_fresh_pages():
    kept, released = (in_new_process(fresh_pages, keeps) for keeps in (True, False))
    assert kept < released / 4


def prepared() -> tuple[list[str], str]:
    return keep_programs(), jax.config.jax_compilation_cache_dir


def test_compiled_programs_are_kept_in_the_users_cache_if_they_are_whole(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    programs = tmp_path / "rc3_jax" / "programs"
    programs.mkdir(parents=True)
    for name in ("whole-cache", "whole-atime", "cut_short-cache"):
        (programs / name).touch()
    told, folder = in_new_process(prepared)
    assert folder == str(programs) and folder in " ".join(told)
    assert sorted(path.name for path in programs.iterdir()) == ["whole-atime", "whole-cache"]


def test_a_cache_that_the_user_names_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path))
    told, folder = in_new_process(prepared)
    assert folder == str(tmp_path) and "compiled programs" not in " ".join(told)


def compiled_without_a_lock() -> None:
    keep_programs()
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    (pathlib.Path(jax.config.jax_compilation_cache_dir) / ".lockfile").symlink_to("/nowhere/lock")
    jax.jit(lambda x: x + 1)(1)


def test_a_program_that_cannot_be_kept_is_told_in_a_line(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    in_new_process(compiled_without_a_lock)
    lines = capfd.readouterr().err.splitlines()
    assert any(line.endswith("; the next start compiles it again") for line in lines)
    assert all(line.startswith("compiled program 'jit") for line in lines)


def vectors(flags: str) -> tuple[list[str], str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rc3_jax.runtime._cpu_flags", lambda: {"avx2", "avx512f"})
        patch.setenv("XLA_FLAGS", flags)
        return tune_cpu(), os.environ["XLA_FLAGS"]


def test_wide_vectors_are_used_where_the_machine_has_them_and_the_user_says_nothing():
    told, flags = in_new_process(vectors, "--xla_dump_to=/x")
    assert flags == f"--xla_dump_to=/x {WIDE_VECTORS}" and any("512" in line for line in told)
    narrow = "--xla_cpu_prefer_vector_width=128"
    told, flags = in_new_process(vectors, narrow)
    assert flags == narrow and not any("512" in line for line in told)


def test_nothing_is_set_for_an_accelerator(monkeypatch):
    monkeypatch.setattr("rc3_jax.runtime._setting", lambda name: "tpu")
    assert tune_cpu() == []
