"""Programs and Python code in processes of their own, with simulated devices."""

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


def environment(devices: int = 1) -> dict[str, str]:
    """The environment of a process with so many simulated devices."""
    return os.environ | {
        "XLA_FLAGS": f"{FAST_COMPILATION} --xla_force_host_platform_device_count={devices}",
        "JAX_PLATFORMS": "cpu",
        "NPROC": "32",  # XLA's threads: simulated devices that wait for one another hold theirs
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
    }


def run_python(code: str, devices: int = 1, timeout: int = 600) -> str:
    """Standard output of `code`; fails with its standard error if it does not end well."""
    done = _run([sys.executable, "-c", code], devices, timeout)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def launch(program: str, *arguments: object, timeout: int = 600) -> subprocess.CompletedProcess:
    """Runs a program of launch/ to its end, from the top folder."""
    return _run([*_command(program), *map(str, arguments)], 1, timeout)


def launched(program: str, *arguments: str, devices: int = 1) -> subprocess.Popen:
    """A process of a program of launch/, its output in a pipe."""
    return subprocess.Popen(
        [*_command(program), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(devices),
        cwd=ROOT,
    )


def in_cluster(count: int) -> list[tuple[str, ...]]:
    """The flags of each of so many processes that work together."""
    common = f"--coordinator=localhost:{free_port()}", f"--processes={count}"
    return [(*common, f"--process={number}") for number in range(count)]


def ended(*processes: subprocess.Popen) -> list[str]:
    """What processes printed that must end well."""
    outputs = [process.communicate(timeout=600)[0] for process in processes]
    assert all(process.returncode == 0 for process in processes), outputs
    return outputs


def _command(program: str) -> list[str]:
    return [sys.executable, str(ROOT / "launch" / program)]


def _run(command: list[str], devices: int, timeout: int) -> subprocess.CompletedProcess:
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        env=environment(devices),
        cwd=ROOT,
        timeout=timeout,
        check=False,
    )
