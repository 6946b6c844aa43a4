"""Sources, settings and sizes of Hugging Face towers: what is read, and every refusal."""

from __future__ import annotations

import json
import math
import pathlib

import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import load_file, save_file

from rc3_jax.config import ConfigError
from rc3_jax.convert.huggingface import _patch_template, _text_template, read_tower, tower_tensors
from rc3_jax.convert.huggingface_names import BEIT_V2
from rc3_jax.convert.mapping import to_torch
from rc3_jax.convert.resize import resize_positions
from rc3_jax.convert.torch_file import TensorFileError
from rc3_jax.convert.vision_names import resize_relative_positions

SIZES = dict(width=12, depth=4, heads=3, mlp_width=14)
TEXT = dict(**SIZES, max_positions=9, epsilon=None)
OWN = dict(epsilon=None, activation=None)
PATCH = {
    name: dict(type=name, image_size=18, patch=6, **SIZES, **OWN)
    for name in ("vit", "clip", "siglip", "beit")
}
PATCH["beit"]["drop_path"] = 0.1


def _random(template: dict) -> dict:
    rng = np.random.default_rng(0)
    flat = flatten_dict(template)
    return unflatten_dict({k: rng.normal(size=x.shape).astype("f4") for k, x in flat.items()})


def _assert_equal(left: dict, right: dict):
    left, right = flatten_dict(left, sep="/"), flatten_dict(right, sep="/")
    assert left.keys() == right.keys()
    for name, value in left.items():
        np.testing.assert_array_equal(value, right[name], err_msg=name, strict=True)


def _write(folder: pathlib.Path, tensors, config) -> pathlib.Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def _text(folder: pathlib.Path, **changes) -> pathlib.Path:
    """A folder with a text tower; `changes` of its config."""
    tensors, config = tower_tensors(_random(_text_template(TEXT, 11)), TEXT, part="text")
    return _write(folder, tensors, config | changes)


def _patch(folder: pathlib.Path, name: str = "vit", **changes) -> pathlib.Path:
    """A folder with a patch tower; `changes` of its config."""
    params = _random(_patch_template(PATCH[name]))
    tensors, config = tower_tensors(params, PATCH[name], part="patch")
    return _write(folder, tensors, config | changes)


@pytest.mark.parametrize("name", PATCH)
def test_patch_towers_come_back(tmp_path, name):
    params = _random(_patch_template(PATCH[name]))
    found = read_tower(_patch(tmp_path, name), part="patch")
    assert found[:3] == ("patch", name, PATCH[name])
    assert (found.heads, found.pooling, found.notes) == ({}, None, [])
    _assert_equal(found.params, params)


def test_what_stands_beside_the_tensors_comes_along(tmp_path):
    _text(tmp_path / "0_Transformer")
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    modules = [
        dict(path="0_Transformer", type="a.Transformer"),
        dict(path="1_Pooling", type="a.Pooling"),
    ]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    assert read_tower(tmp_path, part="text").pooling == "cls"

    folder = _patch(tmp_path / "vit")
    (folder / "preprocessor_config.json").write_text('{"image_mean": [0.5, 0.5, 0.25]}')
    expected = PATCH["vit"] | dict(image_mean=(0.5, 0.5, 0.25))
    assert read_tower(folder, part="patch").settings == expected


def test_chosen_text_layers(tmp_path):
    whole = read_tower(_text(tmp_path), part="text")
    assert whole.settings == TEXT
    found = read_tower(tmp_path, part="text", layers=(3, 1))
    assert found.settings == TEXT | dict(depth=2)
    layers, chosen = whole.params["encoder"]["layers"], found.params["encoder"]["layers"]
    for name, value in flatten_dict(chosen).items():
        np.testing.assert_array_equal(value, flatten_dict(layers)[name][[3, 1]])
    for wrong in ((), (1, 1), (4,), (-1,)):
        with pytest.raises(ConfigError, match="must be different numbers from 0 to 3"):
            read_tower(tmp_path, part="text", layers=wrong)


@pytest.mark.parametrize("name", PATCH)
def test_another_image_size(tmp_path, name):
    own = read_tower(_patch(tmp_path, name), part="patch").params
    found = read_tower(tmp_path, part="patch", image_size=30)
    assert found.settings == PATCH[name] | dict(image_size=30)
    if name == "beit":
        tables = own["encoder"]["layers"]["relative_positions"]
        expected = np.stack([resize_relative_positions(table, 5, 3) for table in tables])
        own["encoder"]["layers"]["relative_positions"] = expected
    else:
        extra = 0 if name == "siglip" else 1
        own["position_embedding"] = resize_positions(own["position_embedding"], 5, extra)
    _assert_equal(found.params, own)
    with pytest.raises(ConfigError, match="must be a multiple of the patch, 6"):
        read_tower(tmp_path, part="patch", image_size=31)
    if name == "beit":
        with pytest.raises(ConfigError, match="image_size=12: a table of window 3 cannot"):
            read_tower(tmp_path, part="patch", image_size=12)


@pytest.mark.parametrize("shared", [True, False])
def test_files_of_beit_v2(tmp_path, shared):
    params = _random(_patch_template(PATCH["beit"]))
    tables = params["encoder"]["layers"]["relative_positions"]
    if shared:
        tables[:] = tables[0]
    tensors = to_torch(params, BEIT_V2) | {"mask_token": np.zeros((1, 1, 12), np.float32)}
    if shared:  # as pre-training leaves it
        for number in range(4):
            del tensors[f"blocks.{number}.attn.relative_position_bias_table"]
        tensors["rel_pos_bias.relative_position_bias_table"] = tables[0].copy()
        tensors["rel_pos_bias.relative_position_index"] = np.zeros((10, 10), np.int64)
        for leaf in ("weight", "bias"):
            tensors[f"norm.{leaf}"] = tensors.pop(f"fc_norm.{leaf}")
    path = tmp_path / "beitv2.safetensors"
    save_file(tensors, path)
    found = read_tower(path, part="patch")
    assert found.settings == PATCH["beit"]
    assert len(found.notes) == (4 if shared else 2)
    _assert_equal(found.params, params)
    assert read_tower(path, part="patch", image_size=24).settings["image_size"] == 24

    with pytest.raises(TensorFileError, match="is a single file, and none of BEiT-v2"):
        read_tower(path, part="text")
    save_file(tensors | {"pos_embed": np.zeros((1, 10, 12), np.float32)}, path)
    with pytest.raises(TensorFileError, match="has absolute positions"):
        read_tower(path, part="patch")


def test_other_single_files_are_refused(tmp_path):
    with pytest.raises(TensorFileError, match="is a single file, and none of BEiT-v2"):
        read_tower(_patch(tmp_path) / "model.safetensors", part="patch")


@pytest.mark.parametrize(
    "part, changes, message",
    [
        ("text", dict(model_type="bert"), "model_type='bert' has no text tower; use one of xlm-r"),
        ("text", dict(model_type="vit"), "model_type='vit' has no text tower"),
        ("text", dict(model_type=None), "model_type=None has no text tower"),
        ("text", dict(model_type=["vit"]), "has no text tower"),
        ("text", dict(pad_token_id=0), "pad_token_id=0, must be 1"),
        ("text", dict(position_embedding_type="relative_key"), "must be 'absolute'"),
        ("text", dict(is_decoder=True), "is_decoder=True, must be False"),
        ("text", dict(hidden_act="quick_gelu"), "hidden_act='quick_gelu', must be one of gelu"),
        ("text", dict(hidden_size=13), "hidden_size=13 is not divisible by num_attention_heads=3"),
        ("text", dict(num_hidden_layers="4"), "num_hidden_layers='4', must be a whole number"),
        ("text", dict(num_hidden_layers=10**9), "must be a whole number from 1 to 1000"),
        ("text", dict(vocab_size=True), "vocab_size=True, must be a whole number"),
        ("text", dict(layer_norm_eps="x"), "layer_norm_eps='x', must be a number"),
        ("text", dict(vocab_size=12), "mis-shaped: embeddings.word_embeddings.weight is"),
        ("text", dict(num_hidden_layers=3), "extra: encoder.layer.3.attention.self.query.weight"),
        ("patch", dict(model_type="xlm-roberta"), "'xlm-roberta' has no patch tower"),
        ("patch", dict(hidden_act="relu"), "hidden_act='relu', must be one of gelu, gelu_python"),
        ("patch", dict(num_channels=1), "num_channels=1, must be 3"),
        ("patch", dict(qkv_bias=False), "qkv_bias=False, must be True"),
        ("patch", dict(image_size=[18, 12]), r"image_size=\[18, 12\], must be square"),
        ("patch", dict(patch_size=[6]), r"patch_size=\[6\], must be square"),
        ("patch", dict(patch_size=20), "patch_size=20 is larger than image_size=18"),
        ("patch", dict(layer_norm_eps=math.inf), "layer_norm_eps=inf, must be a number"),
        ("patch", dict(layer_norm_eps=10**400), "must be a number from 0 on"),
        ("patch", dict(image_size=10**7, patch_size=1), "patches a side, more than 128"),
        ("patch", dict(num_hidden_layers=5), "missing: encoder.layer.4.layernorm_before.weight"),
        ("patch", dict(model_type="clip", vision_config=3), "vision_config must be an object"),
    ],
)
def test_settings_that_cannot_be_are_refused(tmp_path, part, changes, message):
    folder = (_text if part == "text" else _patch)(tmp_path, **changes)
    with pytest.raises((ConfigError, TensorFileError), match=message) as error:
        read_tower(folder, part=part)
    assert str(folder) in str(error.value)


def test_sizes_as_two_numbers_and_defaults_of_nested_settings(tmp_path):
    found = read_tower(_patch(tmp_path / "a", image_size=[19, 19], patch_size=[6, 6]), part="patch")
    assert found.settings == PATCH["vit"]
    (note,) = found.notes
    assert note.startswith("image_size 19 is no multiple of the patch, 6: images of 18 pixels")
    folder = _patch(tmp_path / "b", "siglip")
    config = json.loads((folder / "config.json").read_text())
    given = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    vision = {key: config[key] for key in (*given, "image_size", "patch_size")}
    (folder / "config.json").write_text(json.dumps(dict(model_type="siglip", vision_config=vision)))
    assert read_tower(folder, part="patch").settings == PATCH["siglip"]


def test_tensors_that_do_not_fit_are_all_listed(tmp_path):
    folder = _patch(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    tensors["more"] = tensors.pop("layernorm.bias")
    tensors["layernorm.weight"] = np.ones(3, np.float32)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(TensorFileError, match=r"\(3 problems\)") as error:
        read_tower(folder, part="patch")
    for problem in ("extra: more", "missing: layernorm.bias", "mis-shaped: layernorm.weight"):
        assert problem in str(error.value)
    tensors["layernorm.weight"] = np.ones(12, np.int8)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(TensorFileError, match=r"quantisation: layernorm.weight holds int8"):
        read_tower(folder, part="patch")


def test_beit_without_its_positions_is_refused(tmp_path):
    folder = _patch(tmp_path, "beit", use_absolute_position_embeddings=True)
    with pytest.raises(ConfigError, match="use_absolute_position_embeddings=True, must be False"):
        read_tower(folder, part="patch")
    _patch(tmp_path, "beit")
    tensors = load_file(folder / "model.safetensors")
    kept = {name: x for name, x in tensors.items() if "relative" not in name}
    save_file(kept, folder / "model.safetensors")
    with pytest.raises(TensorFileError, match="has no relative positions"):
        read_tower(folder, part="patch")
    twice = {f"beit.{name}": x for name, x in tensors.items()} | tensors
    save_file(twice, folder / "model.safetensors")
    with pytest.raises(TensorFileError, match="holds tensors twice"):
        read_tower(folder, part="patch")


@pytest.mark.parametrize("content", ["{", "[1]", "\xff", "[" * 100_000])
def test_broken_settings_are_refused(tmp_path, content):
    folder = _text(tmp_path)
    (folder / "config.json").write_text(content, encoding="latin-1")
    with pytest.raises(TensorFileError, match=r"config.json (cannot be read|must hold an object)"):
        read_tower(folder, part="text")


def test_options_of_the_other_part_are_refused(tmp_path):
    for options in (dict(part="text", image_size=6), dict(part="patch", layers=[1])):
        with pytest.raises(ConfigError, match="image_size is for patch towers alone"):
            read_tower(tmp_path, **options)
    with pytest.raises(ConfigError, match="part='roi': use one of text, patch"):
        read_tower(tmp_path, part="roi")


def test_towers_that_transformers_has_not(tmp_path):
    params = _random(_text_template(TEXT, 11))
    with pytest.raises(ConfigError, match="position_offset=0"):
        tower_tensors(params, TEXT | dict(position_offset=0), part="text")
    with pytest.raises(ConfigError, match="'swin' has no model of transformers"):
        tower_tensors({}, dict(type="swin"), part="patch")
