"""The ahead-of-time compiler as a user meets it, on simulated devices."""

import importlib.util
import os
import subprocess
import sys

import pytest

from tests.processes import FAST_COMPILATION, ROOT

TINY = """
from tests.tiny import load_config, shrink

def get_config(argument=""):
    config = shrink(load_config("rc3_demo", argument))
    config.batch_size = 160
    config.objective.pairs.tile = 10
    return config
"""


def launch(*arguments, timeout=600):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": FAST_COMPILATION}
    return subprocess.run(
        [sys.executable, str(ROOT / "launch" / "compile.py"), *arguments],
        capture_output=True,
        text=True,
        env=environment,
        cwd=ROOT,
        timeout=timeout,
        check=False,
    )


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    path = tmp_path_factory.mktemp("configs") / "tiny.py"
    path.write_text(TINY)
    return path


@pytest.mark.slow
def test_a_step_on_eight_devices(tiny, tmp_path):
    report, hlo = tmp_path / "pods" / "tiny.md", tmp_path / "tiny.hlo"
    done = launch(
        f"--config={tiny}", "--devices=8", "--config.mesh.fsdp=2", f"--out={report}", f"--hlo={hlo}"
    )
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout
    text = report.read_text()
    assert text.strip() == done.stdout.strip()
    assert "| mesh | replica 1, data 4, fsdp 2, tensor 1 |" in text
    assert "| global batch | 160 rows: 80 strict, 40 weak, 40 parallel |" in text
    assert "| all-reduce | data" in text
    assert "| text tower |" in text
    assert "No array holds all pairs" in text
    assert "ENTRY" in hlo.read_text()


@pytest.mark.slow
def test_stored_pairs_are_named_and_end_with_status_1(tiny):
    arguments = (f"--config={tiny}", "--devices=8", "--config.objective.pairs.transport=dense")
    done = launch(*arguments)
    assert done.returncode == 1
    assert "| images x images |" in done.stdout
    assert done.stderr.strip().splitlines()[-1].startswith("error: the step stores arrays of all")
    assert launch(*arguments, "--allow_pair_buffers").returncode == 0


def test_rules_are_printed_without_compiling(tiny):
    settings = ("--config.mesh.fsdp=2", "--config.mesh.tensor=2", "--vocab_size=100000")
    done = launch(f"--config={tiny}", "--devices=8", *settings, "--print_rules")
    assert done.returncode == 0, done.stderr[-3000:]
    lines = {line.split(" | ")[0].strip("| "): line for line in done.stdout.splitlines()}
    embedding = lines["text/word_embedding/embedding"]
    # 100,000 words x 16 numbers x 4 bytes, divided by both axes.
    assert "| [100000, 16] |" in embedding
    assert "1,600,000 |" in embedding
    assert "tensor" in embedding and "fsdp" in embedding


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name either --topology=v5e:16x16 or --devices=8"),
        (["--devices=8", "--topology=v5e:4x4"], "name either --topology"),
        (["--topology=v9:4x4"], "chip 'v9' is unknown; use one of v4, v5e, v5p, v6e"),
        (["--topology=v5e:4x4x4"], "v5e chips form a torus of 2 dimensions"),
        (["--topology=v5p"], "such as v5p:8x8x8"),
        (["--devices=8", "--config.batch_size=48"], "must be a multiple of 8"),
        (["--devices=8", "--config.batch_size=2"], "leaves no row to parallel"),
        (["--devices=8", "--config.mesh.fsdp=3"], "mesh.fsdp=3"),
        (["--devices=8", "--kinds=strong"], "strong unknown; use strict, weak, parallel"),
        (["--devices=8", "--kinds=parallel"], "training needs strict or weak rows"),
        (["--devices=8", "surplus"], "'surplus' is not understood"),
    ],
)
def test_mistakes_end_with_the_reason_in_one_line(tiny, arguments, message):
    done = launch(f"--config={tiny}", *arguments)
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert message in last
    assert last.startswith("error: ")
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is not None, reason="libtpu is installed")
def test_a_missing_libtpu_is_named(tiny):
    done = launch(f"--config={tiny}", "--topology=v5e:4x4")
    assert done.returncode != 0
    assert "needs the package libtpu" in done.stderr.strip().splitlines()[-1]


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
def test_a_step_on_tpus_that_are_not_there(tiny):
    done = launch(f"--config={tiny}", "--topology=v5e:2x4", "--config.mesh.fsdp=2")
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout
    assert "| devices | 8 x TPU v5 lite |" in done.stdout
    assert "15.75 GiB: fits" in done.stdout
    assert "A step takes at least" in done.stdout
