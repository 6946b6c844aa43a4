"""What is set before JAX starts, each in a process of its own."""

import multiprocessing
import resource
import sys

import jax
import numpy as np
import pytest

from rc3_jax.runtime import keep_freed_memory, prepare_runtime


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
    assert in_new_process(fresh_pages, True) < 100 < in_new_process(fresh_pages, False)


def prepared() -> tuple[list[str], str]:
    return prepare_runtime(), jax.config.jax_compilation_cache_dir


def test_compiled_programs_are_kept_in_the_users_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    told, folder = in_new_process(prepared)
    assert folder == str(tmp_path / "rc3_jax" / "programs") and folder in " ".join(told)


def test_a_cache_that_the_user_names_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path))
    told, folder = in_new_process(prepared)
    assert folder == str(tmp_path) and "compiled programs" not in " ".join(told)
