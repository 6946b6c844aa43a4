"""Python code in a process of its own, with simulated devices."""

import os
import pathlib
import subprocess
import sys

FAST_COMPILATION = "--xla_backend_optimization_level=0"
ROOT = pathlib.Path(__file__).parents[1]


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
