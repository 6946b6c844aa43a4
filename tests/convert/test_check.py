"""The same inputs through two models: equal ones, and one that differs in a single layer."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from rc3_jax.config import ConfigError
from rc3_jax.convert.check import check, largest_of
from rc3_jax.convert.torch_export import to_torch
from rc3_jax.convert.tower_files import from_hf, to_hf
from tests.convert.exported import tiny_folder
from tests.processes import FAST_COMPILATION, ROOT
from tests.vision_reference import require

ENDS = ["image_vector", "text_vector", "fused_vector", "matching_logits", "word_logits"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A model of ours, and its export, which PyTorch computes."""
    require("torch")
    folder = tmp_path_factory.mktemp("check")
    tiny_folder(folder / "run")
    to_torch(folder / "run", folder / "exported")
    return folder / "run", folder / "exported"


def test_an_export_computes_the_same_in_every_layer(folders):
    differences = check(*folders)
    layers = [f"text.encoder.layers.{i}" for i in range(2)] + ["text"]
    layers += [f"patch.encoder.layers.{i}" for i in range(2)] + ["patch", "roi", "fusion.layers.0"]
    names = [item.name for item in differences]
    assert set(layers) | set(ENDS) | {"roi.encoder.layers.0"} == set(names)
    assert names[-5:] == ENDS
    assert all(0 < item.largest < 100 for item in differences)
    assert max(item.relative for item in differences) < 1e-5


def test_the_first_layer_that_differs_is_seen(folders, tmp_path):
    run, exported = folders
    tensors = load_file(exported / "model.safetensors")
    tensors["text.encoder.layers.1.mlp_out.bias"][0] += 0.5
    (tmp_path / "changed").mkdir()
    for path in exported.iterdir():
        if path.suffix != ".safetensors":
            (tmp_path / "changed" / path.name).write_bytes(path.read_bytes())
    save_file(tensors, tmp_path / "changed" / "model.safetensors", metadata={"format": "pt"})
    found = {item.name: item.relative for item in check(run, tmp_path / "changed")}
    same = [name for name in found if name.startswith(("patch", "roi"))]
    same += ["text.encoder.layers.0", "image_vector"]
    assert all(found[name] < 1e-5 for name in same)
    others = ["text.encoder.layers.1", "text", "fusion.layers.0", "text_vector", "fused_vector"]
    assert all(found[name] > 1e-3 for name in others)


def test_two_models_of_ours(folders, tmp_path):
    tiny_folder(tmp_path / "other", seed=1)
    assert all(item.difference == 0 for item in check(folders[0], folders[0]))
    assert all(item.difference > 0 for item in check(folders[0], tmp_path / "other"))
    tiny_folder(tmp_path / "narrow", image_mean=(0.1, 0.2, 0.3))
    with pytest.raises(ConfigError, match=r"same inputs: image_mean \(0.5, 0.5, 0.5\) and \(0.1"):
        check(folders[0], tmp_path / "narrow")


def test_each_model_computes_with_its_own_settings(folders, tmp_path):
    for name, change in (("heads", {"heads": 1}), ("depth", {"depth": 1})):
        shutil.copytree(folders[0], tmp_path / name)
        settings = json.loads((tmp_path / name / "config.json").read_text())
        settings["model"]["text"] |= change
        (tmp_path / name / "config.json").write_text(json.dumps(settings))
    found = {item.name: item.relative for item in check(folders[0], tmp_path / "heads")}
    assert found["text"] > 1e-4 and found["patch"] == 0
    with pytest.raises(ConfigError, match="mis-shaped: text/encoder/layers/mlp_in/bias"):
        check(folders[0], tmp_path / "depth")


def test_not_a_number_is_the_largest_difference(folders, tmp_path):
    shutil.copytree(folders[1], tmp_path / "broken")
    tensors = load_file(tmp_path / "broken" / "model.safetensors")
    tensors["word_bias"][0] = np.nan
    save_file(tensors, tmp_path / "broken" / "model.safetensors", metadata={"format": "pt"})
    worst = largest_of(check(folders[0], tmp_path / "broken"))
    assert worst.name == "word_logits" and math.isnan(worst.relative)


def test_towers_alone_are_compared(folders, tmp_path):
    run = folders[0]
    for part in ("text", "patch"):
        to_hf(run, tmp_path / f"{part}_hf", part=part)
        from_hf(tmp_path / part, **{part: str(tmp_path / f"{part}_hf")})
        for other in (run, tmp_path / f"{part}_hf"):
            found = check(tmp_path / part, other, step=None)
            assert {item.name.split(".")[0] for item in found} == {part}
            assert len(found) == 3 and largest_of(found).relative < 1e-5
    with pytest.raises(ConfigError, match="takes images of 32 pixels a side"):
        check(tmp_path / "text", tmp_path / "patch_hf")


def test_a_step_counts_for_runs_alone(folders):
    assert largest_of(check(*folders, step=3)).relative < 1e-5


def test_folders_that_are_no_models(folders, tmp_path):
    with pytest.raises(ConfigError, match=r"config.json cannot be read as settings of a model"):
        check(folders[0], tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ConfigError, match="is of model_type 'bert'; one of"):
        check(folders[0], tmp_path)
    with pytest.raises(ConfigError, match="neither folder is of RC³"):
        check(tmp_path, tmp_path)
    for content in ("[" * 100_000, "[]", '{"system": "rc3", "model": []}'):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(ConfigError, match="cannot be read as settings of a model"):
            check(folders[0], tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"system": "cclm"}))
    with pytest.raises(ConfigError, match="is of cclm"):
        check(tmp_path, folders[0])


def test_a_hugging_face_tower_is_compared_layer_by_layer(folders, tmp_path):
    run, _ = folders
    for part, last in (("text", "text"), ("patch", "patch")):
        to_hf(run, tmp_path / part, part=part)
        found = check(run, tmp_path / part)
        assert [item.name for item in found][-1] == last
        assert len(found) == 3
        assert max(item.relative for item in found) < 1e-5
    with pytest.raises(ConfigError, match="neither folder"):
        check(tmp_path / "text", tmp_path / "patch")


def test_the_command_prints_a_table_and_fails_beyond_the_tolerance(folders, tmp_path):
    def launch(*arguments):
        environment = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": FAST_COMPILATION}
        command = [sys.executable, str(ROOT / "launch" / "convert.py"), "check"]
        return subprocess.run(
            [*command, *map(str, folders), *arguments],
            capture_output=True,
            text=True,
            env=environment,
            timeout=300,
            check=False,
        )

    done = launch()
    assert done.returncode == 0, done.stderr[-3000:]
    assert "text.encoder.layers.1" in done.stdout
    assert "largest relative difference" in done.stdout
    done = launch("--tolerance=1e-12", "--seed=1")
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("error: largest relative difference")
