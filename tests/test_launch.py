"""The command line as a user meets it: it trains, and mistakes end in one line."""

import functools
import json
import os
import re
import runpy
import sys
import types
from unittest.mock import Mock

import pytest
from absl import app, flags

from rc3_jax.config import validate
from rc3_jax.observe.run_bench import STAGES
from rc3_jax.settings import ConfigError
from rc3_jax.stored_config import save_config
from tests import processes
from tests.tiny import ROOT, tiny_config

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
        (["--config=configs/rc3_base.py:root=/nowhere"], "/nowhere"),
        (["--config=configs/rc3_demo.py:batch=x"], "batch='x'"),
        (["--config=configs/nowhere.py"], "configs/nowhere.py"),
        (["--config=configs/rc3_demo.py", "--config.optimizer.lrr=1"], "optimizer.lr?"),
        (["--config=configs/rc3_demo.py", "--config.optimizer.learning_rate=1"], "optimizer.lr?"),
        (["--config=configs/rc3_demo.py", "--config.shares.strict=1"], "batch_mix"),
        (["--config=configs/rc3_demo.py", "--config.steps=many"], "'many'"),
        (["--config=configs/rc3_demo.py", "--config.batch_size=2"], "batch_size=2"),
        (
            ["--config=configs/rc3_demo.py", "--config.mesh.fsdp=3"],
            "mesh.fsdp=3",
        ),
        (["--config=configs/rc3_demo.py", "surplus"], "'surplus'"),
        (["--config=configs/cclm_demo.py", "--config.objective.step=both"], "objective.step"),
    ],
)
def test_mistakes_end_with_the_reason_in_one_line(tmp_path, arguments, message):
    done = launch(*arguments, f"--workdir={tmp_path}")
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert message in last
    assert last.startswith("error: ")
    assert "Traceback" not in done.stderr


@pytest.fixture
def error_of(tmp_path, monkeypatch):
    """What a program says of mistakes; "" if it comes to its work, which it does not do."""
    config = validate(tiny_config())
    save_config(config, tmp_path / "config.json")
    model = types.SimpleNamespace(task=None, tokenizer=Mock(), settings=config.model)
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setattr(app, "run", lambda main, flags_parser: main(flags_parser(sys.argv)))
    monkeypatch.setattr("rc3_jax.command_line.run_program", lambda work: work())
    monkeypatch.setattr("rc3_jax.runtime.simulate_devices", lambda count: None)
    monkeypatch.setattr("rc3_jax.training.load.load_model", lambda *_: model)
    for work in WORK:
        monkeypatch.setattr(f"rc3_jax.{work}", Mock(side_effect=StopIteration))

    def run(arguments):
        monkeypatch.setattr(sys, "argv", arguments.replace("RUN", str(tmp_path)).split())
        before = {*flags.FLAGS}
        try:
            runpy.run_path(f"launch/{sys.argv[0]}", run_name="__main__")
        except (ConfigError, SystemExit) as error:
            return str(error)
        except StopIteration:
            return ""
        finally:
            for flag in {*flags.FLAGS} - before:
                delattr(flags.FLAGS, flag)

    return run


WORK = ("training.pretrain.train", "tasks.suite.run_suite", "convert.tower_files.to_hf")
WORK += ("training.aot.abstract_run", "training.aot.topology_devices")
WORK += ("observe.run_bench.time_evaluation", "tasks.retrieval.retrieval_data")
DEMO, GPUS = "train.py --config=configs/rc3_demo.py", "--topology=h100:8 "
COMPILE = "compile.py --config=tests/compile_config.py "
RETRIEVAL = "bench_retrieval.py --from=RUN --images=1 --texts="
IGLUE = "iglue.py --from=RUN --data=miniature "


@pytest.mark.parametrize(
    ("wrong", "advice", "mended"),
    [
        ("train.py", r"a configuration: --config=(\S+)", "train.py --config={}"),
        ("train.py --resume", "folder: (.*)runs/demo", "train.py {}RUN"),
        ("train.py --resume --workdir=/none", "folder with (.*)", "train.py --resume {}=RUN"),
        (DEMO + " --config.name=", "name is empty", DEMO),
        (DEMO + ":bach=8", "one of: (.*?),", DEMO + ":{}"),
        ("train.py --config=configs/cclm_3m.py", "(--config=.*)/path/to/data", "train.py {}RUN"),
        (
            "train.py --config=configs/cclm_3m.py",
            "(configs/cclm_demo.py) needs",
            "train.py --config={}",
        ),
        (COMPILE, "name either (.*) or --devices=8", COMPILE + "{}"),
        (COMPILE, "name either .* or (.*)", COMPILE + "{}"),
        (COMPILE + "--devices=8 --search=1", "name (.*) or h100:8", COMPILE + "--search=1 {}"),
        (COMPILE + GPUS, "; (.*) estimates", COMPILE + GPUS + "{}"),
        (COMPILE + GPUS + "--search=0 --out=x", "leave them out", COMPILE + GPUS + "--search=0"),
        (COMPILE + "--topology=v9:4x4", "use one of .*, such as (.*)", COMPILE + "--topology={}"),
        (COMPILE + "--topology=h100:2x4", "such as (.*)", COMPILE + "--search=0 --topology={}"),
        (COMPILE + "--devices=8 --kinds=strong", "use (.*?),", COMPILE + "--devices=8 --kinds={}"),
        ("convert.py", "name one of .*?, (.*?),", "convert.py {} a b --part=text"),
        ("convert.py to-hf a b", "with (.*) or ", "convert.py to-hf a b {}"),
        ("convert.py to-hf a b", "or (.*)", "convert.py to-hf a b {}"),
        ("bench.py --size=demo", "measure, .*(eval) or", "bench.py {} --size=demo"),
        (RETRIEVAL + "99", r"have (\d+) captions; lower --texts", RETRIEVAL + "{}"),
        ("iglue.py --from=RUN", "tasks: (.*)/data/iglue", "iglue.py --from=RUN {}RUN"),
        ("iglue.py --data=miniature", "folder: (.*)runs", "iglue.py --data=miniature {}RUN"),
        (IGLUE + "--seeds=0,a", "a is no whole number", IGLUE + "--seeds=0,1"),
        (IGLUE + "--set=epochs", "write (.*)name=value", IGLUE + "{}epochs=2"),
    ],
)
def test_mistakes_are_mended_as_advised(error_of, wrong, advice, mended):
    found = re.search(advice, error_of(wrong))
    assert found and error_of(mended.format(*found.groups())) == ""


def test_help_shows_how_to_start(tmp_path):
    done = launch("--help")
    assert "python launch/train.py --config=configs/rc3_demo.py" in done.stdout
    assert "--workdir" in done.stdout


def test_losses_are_measured_on_simulated_devices():
    sizes = ["--batch=64", "--width=8", "--tile=16", "--losses=info_nce", "--transports=ring"]
    done = processes.launch("bench.py", "losses", "--devices=2", *sizes)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "2 cpu device(s)" in done.stdout
