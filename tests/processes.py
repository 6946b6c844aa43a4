"""Python code in a process of its own, with simulated devices."""

import importlib.metadata
import os
import pathlib
import socket
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]


def fast_compilation() -> str:
    """Flags of XLA for tests, which compile much and compute little."""
    flags = ["--xla_backend_optimization_level=0", "--xla_cpu_parallel_codegen_split_count=1"]
    major, minor, *_ = map(int, importlib.metadata.version("jaxlib").split(".")[:2])
    if (major, minor) < (0, 11):  # later ones do not know it
        flags.append("--xla_cpu_use_fusion_emitters=false")
    return " ".join(flags)


FAST_COMPILATION = fast_compilation()


def free_port() -> int:
    """For processes of this machine that work together."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def run_python(code: str, devices: int = 1, timeout: int = 600) -> str:
    """Standard output of `code`; fails with its standard error if it does not end well."""
    environment = os.environ | {
        "XLA_FLAGS": f"{FAST_COMPILATION} --xla_force_host_platform_device_count={devices}",
        "JAX_PLATFORMS": "cpu",
        "NPROC": "32",  # XLA's threads: simulated devices that wait for one another hold theirs
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=environment,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout
