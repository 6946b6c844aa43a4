"""What is set before JAX starts, in one place: memory, vector width, cache of compiled programs."""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import os
import pathlib
import re
import warnings
from typing import Any

import jax

from rc3_jax.paths import cache_folder

TRIM_THRESHOLD, MMAP_MAX, ARENA_MAX = -1, -4, -8
"""Parameters of glibc's `mallopt`."""
WIDE_VECTORS = "--xla_cpu_prefer_vector_width=512"
CACHE_BYTES = 2 << 30
"""Size of the cache of compiled programs, beyond which those not used for longest are removed."""


def tune_cpu() -> list[str]:
    """Sets what makes computing on a CPU faster; called before JAX or other threads have started.

    A vector width in `XLA_FLAGS` is left as it is. Where JAX will use an accelerator, nothing is set.

    Returns:
      What was set, a phrase each.
    """
    told = []
    if _is_cpu_only():
        if keep_freed_memory():
            told.append("freed memory is kept for later steps")
        if "avx512f" in _cpu_flags() and "vector_width" not in os.environ.get("XLA_FLAGS", ""):
            _add_xla_flag(WIDE_VECTORS)
            told.append("vectors have 512 bits")
    return told


def keep_programs() -> list[str]:
    """Keeps compiled programs in the user's cache folder, for a program that is a single process.

    JAX lets the first of several processes write alone: at the next start it would enter the first
    collective while the others still compile, and give up waiting for them. `JAX_COMPILATION_CACHE_DIR`
    is left as it is. Called after the processes have joined.

    Returns:
      What was set, a phrase each.
    """
    _warn_in_a_line()
    if jax.distributed.is_initialized() or _setting("jax_compilation_cache_dir") is not None:
        return []
    folder = cache_folder("programs")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        return [f"compiled programs are not kept: {error}"]
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_compilation_cache_max_size", CACHE_BYTES)
    for program in folder.glob("*-cache"):  # cut short by a full disk or the end of its process
        if not program.with_name(f"{program.name.removesuffix('-cache')}-atime").exists():
            program.unlink(missing_ok=True)
    return [f"compiled programs are kept in {folder}"]


def _warn_in_a_line() -> None:
    """Says plainly what JAX warns of where a compiled program cannot be kept or read.

    Another process may hold the folder's lock for more than ten seconds, or the disk may be full.
    """
    formatted = warnings.formatwarning
    effects = {"reading": "it is compiled again", "writing": "the next start compiles it again"}

    def told(message: Warning | str, *place: Any, **line: Any) -> str:
        found = re.fullmatch(
            rf"Error ({'|'.join(effects)}) persistent .*? for (.*)", str(message), re.DOTALL
        )
        if found is None:
            return formatted(message, *place, **line)
        return f"compiled program {found[2]}; {effects[found[1]]}\n"

    warnings.formatwarning = told


def keep_freed_memory() -> bool:
    """Lets glibc keep what is freed, so that a step's arrays need no fresh pages from the system.

    XLA allocates a step's intermediate arrays at once, and the system would map and clear their pages
    anew in every step. The process never shrinks: it keeps the most that it has needed.

    Returns:
      False where the C library has no such setting.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return False
    done = [mallopt(TRIM_THRESHOLD, -1), mallopt(MMAP_MAX, 0), mallopt(ARENA_MAX, 1)]
    return all(done)


def simulate_devices(count: int) -> None:
    """Lets JAX have so many devices, all on this machine's CPU; called before JAX has started.

    XLA gets more threads than devices, since each device that waits for the others holds one.
    """
    jax.config.update("jax_platforms", "cpu")
    os.environ["NPROC"] = str(4 * count)
    _add_xla_flag(f"--xla_force_host_platform_device_count={count}")


def _add_xla_flag(flag: str) -> None:
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()


def _setting(name: str) -> str | None:
    """A setting of JAX, from the environment or the program."""
    return getattr(jax.config, name)


def _is_cpu_only() -> bool:
    """Whether JAX will run on CPUs, as far as one can know before it starts."""
    chosen = _setting("jax_platforms")
    if chosen:
        return chosen == "cpu"
    plugins = importlib.metadata.entry_points(group="jax_plugins")
    return not plugins and importlib.util.find_spec("libtpu") is None


def _cpu_flags() -> set[str]:
    """Instruction sets of this machine's CPU; empty where the system does not say."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return set()
    return {flag for line in lines if line.startswith("flags") for flag in line.split()}
