"""The command line as a user meets it: every shipped config runs, mistakes end in one line."""

import gzip
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tests.data import cclm_lines
from tests.processes import FAST_COMPILATION, ROOT

TINY = """
from tests.tiny import load_config, {shrink}

def get_config(argument=""):
    return {shrink}(load_config({name!r}, argument))
"""


def launch(*arguments, timeout=300):
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": FAST_COMPILATION,
    }
    return subprocess.run(
        [sys.executable, str(ROOT / "launch" / "train.py"), *arguments],
        capture_output=True,
        text=True,
        env=environment,
        cwd=ROOT,
        timeout=timeout,
        check=False,
    )


@pytest.fixture
def pairs(tmp_path):
    """A folder as docs/data.md describes it: 24 pictures with boxes and captions."""
    root = tmp_path / "pairs"
    (root / "images").mkdir(parents=True)
    (root / "parallel").mkdir()
    records = []
    for i in range(24):
        pixels = np.random.default_rng(i).integers(0, 255, (40, 48, 3), np.uint8)
        Image.fromarray(pixels).save(root / "images" / f"{i}.png")
        records.append(
            {
                "id": str(i),
                "image": f"images/{i}.png",
                "split": "val" if i % 3 == 0 else "train",
                "translations": {"en": f"picture number {i}", "de": f"Bild Nummer {i}"},
                "captions": {"en": [f"noise {i}", "dots"], "cs": [f"šum {i}"]},
                "boxes_xywh": [[4, 4, 20, 20], [10, 12, 30, 20]],
            }
        )
    with gzip.open(root / "captions.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)
    for code, word in (("en", "sentence"), ("cs", "věta")):
        with gzip.open(root / "parallel" / f"train.{code}.gz", "wt", encoding="utf-8") as file:
            file.writelines(f"{word} {i}\n" for i in range(20))
    return root


def tiny_file(tmp_path, name):
    path = tmp_path / f"tiny_{name}.py"
    shrink = "shrink_cclm" if name.startswith("cclm") else "shrink"
    path.write_text(TINY.format(name=name, shrink=shrink))
    return path


def run_tiny(tmp_path, name, argument, *settings):
    config = f"--config={tiny_file(tmp_path, name)}{argument}"
    done = launch(config, f"--workdir={tmp_path / 'run'}", *settings)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "step 4/4" in done.stdout
    return json.loads((tmp_path / "run" / "scores.json").read_text())


def test_the_demo_config_runs(tmp_path):
    scores = run_tiny(tmp_path, "rc3_demo", "")
    assert set(scores["retrieval"]) == {"both", "patches", "regions"}


@pytest.mark.slow
def test_the_base_config_runs_on_a_folder_with_boxes(tmp_path, pairs):
    scores = run_tiny(tmp_path, "rc3_base", f":root={pairs}")
    assert set(scores["retrieval"]) == {"both", "patches", "regions"}
    assert set(scores["retrieval"]["both"]) == {"en", "de", "cs"}


@pytest.mark.slow
def test_the_flickr_config_runs_on_real_photographs(tmp_path, shared_data):
    root, parallel = shared_data / "flickr8k", shared_data / "parallel" / "multi30k"
    scores = run_tiny(tmp_path, "rc3_flickr", f":root={root},parallel={parallel}")
    assert set(scores["retrieval"]["patches"]) == {"en", "de", "fr", "cs", "zh", "ar"}


def test_the_cclm_demo_runs_on_scenes_with_regions(tmp_path):
    scores = run_tiny(tmp_path, "cclm_demo", ":regions=1")
    assert set(scores["retrieval"]) == {"patches"}
    assert set(scores["retrieval"]["patches"]) == {"cs", "de", "en", "fr", "ja", "zh"}


@pytest.mark.slow
def test_the_cclm_demo_runs_on_real_photographs(tmp_path, shared_data):
    root, parallel = shared_data / "flickr8k", shared_data / "parallel" / "multi30k"
    scores = run_tiny(tmp_path, "cclm_demo", f":root={root},parallel={parallel}")
    assert set(scores["retrieval"]["patches"]) == {"en", "de", "fr", "cs", "zh", "ar"}


@pytest.mark.slow
def test_a_published_recipe_runs_on_the_published_formats(tmp_path):
    root = tmp_path / "data"
    texts = [{"source_text": f"sentence {i}", "target_text": f"věta {i}"} for i in range(20)]
    lines = {
        "captions": [cclm_lines.captioned(red=i) for i in range(20)],
        "heldout": [cclm_lines.captioned(red=100 + i) for i in range(8)],
        "parallel": texts,
        "regions": [cclm_lines.regions(red=i) for i in range(20)],
    }
    for name, rows in lines.items():
        (root / name).mkdir(parents=True)
        cclm_lines.write(root / name / "part-0.jsonl", *rows)
    # Two updates a step, negatives of the same device and all else as published.
    published = (
        *("step=separate", "negatives=local", "negative_floor=1e-5", "group_positives=False"),
        "itc_grad_scale=0.125",
    )
    settings = [f"--config.objective.{setting}" for setting in published]
    scores = run_tiny(
        tmp_path,
        "cclm_4m",
        f":root={root},vocabulary=",
        *("--config.shares.captioned=2.0", "--config.shares.parallel=1.0"),
        "--config.shares.region=1.0",
        "--config.data.mask_eos=True",
        *settings,
    )
    assert set(scores["retrieval"]["patches"]) == {"en", "de"}
    metrics = [json.loads(x) for x in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert {"itc", "ttm", "region_mlm", "giou"} <= metrics[-1].keys()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config=configs/rc3_base.py"], "has no data root; name its folder"),
        (["--config=configs/rc3_base.py:root=/nowhere"], "/nowhere: no such folder"),
        (["--config=configs/rc3_demo.py:bach=8"], "use name=value with one of: steps"),
        (["--config=configs/rc3_demo.py:batch=x"], "config argument batch='x' is no int"),
        (["--config=configs/nowhere.py"], "No such file or directory: 'configs/nowhere.py'"),
        (["--config=configs/rc3_demo.py", "--config.optimizer.lrr=1"], 'Did you mean "lr"'),
        (["--config=configs/rc3_demo.py", "--config.steps=many"], "'many'"),
        (["--config=configs/rc3_demo.py", "--config.batch_size=2"], "leaves no row to parallel"),
        (
            ["--config=configs/rc3_demo.py", "--config.mesh.fsdp=3"],
            "mesh.fsdp=3 x mesh.tensor=1 does not give",
        ),
        (["--config=configs/rc3_demo.py", "surplus"], "'surplus' is not understood"),
        (["--config=configs/cclm_4m.py"], "cclm_4m trains on data of your own"),
        (["--config=configs/cclm_demo.py", "--config.objective.step=both"], "use one of summed"),
        ([], "name a configuration"),
    ],
)
def test_mistakes_end_with_the_reason_in_one_line(tmp_path, arguments, message):
    done = launch(*arguments, f"--workdir={tmp_path}")
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert message in last
    assert last.startswith("error: ")
    assert "Traceback" not in done.stderr


def test_help_shows_how_to_start(tmp_path):
    done = launch("--help")
    assert "python launch/train.py --config=configs/rc3_demo.py" in done.stdout
    assert "--workdir" in done.stdout
