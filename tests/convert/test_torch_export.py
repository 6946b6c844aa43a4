"""Folders for PyTorch: written, loaded, trained on, and read back."""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys

import jax
import ml_dtypes
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from PIL import Image
from safetensors.numpy import load_file, save_file

from rc3_jax.convert import torch_export
from rc3_jax.convert.output import check_tokenizer
from rc3_jax.convert.torch_export import from_torch, to_torch
from rc3_jax.convert.torch_file import TensorFileError
from rc3_jax.data.tokenizer import train_tokenizer
from rc3_jax.models.rc3 import build_rc3
from rc3_jax.settings import ConfigError
from rc3_jax.training.checkpoint import read_params, stored_shapes
from rc3_jax.training.load import load_model
from tests.convert import spread_params
from tests.convert.exported import MAX_LENGTH, random_inputs
from tests.processes import run_python
from tests.vision_reference import require

WEIGHTS = "model.safetensors"


@pytest.fixture
def folder(exported, tmp_path):
    """A copy of the exported folder, to be changed."""
    return shutil.copytree(exported.folder, tmp_path / "exported")


@pytest.fixture
def run(exported, tmp_path):
    """A copy of the run's folder, to be changed."""
    return shutil.copytree(exported.run, tmp_path / "run")


def change(file, **settings):
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


def assert_same(folder, params):
    found = read_params(folder, list(stored_shapes(folder)))
    expected = flatten_dict(params, sep="/")
    assert found.keys() == expected.keys()
    for path, array in expected.items():
        np.testing.assert_array_equal(found[path], array, strict=True)


def assert_tensors_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        np.testing.assert_array_equal(found[name], tensor, strict=True)


def test_there_and_back_is_bit_equal(exported, tmp_path):
    from_torch(exported.folder, tmp_path / "back")
    assert_same(tmp_path / "back", exported.params)
    settings = json.loads((tmp_path / "back" / "config.json").read_text())
    model = json.loads((exported.run / "config.json").read_text())["model"]
    assert (settings["system"], settings["model"]) == ("rc3", model)
    assert settings["max_length"] == MAX_LENGTH
    vocabularies = [folder / "tokenizer.json" for folder in (tmp_path / "back", exported.run)]
    assert vocabularies[0].read_text() == vocabularies[1].read_text()
    to_torch(tmp_path / "back", tmp_path / "again")
    assert_tensors_equal(
        load_file(tmp_path / "again" / WEIGHTS), load_file(exported.folder / WEIGHTS)
    )


def test_shards_hold_the_same_tensors(exported, tmp_path):
    to_torch(exported.run, tmp_path / "shards", shard_bytes=20_000)
    files = sorted(path.name for path in (tmp_path / "shards").glob("*.safetensors"))
    assert files[0] == f"model-00001-of-{len(files):05}.safetensors" and len(files) > 2
    index = json.loads((tmp_path / "shards" / "model.safetensors.index.json").read_text())
    whole, found = load_file(exported.folder / WEIGHTS), {}
    assert index["metadata"]["total_size"] == sum(x.nbytes for x in whole.values())
    for name in files:
        tensors = load_file(tmp_path / "shards" / name)
        assert sum(x.nbytes for x in tensors.values()) <= 20_000 or len(tensors) == 1
        assert all(index["weight_map"][tensor] == name for tensor in tensors)
        found |= tensors
    assert_tensors_equal(found, whole)
    from_torch(tmp_path / "shards", tmp_path / "back")
    assert_same(tmp_path / "back", exported.params)


def test_bfloat16_rounds_each_number(exported, tmp_path):
    to_torch(exported.run, tmp_path / "half", dtype="bfloat16")
    whole = load_file(exported.folder / WEIGHTS)
    expected = {name: tensor.astype(ml_dtypes.bfloat16) for name, tensor in whole.items()}
    assert_tensors_equal(load_file(tmp_path / "half" / WEIGHTS), expected)
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == "bfloat16"
    from_torch(tmp_path / "half", tmp_path / "back")
    rounded = jax.tree.map(
        lambda x: x.astype(ml_dtypes.bfloat16).astype(np.float32), exported.params
    )
    assert_same(tmp_path / "back", rounded)


def test_changes_by_pytorch_return_and_the_rest_is_bit_equal(exported, tmp_path):
    torch, transformers = require("torch"), require("transformers")
    model = transformers.AutoModel.from_pretrained(exported.folder, trust_remote_code=True)
    with torch.no_grad():
        model.fusion.layers[0].mlp_in.weight[3, 5] += 1
        model.text.encoder.layer[1].output.dense.weight[3, 5] += 1
    model.save_pretrained(tmp_path / "tuned")
    from_torch(tmp_path / "tuned", tmp_path / "back")
    expected = jax.tree.map(np.array, exported.params)
    expected["fusion"]["layers"]["mlp_in"]["kernel"][0, 5, 3] += 1
    expected["text"]["encoder"]["layers"]["mlp_out"]["kernel"][1, 5, 3] += 1
    assert_same(tmp_path / "back", expected)


def test_tensors_that_do_not_fit_are_listed(folder, tmp_path):
    tensors = load_file(folder / WEIGHTS)
    del tensors["text.embeddings.LayerNorm.bias"], tensors["fusion.layers.0.mlp_in.bias"]
    tensors["matching_head.logits.bias"] = np.zeros(3, np.float32)
    tensors["classifier.weight"] = np.zeros((2, 2), np.float32)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=str(folder)) as error:
        from_torch(folder, tmp_path / "back")
    for line in (
        "4 problems",
        "missing: text.embeddings.LayerNorm.bias (16,)",
        "missing: fusion.layers.0.mlp_in.bias (32,)",
        "mis-shaped: matching_head.logits.bias is (3,), must be (2,)",
        "extra: classifier.weight (2, 2)",
    ):
        assert line in str(error.value)
    tensors["matching_head.logits.bias"] = np.zeros(2, np.int8)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(TensorFileError, match="matching_head.logits.bias holds int8"):
        from_torch(folder, tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_pickled_weights_need_permission(exported, folder, tmp_path):
    torch = require("torch")
    tensors = {k: torch.from_numpy(v) for k, v in load_file(folder / WEIGHTS).items()}
    (folder / WEIGHTS).unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    with pytest.raises(TensorFileError, match="pytorch_model.bin"):
        from_torch(folder, tmp_path / "back")
    from_torch(folder, tmp_path / "back", allow_pickle=True)
    assert_same(tmp_path / "back", exported.params)


def test_cleaning_of_captions_survives(run, tmp_path):
    data = json.loads((run / "config.json").read_text())["data"]
    change(run / "config.json", data=data | {"clean_captions": True, "max_words": 7})
    to_torch(run, tmp_path / "out")
    from_torch(tmp_path / "out", tmp_path / "back")
    to_torch(tmp_path / "back", tmp_path / "again")
    processor = json.loads((tmp_path / "again" / "processor_config.json").read_text())
    assert processor["max_words"] == 7


def test_settings_of_an_exported_folder_that_cannot_be_read(folder, tmp_path):
    model = json.loads((folder / "config.json").read_text())["model"]
    deep = model | {"fusion": {"depth": 10**9}}
    for settings, named in (
        (dict(model_type="bert"), "bert"),
        (dict(model_type="rc3", model=3), "config.json"),
        (dict(model={}), str(folder)),
        (dict(model=deep), "model.fusion.depth"),
        (dict(model=model | {"text": model["text"] | {"width": 32}}), str(folder)),
        (dict(model=model, vocab_size=7), "text.embeddings.word_embeddings.weight"),
    ):
        change(folder / "config.json", **settings)
        with pytest.raises(ConfigError, match=named):
            from_torch(folder, tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_runs_that_cannot_be_exported(exported, run, tmp_path):
    model = json.loads((run / "config.json").read_text())["model"]
    with pytest.raises(ConfigError, match="float16"):
        to_torch(run, tmp_path / "out", dtype="float16")
    file = run / "tokenizer.json"
    file.write_text(train_tokenizer(["A dog."], 20, 24).to_json())
    with pytest.raises(ConfigError, match="tokenizer.json has 1. pieces"):
        to_torch(run, tmp_path / "out")
    file.unlink()
    for reads, said in (
        (to_torch, f"{file} is missing; copy there the vocabulary of the weights"),
        (lambda run, _: load_model(run), "has no tokenizer.json; copy there the vocabulary"),
    ):
        with pytest.raises(ConfigError, match=said):
            reads(run, tmp_path / "out")
    shutil.copy(exported.run / "tokenizer.json", run)
    check_tokenizer(file, stored_shapes(run)[torch_export.WORDS][0], MAX_LENGTH)
    load_model(run)
    for settings, named in (
        (dict(model=model | {"projection_size": 9}), "image_projection/linear/kernel"),
        (dict(system="cclm"), "cclm"),
    ):
        change(run / "config.json", **settings)
        with pytest.raises(ConfigError, match=named):
            to_torch(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_failures_half_way_leave_nothing(exported, tmp_path, monkeypatch):
    def fails(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(torch_export, "model_card", fails)
        patched.setattr(torch_export, "save_params", fails)
        for convert, source in ((to_torch, exported.run), (from_torch, exported.folder)):
            with pytest.raises(ConfigError, match=f"{tmp_path}/out.*No space left"):
                convert(source, tmp_path / "out")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(ConfigError, match=f"{tmp_path}/out"):
            to_torch(exported.run, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


def test_an_export_is_replaced_and_a_folder_of_others_is_not(exported, folder):
    with pytest.raises(ConfigError, match="--overwrite"):
        to_torch(exported.run, folder)
    to_torch(exported.run, folder, overwrite=True)
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match=f"{folder} holds more"):
        to_torch(exported.run, folder, overwrite=True)


def test_parameters_that_eight_devices_shared(exported, run, tmp_path):
    shutil.rmtree(run / "params")
    code = f"from {spread_params.__name__} import main; main({str(exported.run)!r}, {str(run)!r})"
    assert run_python(code, devices=8).strip() == "8"
    to_torch(run, tmp_path / "out")
    assert_tensors_equal(
        load_file(tmp_path / "out" / WEIGHTS), load_file(exported.folder / WEIGHTS)
    )


@pytest.mark.slow
def test_onnx_files_compute_the_same(exported, tmp_path):
    """`to_torch` compares on random inputs; here the files meet the Flax model."""
    require("torch"), require("onnxruntime")
    import onnxruntime

    to_torch(exported.run, tmp_path / "out", onnx=True)
    settings = exported.config.model
    model = build_rc3(settings, len(exported.params["word_bias"]))
    rows, ids = random_inputs(settings)
    rows |= {"use_patches": np.ones(len(ids), bool), "use_regions": np.zeros(len(ids), bool)}
    mean, std = (np.array(settings[name], np.float32) for name in ("image_mean", "image_std"))
    pixels = ((rows["image"] / np.float32(255) - mean) / std).transpose(0, 3, 1, 2)
    variables = {"params": exported.params}
    for part, inputs, expected in (
        (
            "text",
            {"input_ids": ids.astype(np.int64)},
            model.apply(variables, ids, method="encode_text")[1],
        ),
        (
            "image",
            {"pixel_values": pixels},
            model.apply(variables, rows, method="encode_visual").embedding,
        ),
    ):
        file = tmp_path / "out" / "onnx" / f"{part}_encoder.onnx"
        (vectors,) = onnxruntime.InferenceSession(file).run(None, inputs)
        np.testing.assert_allclose(vectors, expected, atol=1e-5)


def test_the_usage_on_the_card_runs(folder):
    require("torch")
    Image.new("RGB", (50, 40), "red").save(folder / "photo.jpg")
    blocks = (folder / "README.md").read_text().split("```python\n")[1:]
    usage = "".join(block.split("```")[0] for block in blocks)
    done = subprocess.run(
        [sys.executable, "-c", usage],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("tensor(") == 2 and "a cat" in done.stdout
    assert done.stdout.splitlines()[-1] == "8"
