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

from rc3_jax.config import ConfigError
from rc3_jax.convert import torch_export
from rc3_jax.convert.torch_export import from_torch, to_torch
from rc3_jax.convert.torch_file import TensorFileError
from rc3_jax.data.example import example_batch
from rc3_jax.data.tokenizer import train_tokenizer
from rc3_jax.models.rc3 import build_rc3
from rc3_jax.training.checkpoint import load_some, stored_shapes
from tests.convert.exported import TEXTS, tiny_folder
from tests.processes import run_python
from tests.tiny import tiny_config
from tests.vision_reference import require

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A model's folder, its parameters, and what it is exported to."""
    folder = tmp_path_factory.mktemp("export")
    params = tiny_folder(folder / "run")
    to_torch(folder / "run", folder / "exported", licence="apache-2.0")
    return folder / "run", params, folder / "exported"


@pytest.fixture
def exported(tiny, tmp_path):
    return copied(tiny[2], tmp_path / "exported")


def copied(source, target):
    shutil.copytree(source, target)
    return target


def stored(folder):
    return load_some(folder, list(stored_shapes(folder)))


def assert_same(folder, params):
    found = stored(folder)
    expected = flatten_dict(params, sep="/")
    assert found.keys() == expected.keys()
    for path, array in expected.items():
        np.testing.assert_array_equal(found[path], array, strict=True)


def test_there_and_back_is_bit_equal(tiny, tmp_path):
    run, params, exported = tiny
    from_torch(exported, tmp_path / "back")
    assert_same(tmp_path / "back", params)
    settings = json.loads((tmp_path / "back" / "config.json").read_text())
    model = json.loads((run / "config.json").read_text())["model"]
    assert (settings["system"], settings["model"], settings["max_length"]) == ("rc3", model, 24)
    assert (tmp_path / "back" / "tokenizer.json").read_text() == (
        run / "tokenizer.json"
    ).read_text()
    to_torch(tmp_path / "back", tmp_path / "again")
    again, first = load_file(tmp_path / "again" / WEIGHTS), load_file(exported / WEIGHTS)
    assert again.keys() == first.keys()
    assert all(np.array_equal(again[name], first[name]) for name in first)


def test_shards_hold_the_same_tensors(tiny, tmp_path):
    run, params, exported = tiny
    to_torch(run, tmp_path / "shards", shard_bytes=20_000)
    files = sorted(path.name for path in (tmp_path / "shards").glob("*.safetensors"))
    assert files[0] == f"model-00001-of-{len(files):05}.safetensors" and len(files) > 2
    index = json.loads((tmp_path / "shards" / "model.safetensors.index.json").read_text())
    whole = load_file(exported / WEIGHTS)
    assert index["weight_map"].keys() == whole.keys()
    assert index["metadata"]["total_size"] == sum(x.nbytes for x in whole.values())
    for name in files:
        tensors = load_file(tmp_path / "shards" / name)
        assert sum(x.nbytes for x in tensors.values()) <= 20_000
        assert all(index["weight_map"][tensor] == name for tensor in tensors)
        assert all(np.array_equal(value, whole[key]) for key, value in tensors.items())
    from_torch(tmp_path / "shards", tmp_path / "back")
    assert_same(tmp_path / "back", params)


def test_bfloat16_rounds_each_number(tiny, tmp_path):
    run, params, exported = tiny
    to_torch(run, tmp_path / "half", dtype="bfloat16")
    whole = load_file(exported / WEIGHTS)
    for name, tensor in load_file(tmp_path / "half" / WEIGHTS).items():
        np.testing.assert_array_equal(tensor, whole[name].astype(ml_dtypes.bfloat16), strict=True)
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == "bfloat16"
    from_torch(tmp_path / "half", tmp_path / "back")
    rounded = jax.tree.map(lambda x: x.astype(ml_dtypes.bfloat16).astype(np.float32), params)
    assert_same(tmp_path / "back", rounded)


def test_what_pytorch_trained_returns_and_the_rest_is_bit_equal(tiny, exported, tmp_path):
    torch, transformers = require("torch"), require("transformers")
    model = transformers.AutoModel.from_pretrained(exported, trust_remote_code=True)
    with torch.no_grad():
        model.fusion.layers[0].mlp_in.weight[3, 5] += 1
    model.save_pretrained(tmp_path / "tuned")
    from_torch(tmp_path / "tuned", tmp_path / "back")
    expected = jax.tree.map(np.array, tiny[1])
    expected["fusion"]["layers"]["mlp_in"]["kernel"][0, 5, 3] += 1
    assert_same(tmp_path / "back", expected)


def test_every_tensor_that_does_not_fit_is_listed(exported, tmp_path):
    tensors = load_file(exported / WEIGHTS)
    del tensors["text.embedding_norm.bias"], tensors["patch.encoder.layers.1.mlp_in.bias"]
    tensors["matching_head.logits.bias"] = np.zeros(3, np.float32)
    tensors["classifier.weight"] = np.zeros((2, 2), np.float32)
    save_file(tensors, exported / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(ConfigError) as error:
        from_torch(exported, tmp_path / "back")
    assert "4 differences" in str(error.value)
    for line in (
        "missing: text.embedding_norm.bias (16,)",
        "missing: patch.encoder.layers.1.mlp_in.bias (32,)",
        "mis-shaped: matching_head.logits.bias is (3,), must be (2,)",
        "extra: classifier.weight (2, 2)",
    ):
        assert line in str(error.value)
    assert not (tmp_path / "back").exists()


def test_numbers_of_another_kind_are_refused(exported, tmp_path):
    tensors = load_file(exported / WEIGHTS)
    tensors["matching_head.logits.weight"] = tensors["matching_head.logits.weight"].astype(np.int8)
    save_file(tensors, exported / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(TensorFileError, match=r"matching_head.logits.weight holds int8"):
        from_torch(exported, tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_cleaning_of_captions_survives(tiny, tmp_path):
    run = copied(tiny[0], tmp_path / "run")
    settings = json.loads((run / "config.json").read_text())
    settings["data"] |= {"clean_captions": True, "max_words": 7}
    (run / "config.json").write_text(json.dumps(settings))
    to_torch(run, tmp_path / "out")
    from_torch(tmp_path / "out", tmp_path / "back")
    to_torch(tmp_path / "back", tmp_path / "again")
    processor = json.loads((tmp_path / "again" / "processor_config.json").read_text())
    assert processor["max_words"] == 7


def test_a_vocabulary_of_other_weights_is_refused(tiny, tmp_path):
    run = copied(tiny[0], tmp_path / "run")
    (run / "tokenizer.json").write_text(train_tokenizer(TEXTS[:1], 20, 24).to_json())
    with pytest.raises(ConfigError, match="pieces and the word embeddings have"):
        to_torch(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_file_that_cannot_grow_leaves_nothing(tiny, tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(ConfigError, match="could not be written"):
            to_torch(tiny[0], tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


def test_pickled_weights_need_a_word_of_consent(tiny, exported, tmp_path):
    torch = require("torch")
    tensors = {k: torch.from_numpy(v) for k, v in load_file(exported / WEIGHTS).items()}
    (exported / WEIGHTS).unlink()
    torch.save(tensors, exported / "pytorch_model.bin")
    with pytest.raises(TensorFileError, match="pickled tensors alone"):
        from_torch(exported, tmp_path / "back")
    from_torch(exported, tmp_path / "back", allow_pickle=True)
    assert_same(tmp_path / "back", tiny[1])


def test_settings_that_cannot_be_read(exported, tmp_path):
    good = json.loads((exported / "config.json").read_text())
    wide = json.loads(json.dumps(good))
    wide["model"]["text"]["width"] = 32
    for settings, reason in (
        ("{", "cannot be read as settings of a model"),
        (json.dumps(good | {"model_type": "bert"}), "of model_type 'bert', not of rc3"),
        (json.dumps(good | {"model": 3}), "its model must be one"),
        (json.dumps(good | {"model": {}}), "lacks a setting"),
        (json.dumps(wide), "they must be equal"),
        (json.dumps(good | {"vocab_size": 7}), "mis-shaped: text.word_embedding.weight"),
    ):
        (exported / "config.json").write_text(settings)
        with pytest.raises(ConfigError, match=reason):
            from_torch(exported, tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_models_that_cannot_be_exported(tiny, tmp_path):
    run = copied(tiny[0], tmp_path / "run")
    settings = json.loads((run / "config.json").read_text())
    settings["model"]["projection_size"] = 9
    (run / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ConfigError, match=r"image_projection/linear/kernel is \(16, 8\), must be"):
        to_torch(run, tmp_path / "out")
    (run / "config.json").write_text(json.dumps(settings | {"system": "cclm"}))
    with pytest.raises(ConfigError, match="is of cclm; this conversion is of models of rc3"):
        to_torch(run, tmp_path / "out")
    (run / "tokenizer.json").unlink()
    (run / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ConfigError, match="tokenizer.json is missing"):
        to_torch(run, tmp_path / "out")
    with pytest.raises(ConfigError, match="use one of float32, bfloat16"):
        to_torch(tiny[0], tmp_path / "out", dtype="float16")
    assert not (tmp_path / "out").exists()


def test_what_fails_half_way_leaves_nothing(tiny, exported, tmp_path, monkeypatch):
    before = sorted(path.name for path in tmp_path.iterdir())

    def fails(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch_export, "model_card", fails)
    with pytest.raises(ConfigError, match="could not be written: .*No space left"):
        to_torch(tiny[0], tmp_path / "out")
    monkeypatch.setattr(torch_export, "save_params", fails)
    with pytest.raises(ConfigError, match="could not be written: .*No space left"):
        from_torch(exported, tmp_path / "back")
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    with pytest.raises(ConfigError, match="exists; choose another name"):
        to_torch(tiny[0], exported)


def test_an_export_is_replaced_and_a_folder_of_others_is_not(tiny, exported):
    to_torch(tiny[0], exported, overwrite=True)
    (exported / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="holds more than a conversion writes"):
        to_torch(tiny[0], exported, overwrite=True)


SHARDED = """
import jax, numpy as np, pathlib
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import NamedSharding, PartitionSpec
from rc3_jax.data.example import example_batch
from rc3_jax.models.rc3 import build_rc3
from rc3_jax.training.checkpoint import load_some, save_params, stored_shapes
mesh = jax.make_mesh((8,), ("fsdp",))
params = load_some(pathlib.Path({run!r}), list(stored_shapes(pathlib.Path({run!r}))))
def spread(x):
    axes = [i for i, n in enumerate(x.shape) if n % 8 == 0][:1]
    spec = PartitionSpec(*(("fsdp" if i in axes else None) for i in range(x.ndim)))
    return jax.device_put(x, NamedSharding(mesh, spec))
params = {{path: spread(x) for path, x in params.items()}}
print(max(len(x.sharding.device_set) for x in params.values()))
save_params(pathlib.Path({to!r}), unflatten_dict(params, sep="/"))
"""


def test_parameters_that_eight_devices_shared(tiny, tmp_path):
    run = copied(tiny[0], tmp_path / "run")
    shutil.rmtree(run / "params")
    assert run_python(SHARDED.format(run=str(tiny[0]), to=str(run)), devices=8).strip() == "8"
    to_torch(run, tmp_path / "out")
    found, expected = load_file(tmp_path / "out" / WEIGHTS), load_file(tiny[2] / WEIGHTS)
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[name], expected[name]) for name in found)


@pytest.mark.slow
def test_onnx_files_compute_the_same(tiny, tmp_path):
    """`to_torch` compares on random inputs; here the files meet the Flax model."""
    require("torch"), require("onnxruntime")
    import onnxruntime

    to_torch(tiny[0], tmp_path / "out", onnx=True)
    config = tiny_config()
    model = build_rc3(config.model, len(tiny[1]["word_bias"]))
    rng = np.random.default_rng(3)
    image = rng.integers(0, 256, (4, 32, 32, 3)).astype(np.uint8)
    ids = rng.integers(4, 40, (4, 11)).astype(np.int32)
    ids[2, 5:] = 1
    rows = example_batch(config)[0]
    rows = {name: np.resize(value, (4, *value.shape[1:])) for name, value in rows.items()}
    rows |= {"image": image, "use_regions": np.zeros(4, bool)}
    pixels = ((image / np.float32(255) - 0.5) / 0.5).astype(np.float32).transpose(0, 3, 1, 2)
    for file, inputs, expected in (
        (
            "text_encoder.onnx",
            {"input_ids": ids.astype(np.int64)},
            model.apply({"params": tiny[1]}, ids, method="encode_text")[1],
        ),
        (
            "image_encoder.onnx",
            {"pixel_values": pixels},
            model.apply({"params": tiny[1]}, rows, method="encode_visual").vector,
        ),
    ):
        session = onnxruntime.InferenceSession(tmp_path / "out" / "onnx" / file)
        (vectors,) = session.run(None, inputs)
        np.testing.assert_allclose(vectors, expected, atol=1e-5)


def test_the_usage_on_the_card_runs_without_this_project(tiny, tmp_path):
    require("torch")
    folder = copied(tiny[2], tmp_path / "exported")
    Image.new("RGB", (50, 40), "red").save(folder / "photo.jpg")
    usage = (folder / "README.md").read_text().split("```python\n")[1].split("```")[0]
    assert len(usage.splitlines()) <= 10
    block = "import sys\nsys.modules.update(dict.fromkeys(['jax', 'flax', 'rc3_jax', 'orbax']))\n"
    done = subprocess.run(
        [sys.executable, "-c", block + usage],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("tensor(") == 2
