"""The command line as a user meets it: it trains, and mistakes end in one line."""

import functools
import json

import pytest

from rc3_jax.observe.run_bench import STAGES
from tests import processes

launch = functools.partial(processes.launch, "train.py")


def test_a_run_from_the_command_line(tmp_path):
    done = launch("--config=tests/tiny_run.py:rc3_demo", f"--workdir={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "step 4/4" in done.stdout
    places = [done.stdout.index(line) for line in STAGES.values()]
    assert places == sorted(places)
    scores = json.loads((tmp_path / "run" / "scores.json").read_text())
    assert set(scores["retrieval"]) == {"both", "patches", "regions"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config=configs/rc3_base.py"], "root"),
        (["--config=configs/rc3_base.py:root=/nowhere"], "/nowhere"),
        (["--config=configs/rc3_demo.py:bach=8"], "bach"),
        (["--config=configs/rc3_demo.py:batch=x"], "batch='x'"),
        (["--config=configs/nowhere.py"], "configs/nowhere.py"),
        (["--config=configs/rc3_demo.py", "--config.optimizer.lrr=1"], "optimizer.lr?"),
        (["--config=configs/rc3_demo.py", "--config.optimizer.learning_rate=1"], "optimizer.lr?"),
        (["--config=configs/rc3_demo.py", "--config.shares.strict=1"], "batch_mix"),
        (["--resume"], "--workdir"),
        (["--config=configs/rc3_demo.py", "--config.steps=many"], "'many'"),
        (["--config=configs/rc3_demo.py", "--config.batch_size=2"], "batch_size=2"),
        (
            ["--config=configs/rc3_demo.py", "--config.mesh.fsdp=3"],
            "mesh.fsdp=3",
        ),
        (["--config=configs/rc3_demo.py", "surplus"], "'surplus'"),
        (["--config=configs/cclm_4m.py"], "cclm_4m"),
        (["--config=configs/cclm_demo.py", "--config.objective.step=both"], "objective.step"),
        ([], "--config"),
    ],
)
def test_mistakes_end_with_the_reason_in_one_line(tmp_path, arguments, message):
    folder = [] if "--resume" in arguments else [f"--workdir={tmp_path}"]
    done = launch(*arguments, *folder)
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert message in last
    assert last.startswith("error: ")
    assert "Traceback" not in done.stderr


def test_help_shows_how_to_start(tmp_path):
    done = launch("--help")
    assert "python launch/train.py --config=configs/rc3_demo.py" in done.stdout
    assert "--workdir" in done.stdout


def test_losses_are_measured_on_simulated_devices():
    sizes = ["--batch=64", "--width=8", "--tile=16", "--losses=info_nce", "--transports=ring"]
    done = processes.launch("bench.py", "losses", "--devices=2", *sizes)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "2 cpu device(s)" in done.stdout


def test_a_benchmark_without_a_command_names_those_there_are():
    done = processes.launch("bench.py", "--size=demo")
    assert done.returncode == 1 and "step or losses or" in done.stderr
