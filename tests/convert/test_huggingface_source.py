"""Folders of Hugging Face models: shards, hub names, sentence encoders, pixels' normalisation."""

from __future__ import annotations

import json
import math
import pathlib

import huggingface_hub
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from rc3_jax.config import ConfigError
from rc3_jax.convert.huggingface_source import image_normalisation, locate, sentence_encoder
from rc3_jax.convert.torch_file import TensorFileError, TensorFolder, read_tensors, write_tensors
from tests.vision_reference import require

NAME = "FacebookAI/xlm-roberta-base"
ONES = np.ones(2, np.float32)
INDEX = "model.safetensors.index.json"


def _shards(folder: pathlib.Path, weight_map: object = None) -> pathlib.Path:
    save_file({"a": ONES}, folder / "one.safetensors")
    save_file({"b": 2 * ONES}, folder / "two.safetensors")
    names = {"a": "one.safetensors", "b": "two.safetensors"} if weight_map is None else weight_map
    (folder / INDEX).write_text(json.dumps({"weight_map": names}))
    return folder


def test_shards_are_one(tmp_path):
    found = TensorFolder(_shards(tmp_path))
    assert found.shapes() == {"a": (2,), "b": (2,)}
    np.testing.assert_array_equal(found.read("b"), 2 * ONES)


@pytest.mark.parametrize(
    "weight_map, message",
    [
        ({}, "has no weight_map"),
        ([1], "has no weight_map"),
        ({"a": "three.safetensors"}, "names three.safetensors, which is missing"),
        ({"a": "../one.safetensors"}, "'../one.safetensors' is no name of a .safetensors file"),
        ({"a": "/etc/one.safetensors"}, "is no name of a .safetensors file beside it"),
        ({"a": "..\\one.safetensors"}, "is no name of a .safetensors file beside it"),
        ({"a": "one.bin"}, "'one.bin' is no name of a .safetensors file"),
        ({"a": 3}, "'3' is no name of a .safetensors file"),
    ],
)
def test_a_broken_index_is_refused(tmp_path, weight_map, message):
    with pytest.raises(TensorFileError, match=message):
        TensorFolder(_shards(tmp_path, weight_map))


def test_a_tensor_of_two_shards_is_refused(tmp_path):
    save_file({"a": ONES}, _shards(tmp_path) / "two.safetensors")
    with pytest.raises(TensorFileError, match="two.safetensors: a is in another shard already"):
        TensorFolder(tmp_path)


def test_types_of_numbers(tmp_path):
    given = {"a": ONES.astype(ml_dtypes.bfloat16), "b": ONES.astype(np.float16), "c": np.arange(3)}
    save_file(
        given | {"d": np.array(3.0), "e": np.ones((0, 2), bool)}, tmp_path / "model.safetensors"
    )
    found = read_tensors(tmp_path / "model.safetensors")
    types = {name: str(x.dtype) for name, x in found.items()}
    assert types == dict(a="float32", b="float16", c="int64", d="float64", e="bool")
    assert found["d"].shape == () and found["e"].shape == (0, 2)
    folder = TensorFolder(tmp_path)
    assert folder.tensors["a"].dtype == ml_dtypes.bfloat16 and folder.read("a").dtype == np.float32
    save_file({"a": ONES.astype(ml_dtypes.float8_e4m3fn)}, tmp_path / "model.safetensors")
    with pytest.raises(TensorFileError, match="of types that are not read: .*F8"):
        TensorFolder(tmp_path)


def test_broken_and_missing_files_are_refused(tmp_path):
    with pytest.raises(TensorFileError, match="holds neither model.safetensors nor"):
        TensorFolder(tmp_path)
    (tmp_path / INDEX).write_text("{")
    with pytest.raises(TensorFileError, match="cannot be read as JSON"):
        TensorFolder(tmp_path)
    save_file({"a": ONES}, tmp_path / "model.safetensors")
    content = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(content[:-1])
    with pytest.raises(TensorFileError, match="cannot be read as a safetensors file"):
        TensorFolder(tmp_path)


def test_pickles_need_permission(tmp_path):
    require("torch")
    write_tensors(tmp_path / "pytorch_model.bin", {"a": ONES})
    with pytest.raises(
        TensorFileError, match="holds pickled tensors alone .* or give --allow_pickle"
    ):
        TensorFolder(tmp_path)
    np.testing.assert_array_equal(TensorFolder(tmp_path, allow_pickle=True).read("a"), ONES)
    save_file({"a": 3 * ONES}, tmp_path / "model.safetensors")
    np.testing.assert_array_equal(TensorFolder(tmp_path, allow_pickle=True).read("a"), 3 * ONES)


def test_paths_are_taken_as_they_are(tmp_path, monkeypatch):
    assert locate(tmp_path) == tmp_path
    monkeypatch.chdir(tmp_path)
    (tmp_path / "name").mkdir()
    assert locate("name") == pathlib.Path("name")
    for missing in ("a/b/c", "/no/folder", "../a", "beit.pth", "a b"):
        with pytest.raises(ConfigError, match="no such file or folder, and no name"):
            locate(missing)


@pytest.mark.parametrize("allow_pickle", [True, False])
def test_names_are_looked_up_on_the_hub(tmp_path, monkeypatch, allow_pickle):
    asked = {}

    def download(name, **options):
        asked.update(options, name=name)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert locate(NAME, allow_pickle) == tmp_path
    assert asked["name"] == NAME and "*.safetensors" in asked["allow_patterns"]
    assert any("bin" in pattern for pattern in asked["allow_patterns"]) == allow_pickle


@pytest.mark.parametrize("error", [OSError("no route\nto it"), ValueError("bad name")])
def test_without_the_hub_the_remedy_is_told(monkeypatch, error):
    def download(name, **options):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(ConfigError, match=f"{NAME} is no local folder.*name a folder") as caught:
        locate(NAME)
    assert "to it" not in str(caught.value)


TRANSFORMER = {
    "idx": 0,
    "name": "0",
    "path": "",
    "type": "sentence_transformers.models.Transformer",
}
POOLING = {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}
NORMALIZE = {"path": "2_Normalize", "type": "sentence_transformers.models.Normalize"}
DENSE = {"path": "2_Dense", "type": "sentence_transformers.models.Dense"}
MEAN = {"word_embedding_dimension": 4, "pooling_mode_mean_tokens": True}


def _encoder(folder: pathlib.Path, modules: object, pooling: object = None) -> pathlib.Path:
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling or MEAN))
    return folder


@pytest.mark.parametrize(
    "pooling, expected",
    [
        (MEAN, "mean"),
        (dict(pooling_mode_cls_token=True, pooling_mode_mean_tokens=False), "cls"),
        (dict(pooling_mode="cls"), "cls"),
        (dict(pooling_mode=["mean"]), "mean"),
    ],
)
@pytest.mark.parametrize("place", ["", "0_Transformer"])
def test_sentence_encoders(tmp_path, pooling, expected, place):
    modules = [TRANSFORMER | dict(path=place), POOLING, NORMALIZE]
    folder = _encoder(tmp_path, modules, pooling)
    assert sentence_encoder(folder) == (folder / place, expected)


def test_other_folders_are_transformers(tmp_path):
    assert sentence_encoder(tmp_path) == (tmp_path, None)


@pytest.mark.parametrize(
    "modules, pooling, message",
    [
        ([TRANSFORMER, POOLING, DENSE], None, "has the module .*Dense, which no tower computes"),
        ([TRANSFORMER], None, "must name a Transformer, and a Pooling after it"),
        ([POOLING, TRANSFORMER], None, "has the module .*Pooling"),
        ([TRANSFORMER, POOLING, POOLING], None, "has the module .*Pooling"),
        ([TRANSFORMER | dict(path="../a"), POOLING], None, "'../a' leads out of the folder"),
        ([TRANSFORMER | dict(path="/a"), POOLING], None, "'/a' leads out of the folder"),
        ([{"path": ""}], None, "must list modules with a type and a path"),
        ({"a": 1}, None, "must list modules with a type and a path"),
        (3, None, "must list modules with a type and a path"),
        ([TRANSFORMER, POOLING], dict(pooling_mode_max_tokens=True), "the pooling is max;"),
        ([TRANSFORMER, POOLING], MEAN | dict(pooling_mode_cls_token=True), "is mean and cls;"),
        ([TRANSFORMER, POOLING], dict(dim=3), "the pooling is missing;"),
        ([TRANSFORMER, POOLING], dict(pooling_mode="lasttoken"), "the pooling is lasttoken;"),
    ],
)
def test_other_encoders_are_refused(tmp_path, modules, pooling, message):
    with pytest.raises(ConfigError, match=message):
        sentence_encoder(_encoder(tmp_path, modules, pooling))


@pytest.mark.parametrize(
    "file, settings, expected",
    [
        (
            "preprocessor_config.json",
            dict(image_mean=[0.1, 0.2, 1]),
            dict(image_mean=(0.1, 0.2, 1)),
        ),
        ("preprocessor_config.json", dict(size=3), {}),
        (
            "preprocessor_config.json",
            dict(do_normalize=False, image_mean=[3, 3, 3]),
            dict(image_mean=(0.0,) * 3, image_std=(1.0,) * 3),
        ),
        (
            "processor_config.json",
            dict(image_processor=dict(image_std=[0.5, 0.5, 0.5])),
            dict(image_std=(0.5, 0.5, 0.5)),
        ),
        ("processor_config.json", dict(image_processor=3), {}),
        ("other.json", dict(image_mean=3), {}),
    ],
)
def test_normalisation_of_pixels(tmp_path, file, settings, expected):
    (tmp_path / file).write_text(json.dumps(settings))
    assert image_normalisation(tmp_path) == expected


@pytest.mark.parametrize(
    "values", [[1, 2], "abc", [1, 2, "3"], [1, 2, math.nan], [1, 2, 10**400], None]
)
def test_wrong_normalisation_is_refused(tmp_path, values):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(dict(image_mean=values)))
    with pytest.raises(ConfigError, match="must be three numbers"):
        image_normalisation(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(dict(image_std=[1, 0, 1])))
    with pytest.raises(ConfigError, match="must be above 0"):
        image_normalisation(tmp_path)
