"""The same inputs through two models: equal ones, and one that differs in a single layer."""

from __future__ import annotations

import json
import math
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from rc3_jax.convert.check import check, largest_of, table_of
from rc3_jax.convert.tower_files import from_hf, to_hf
from rc3_jax.settings import ConfigError
from tests.convert.exported import export_tiny, tiny_folder, tiny_settings
from tests.convert.test_torch_model import SWIN
from tests.vision_reference import require

require("torch")
ENDS = ["image_vector", "text_vector", "fused_vector", "matching_logits", "word_logits"]
WEIGHTS = "model.safetensors"


def changed(folder, target, **changes):
    """A copy of an exported folder whose tensors are changed; returns it."""
    shutil.copytree(folder, target)
    tensors = load_file(target / WEIGHTS)
    for name, value in changes.items():
        tensors[name.replace("__", ".")][0] = value
    save_file(tensors, target / WEIGHTS, metadata={"format": "pt"})
    return target


def test_an_export_computes_the_same_in_every_layer(exported):
    differences = check(exported.run, exported.folder)
    layers = {"text.layers.0", "text.layers.1", "text", "roi.layers.0", "roi", "fusion.layers.0"}
    layers |= {"patch.layers.0", "patch.layers.1", "patch"}
    assert {item.name for item in differences} == layers | set(ENDS)
    assert all(0 < item.largest < 100 for item in differences)
    assert max(item.relative for item in differences) < 1e-5
    assert table_of(differences).row_count == len(differences)


def test_stages_of_swin_are_compared(tmp_path):
    swin = export_tiny(tmp_path, tiny_settings(patch=SWIN))
    found = {item.name: item.relative for item in check(swin.run, swin.folder)}
    assert {"patch.stage_0.block_0", "patch.stage_1.block_1", "patch"} < found.keys()
    assert max(found.values()) < 1e-5


def test_the_first_layer_that_differs_is_seen(exported, tmp_path):
    bias = {"text__encoder__layer__1__output__dense__bias": 0.5}
    other = changed(exported.folder, tmp_path / "changed", **bias)
    found = {item.name: item.relative for item in check(exported.run, other)}
    same = [name for name in found if name.startswith(("patch", "roi"))]
    assert all(found[name] < 1e-5 for name in [*same, "text.layers.0", "image_vector"])
    others = ["text.layers.1", "text", "fusion.layers.0", "text_vector", "fused_vector"]
    assert all(found[name] > 1e-3 for name in others)
    broken = changed(exported.folder, tmp_path / "broken", word_bias=np.nan)
    worst = largest_of(check(exported.run, broken, step=3))  # a step counts for runs alone
    assert worst.name == "word_logits" and math.isnan(worst.relative)


def test_two_models_of_ours(exported, tmp_path):
    tiny_folder(tmp_path / "other", seed=1)
    assert all(item.difference == 0 for item in check(exported.run, exported.run))
    assert all(item.difference > 0 for item in check(exported.run, tmp_path / "other"))
    tiny_folder(tmp_path / "mean", tiny_settings(image_mean=(0.1, 0.2, 0.3)))
    with pytest.raises(ConfigError, match="image_mean"):
        check(exported.run, tmp_path / "mean")


def test_each_model_computes_with_its_own_settings(exported, tmp_path):
    for name, value in (("heads", 1), ("depth", 1)):
        shutil.copytree(exported.run, tmp_path / name)
        settings = json.loads((tmp_path / name / "config.json").read_text())
        settings["model"]["text"][name] = value
        (tmp_path / name / "config.json").write_text(json.dumps(settings))
    found = {item.name: item.relative for item in check(exported.run, tmp_path / "heads")}
    assert found["text"] > 1e-4 and found["patch"] == 0
    with pytest.raises(ConfigError, match="text/encoder/layers/mlp_in/bias"):
        check(exported.run, tmp_path / "depth")


@pytest.mark.parametrize("part", ["text", "patch"])
def test_towers_alone_are_compared(exported, tmp_path, part):
    to_hf(exported.run, tmp_path / "hf", part=part)
    from_hf(tmp_path / "ours", **{part: str(tmp_path / "hf")})
    for first, second in (("run", "hf"), ("run", "ours"), ("ours", "hf"), ("hf", "hf")):
        folders = [exported.run if name == "run" else tmp_path / name for name in (first, second)]
        found = check(*folders)
        assert {item.name for item in found} == {f"{part}.layers.0", f"{part}.layers.1", part}
        assert largest_of(found).relative < 1e-5


def test_folders_that_are_no_models(exported, tmp_path):
    with pytest.raises(ConfigError, match=f"{tmp_path}/config.json"):
        check(exported.run, tmp_path)
    for content in (
        '{"model_type": "bert"}',
        "[" * 100_000,
        "[]",
        '{"system": "rc3", "model": []}',
        '{"system": "rc3", "model": {"text": 3}}',
        '{"system": "cclm"}',
    ):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(ConfigError, match=str(tmp_path)):
            check(exported.run, tmp_path)
