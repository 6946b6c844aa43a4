"""What a run does beside its steps, timed: the stages, in their order, and their figures."""

import json

import pytest

from rc3_jax.observe.run_bench import STAGES, time_evaluation, time_starts
from rc3_jax.settings import ConfigError
from tests import processes
from tests.tiny import tiny_config

PROGRAM = """
import os, sys, time
print("tuned", flush=True)
print("demo: 7 parameters, vocabulary 3", file=sys.stderr, flush=True)
assert "JAX_COMPILATION_CACHE_DIR" not in os.environ and "--config.log_every=1" in sys.argv
found = os.path.join(os.environ["XDG_CACHE_HOME"], "found")
print("compiling the step", os.path.isdir(found), "compiled the step in 1 s", sep="\\n", flush=True)
os.makedirs(found, exist_ok=True)
print("step 1/4", flush=True)
time.sleep(600)
"""


def check(times):
    assert 0 < times["least"] <= times["seconds"] <= times["most"]


def test_a_start_is_timed_up_to_its_first_step(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    results = time_starts([str(program)])
    assert [result["cache"] for result in results] == ["empty", "warm"]
    for result in results:
        assert list(result["stages"]) == list(STAGES)
        seconds = [stage["seconds"] for stage in result["stages"].values()]
        assert 0 < seconds[0] and seconds == sorted(seconds)


def test_a_program_that_ends_before_its_first_step_is_quoted(tmp_path):
    program = tmp_path / "program.py"
    program.write_text("import sys; print('compiling the step'); sys.exit('error: a reason')")
    with pytest.raises(ConfigError, match="^a reason$"):
        time_starts([str(program)])


def test_held_out_images_and_all_their_texts_are_encoded_and_ranked():
    config = tiny_config()
    held = config.evaluation.to_dict()
    config.evaluation.update(images=0, dependence_rows=0)
    with pytest.raises(ConfigError, match=r"raise evaluation\.images, or"):
        time_evaluation(config, 1)
    config.evaluation.update(held)
    found = time_evaluation(config, 2)
    assert found["images"] == config.evaluation.images and found["texts"] > found["images"]
    counts = dict(zip(("read images", "encode images"), 2 * [found["images"]], strict=True))
    counts |= {"encode texts": found["texts"], "rank pairs": found["images"] * found["texts"]}
    assert list(found["stages"]) == list(counts)
    for name, times in found["stages"].items():
        check(times)
        assert times["a_second"] == pytest.approx(counts[name] / times["seconds"])


@pytest.mark.slow
def test_a_state_is_saved_and_restored_and_told_as_json():
    tiny = "--config=tests/tiny_run.py:rc3_demo"
    done = processes.launch("bench.py", "checkpoint", tiny, "--rounds=2", "--json")
    assert done.returncode == 0, done.stderr[-3000:]
    (found,) = json.loads(done.stdout)
    assert found["name"] == "rc3_demo" and found["files_mib"] > 0 and found["state_mib"] > 0
    assert list(found["stages"]) == ["save blocks", "saved", "restored"]
    for times in found["stages"].values():
        check(times)
    assert found["stages"]["save blocks"]["least"] <= found["stages"]["saved"]["least"]
