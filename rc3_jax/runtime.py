"""What is set before JAX starts, in one place: memory, vector width, cache of compiled programs."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import pathlib

import jax

from rc3_jax.paths import cache_folder

ACCELERATORS = ("libtpu", "jax_cuda12_plugin", "jax_cuda13_plugin", "jax_rocm7_plugin")
"""Packages that bring JAX an accelerator."""
TRIM_THRESHOLD, MMAP_MAX, ARENA_MAX = -1, -4, -8
"""Parameters of glibc's `mallopt`."""
WIDE_VECTORS = "--xla_cpu_prefer_vector_width=512"


def prepare_runtime() -> list[str]:
    """Sets what makes a CPU faster, and keeps compiled programs in the user's cache folder.

    What the environment sets already, `XLA_FLAGS` and `JAX_COMPILATION_CACHE_DIR`, is left as it is.
    Called before JAX has computed anything.

    Returns:
      What was set, a phrase each.
    """
    told = []
    if _is_cpu_only():
        if keep_freed_memory():
            told.append("memory is kept between steps")
        if "avx512f" in _cpu_flags() and "vector_width" not in os.environ.get("XLA_FLAGS", ""):
            os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {WIDE_VECTORS}".strip()
            told.append("vectors of 512 bits")
    # Processes on CPUs that share a cache can fail: one reads a program while another compiles it.
    alone = not jax.distributed.is_initialized()
    if _setting("jax_compilation_cache_dir") is None and (alone or not _is_cpu_only()):
        folder = cache_folder("programs")
        jax.config.update("jax_compilation_cache_dir", str(folder))
        told.append(f"compiled programs are kept in {folder}")
    return told


def keep_freed_memory() -> bool:
    """Lets glibc keep what is freed, so that a step's arrays need no fresh pages from the system.

    XLA allocates a step's intermediate arrays at once. The system would map and clear them anew in
    every step.

    Returns:
      False where the C library has no such setting.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return False
    done = [mallopt(TRIM_THRESHOLD, -1), mallopt(MMAP_MAX, 0), mallopt(ARENA_MAX, 1)]
    return all(done)


def _setting(name: str) -> str | None:
    """A setting of JAX, from the environment or the program."""
    return getattr(jax.config, name)


def _is_cpu_only() -> bool:
    """Whether JAX will run on CPUs, as far as one can know before it starts."""
    chosen = _setting("jax_platforms")
    if chosen:
        return chosen == "cpu"
    return not any(importlib.util.find_spec(package) for package in ACCELERATORS)


def _cpu_flags() -> set[str]:
    """Instruction sets of this machine's CPU; empty where the system does not say."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return set()
    return {flag for line in lines if line.startswith("flags") for flag in line.split()}
