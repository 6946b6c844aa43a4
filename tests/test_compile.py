"""The ahead-of-time compiler as a user meets it, on simulated devices."""

import functools
import importlib.util

import pytest

from tests import processes
from tests.tiny import OTHER_TERMS

TINY = processes.ROOT / "tests" / "compile_config.py"
ITC_ALONE = [f"--config.objective.weights.{term}=0.0" for term in OTHER_TERMS]
"""For tests that a small step serves as well."""

launch = functools.partial(processes.launch, "compile.py")


@pytest.mark.slow
def test_a_step_on_eight_devices(tmp_path):
    report, hlo = tmp_path / "pods" / "tiny.md", tmp_path / "tiny.hlo"
    done = launch(
        f"--config={TINY}", "--devices=8", "--config.mesh.fsdp=2", f"--out={report}", f"--hlo={hlo}"
    )
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout
    text = report.read_text()
    assert text.strip() == done.stdout.strip()
    assert "| mesh | replica 1, data 4, fsdp 2, tensor 1 |" in text
    assert "| global batch | 160 rows: 80 strict, 40 weak, 40 parallel |" in text
    assert "| all-reduce | 8 |" in text
    assert "| text |" in text
    assert "No array holds all pairs" in text
    assert "ENTRY" in hlo.read_text()


@pytest.mark.slow
def test_stored_pairs_are_named_and_end_with_status_1():
    dense = "--config.objective.pairs.transport=dense"
    arguments = (f"--config={TINY}", "--devices=8", dense, *ITC_ALONE)
    done = launch(*arguments)
    assert done.returncode == 1
    assert "dot_general`" in done.stdout.split("## Pairs")[1]
    assert done.stderr.strip().splitlines()[-1].startswith("error: ")
    assert launch(*arguments, "--allow_pair_buffers").returncode == 0


def test_rules_are_printed_without_compiling():
    settings = ("--config.mesh.fsdp=2", "--config.mesh.tensor=2", "--vocab_size=100000")
    done = launch(f"--config={TINY}", "--devices=8", *settings, "--print_rules")
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
        (["--devices=8", "--topology=v5e:4x4"], "--devices"),
        (["--devices=8", "--config.model.attention=splash"], "model.attention=splash"),
        (["--devices=8", "--config.batch_size=48"], "batch_size"),
        (["--devices=8", "--config.batch_size=2"], "batch_size"),
        (["--devices=8", "--config.mesh.fsdp=3"], "mesh.fsdp=3"),
        (["--devices=8", "--kinds=parallel"], "parallel"),
        (["--devices=8", "surplus"], "surplus"),
    ],
)
def test_mistakes_end_with_a_message_of_one_line(arguments, message):
    done = launch(f"--config={TINY}", *arguments)
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert message in last
    assert last.startswith("error: ")
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_settings_are_searched_for_gpus_that_are_not_there():
    size = "--config.batch_size=16"
    done = launch(f"--config={TINY}", "--topology=h100:2", "--search=0", size, *ITC_ALONE)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "6/6: microbatches=2 model.remat=" in done.stdout
    assert "The best of 12 settings that fit" in done.stdout
    assert "--config.mesh.fsdp=2" in done.stdout


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is not None, reason="libtpu is installed")
def test_a_missing_libtpu_is_named():
    done = launch(f"--config={TINY}", "--topology=v5e:4x4")
    assert done.returncode != 0
    assert "needs the package libtpu" in done.stderr.strip().splitlines()[-1]


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
def test_a_step_on_tpus_that_are_not_there():
    done = launch(f"--config={TINY}", "--topology=v5e:2x4", "--config.mesh.fsdp=2")
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout
    assert "| devices | 8 x TPU v5 lite |" in done.stdout
    assert "15.75 GiB: fits" in done.stdout
    assert "A step takes at least" in done.stdout
