"""Numbers that are not finite and names with a prefix, on every way in and out."""

from __future__ import annotations

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import load_file, save_file

from rc3_jax.convert.cclm import layout_of, to_published
from rc3_jax.convert.cclm_files import cclm_to_flax, flax_to_cclm
from rc3_jax.convert.huggingface import template_of
from rc3_jax.convert.torch_export import from_torch, to_torch
from rc3_jax.convert.torch_file import read_tensors, write_tensors
from rc3_jax.convert.tower_files import from_hf, to_hf
from rc3_jax.models.beit import PUBLISHED_NAMES
from rc3_jax.models.towers import TOWERS
from rc3_jax.settings import ConfigError
from rc3_jax.systems import abstract_params
from rc3_jax.training.checkpoint import Checkpoints, read_params, save_params
from rc3_jax.training.state import TrainState
from tests.tiny import tiny_cclm
from tests.vision_reference import random_like, require

BEIT = TOWERS["beit"](image_size=18, patch=6, width=12, depth=2, heads=3, mlp_width=14)


@pytest.fixture(scope="module")
def sources(exported, tmp_path_factory):
    """name → file of tensors, and what converts it to a folder."""
    folder = tmp_path_factory.mktemp("sources")
    for part in ("text", "patch"):
        to_hf(exported.run, folder / part, part=part)
    shutil.copytree(exported.folder, folder / "torch")
    save_file(
        PUBLISHED_NAMES.to_theirs(random_like(template_of(BEIT))), folder / "beit.safetensors"
    )
    cclm = random_like(abstract_params("cclm", tiny_cclm().model, 20))
    write_tensors(folder / "cclm.safetensors", to_published(cclm, layout_of(tiny_cclm().model)))
    return folder


def convert_text(file, target):
    from_hf(target, text=str(file.parent))


def convert_patch(file, target):
    from_hf(target, patch=str(file.parent))


def convert_beit(file, target):
    from_hf(target, patch=str(file))


def convert_torch(file, target):
    from_torch(file.parent, target)


def convert_cclm(file, target):
    cclm_to_flax(file, target, text_heads=2)


WAYS_IN = {
    "text": ("text/model.safetensors", convert_text, "encoder.layer.1.output.dense.bias"),
    "head": ("text/model.safetensors", convert_text, "lm_head.layer_norm.weight"),
    "patch": ("patch/model.safetensors", convert_patch, "encoder.layer.0.output.dense.weight"),
    "beit": ("beit.safetensors", convert_beit, "blocks.1.mlp.fc1.weight"),
    "torch": ("torch/model.safetensors", convert_torch, "fusion.layers.0.mlp_in.bias"),
    "cclm": ("cclm.safetensors", convert_cclm, "itm_head.0.weight"),
}


def change(source, target, file, rename=None, **arrays):
    """Copies the sources and changes the tensors of one file."""
    shutil.copytree(source, target)
    tensors = load_file(target / file)
    tensors = {rename(name) if rename else name: array for name, array in tensors.items()}
    save_file(tensors | arrays, target / file, metadata={"format": "pt"})
    return target / file


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e39])
@pytest.mark.parametrize("way", WAYS_IN)
def test_numbers_that_are_not_finite_are_refused_on_the_way_in(sources, tmp_path, way, bad):
    file, convert, suffix = WAYS_IN[way]
    tensors = load_file(sources / file)
    (name,) = [name for name in tensors if name.endswith(suffix)]
    array = tensors[name].astype(np.float64)
    array.flat[1] = bad
    changed = change(sources, tmp_path / "in", file, **{name: array})
    with pytest.raises(ConfigError, match=f"{changed}.*{name}"):
        convert(changed, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_numbers_that_are_not_finite_are_refused_in_pickles(tmp_path):
    torch = require("torch")
    state = {"a": torch.tensor([1.0, torch.nan], dtype=torch.bfloat16), "b": torch.ones(2)}
    torch.save(state, tmp_path / "a.th")
    with pytest.raises(ConfigError, match=r"a\.th.*a \(1 of 2"):
        read_tensors(tmp_path / "a.th")


def part_out(part):
    return lambda folder, target: to_hf(folder, target, part=part)


def half(folder, target):
    to_torch(folder, target, dtype="bfloat16")


WAYS_OUT = {
    "text": (
        *(part_out("text"), "text/encoder/layers/mlp_in/bias", np.nan),
        "encoder.layer.1.intermediate.dense.bias",
    ),
    "words": (part_out("text"), "word_bias", np.inf, "lm_head.bias"),
    "patch": (part_out("patch"), "patch/class_token", np.nan, "cls_token"),
    "torch": (to_torch, "fusion/layers/mlp_in/bias", np.inf, "fusion.layers.0.mlp_in.bias"),
    # Infinite in bfloat16.
    "half": (half, "temperature_fused", np.finfo(np.float32).max, "temperature_fused"),
}


@pytest.mark.parametrize("way", WAYS_OUT)
def test_numbers_that_are_not_finite_are_refused_on_the_way_out(exported, tmp_path, way):
    convert, path, bad, name = WAYS_OUT[way]
    params = flatten_dict(jax.tree.map(np.array, exported.params), sep="/")
    params[path].flat[-1] = bad
    run = tmp_path / "run"
    run.mkdir()
    for file in ("config.json", "tokenizer.json"):
        shutil.copy(exported.run / file, run)
    save_params(run, unflatten_dict(params, sep="/"))
    with pytest.raises(ConfigError, match=f"{run}.*{name}"):
        convert(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_earlier_checkpoint_of_a_run_that_ended_in_nan_is_converted(exported, tmp_path):
    run = shutil.copytree(
        exported.run, tmp_path / "run", ignore=lambda *_: ["params", "checkpoints"]
    )
    spoilt = jax.tree.map(lambda x: np.full_like(x, np.nan), exported.params)
    with Checkpoints(run, keep=2) as checkpoints:
        for step, params in enumerate((exported.params, spoilt)):
            checkpoints.save(step, TrainState(jnp.int32(step), params, None, None))
    with pytest.raises(ConfigError, match="such as an earlier one"):
        to_hf(run, tmp_path / "text", part="text")
    to_hf(run, tmp_path / "text", part="text", step=0)


def test_a_sigmoid_contrast_of_cclm_is_refused(tmp_path):
    """The published code has no bias; RC³'s goes to PyTorch, see `test_torch_model.py`."""
    shapes = abstract_params("cclm", tiny_cclm().model, 20, has_bias=True)
    (tmp_path / "config.json").write_text(json.dumps(tiny_cclm().to_dict(), default=str))
    save_params(tmp_path, random_like(shapes))
    with pytest.raises(ConfigError, match="sigmoid.* export a model .* trained with softmax"):
        flax_to_cclm(tmp_path, tmp_path / "out.safetensors")
    shutil.rmtree(tmp_path / "params")
    save_params(tmp_path, random_like(abstract_params("cclm", tiny_cclm().model, 20)))
    flax_to_cclm(tmp_path, tmp_path / "out.safetensors")


def test_a_run_of_cclm_with_nan_is_refused(sources, tmp_path):
    convert_cclm(sources / "cclm.safetensors", tmp_path / "run")
    params = read_params(tmp_path / "run")
    params["temperature"] = np.array(np.nan, np.float32)
    shutil.rmtree(tmp_path / "run" / "params")
    save_params(tmp_path / "run", unflatten_dict(params, sep="/"))
    with pytest.raises(ConfigError, match=f"{tmp_path / 'run'}.*temp"):
        flax_to_cclm(tmp_path / "run", tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "module._orig_mod."])
@pytest.mark.parametrize("way", WAYS_IN)
def test_the_prefix_of_a_wrapper_is_left_out_and_told(sources, tmp_path, capsys, way, prefix):
    file, convert, _ = WAYS_IN[way]
    convert(sources / file, tmp_path / "plain")
    capsys.readouterr()
    changed = change(sources, tmp_path / "in", file, lambda name: prefix + name)
    convert(changed, tmp_path / "out")
    told = capsys.readouterr().out
    assert all(f"{part}." in told for part in prefix.split(".") if part)
    plain, found = read_params(tmp_path / "plain"), read_params(tmp_path / "out")
    assert plain.keys() == found.keys()
    assert all(np.array_equal(plain[path], found[path]) for path in plain)


@pytest.mark.parametrize("prefix", ["student.", "net.backbone."])
@pytest.mark.parametrize("way", WAYS_IN)
def test_another_prefix_is_named_and_can_be_removed(sources, tmp_path, way, prefix):
    file, convert, _ = WAYS_IN[way]
    changed = change(sources, tmp_path / "in", file, lambda name: prefix + name)
    with pytest.raises(ConfigError) as error:
        convert(changed, tmp_path / "out")
    assert repr(prefix) in str(error.value) and "\n" not in str(error.value)
    # What the message advises.
    tensors = load_file(changed)
    save_file({name.removeprefix(prefix): x for name, x in tensors.items()}, changed)
    convert(changed, tmp_path / "out")


def test_a_prefix_beside_other_tensors_is_named(sources, tmp_path):
    """Averaged models of PyTorch have a counter without the prefix."""
    file, convert, _ = WAYS_IN["torch"]
    more = {"averaged": np.ones((), np.float32)}
    changed = change(sources, tmp_path / "in", file, lambda name: f"module.{name}", **more)
    with pytest.raises(ConfigError, match=r"'module\.'"):
        convert(changed, tmp_path / "out")


def test_a_tied_copy_of_cclm_stands_for_a_missing_original(sources, tmp_path):
    head = "text_encoder.cls.predictions"
    whole = load_file(sources / "cclm.safetensors")
    convert_cclm(sources / "cclm.safetensors", tmp_path / "whole")
    del whole[f"{head}.bias"]
    save_file(whole, tmp_path / "copy.safetensors")
    convert_cclm(tmp_path / "copy.safetensors", tmp_path / "copy")
    found = [read_params(tmp_path / name)["word_bias"] for name in ("whole", "copy")]
    np.testing.assert_array_equal(*found)
    whole[f"{head}.bias"] = whole[f"{head}.decoder.bias"] + 1
    save_file(whole, tmp_path / "other.safetensors")
    with pytest.raises(ConfigError, match=rf"{head}\.decoder\.bias is not equal to {head}\.bias"):
        convert_cclm(tmp_path / "other.safetensors", tmp_path / "other")
