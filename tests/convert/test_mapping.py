"""Names and axes without PyTorch: both spellings, prefixes, ignored tensors, every error."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from rc3_jax.convert.mapping import to_flax, to_torch
from rc3_jax.convert.names import VIT, XLM_ROBERTA
from rc3_jax.models.patch import to_patches
from tests.towers import patch_tower, text_tower

DEPTH = 2
TEXT = text_tower(vocab_size=11, width=6, depth=DEPTH, heads=3, mlp_width=7, max_positions=8)
PATCH = patch_tower(image_size=12, patch=4, width=6, depth=DEPTH, heads=3, mlp_width=7)
TOWERS = [
    pytest.param(XLM_ROBERTA, TEXT, np.ones((1, 3), np.int32), id="xlm-roberta"),
    pytest.param(VIT, PATCH, np.ones((1, 12, 12, 3), np.float32), id="vit"),
]


def _random_params(tower, batch, seed: int = 0) -> dict:
    rng = np.random.default_rng(seed)
    template = jax.eval_shape(tower.init, jax.random.key(0), batch)["params"]
    return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(x.dtype), template)


def _assert_equal_trees(left: dict, right: dict):
    left, right = flatten_dict(left, sep="/"), flatten_dict(right, sep="/")
    assert left.keys() == right.keys()
    for path in left:
        np.testing.assert_array_equal(left[path], right[path], err_msg=path, strict=True)


@pytest.mark.parametrize("module_names", [False, True])
@pytest.mark.parametrize("table, tower, batch", TOWERS)
def test_both_spellings_with_and_without_prefix_are_read(table, tower, batch, module_names):
    params = _random_params(tower, batch)
    for prefix in ("", table.prefix):
        tensors = to_torch(params, table, prefix=prefix, module_names=module_names)
        assert all(name.startswith(prefix) for name in tensors)
        _assert_equal_trees(to_flax(tensors, table, params), params)


@pytest.mark.parametrize("table, tower, batch", TOWERS)
def test_tensors_of_heads_and_buffers_are_ignored(table, tower, batch):
    params = _random_params(tower, batch)
    tensors = to_torch(params, table, prefix=table.prefix)
    unused = ["pooler.dense.weight", "embeddings.position_ids", "lm_head.bias", "classifier.bias"]
    unused = [name for name in unused if name.startswith(table.ignored)]
    assert len(unused) >= 3
    for name in unused:
        tensors |= {name: np.ones(3), table.prefix + name: np.ones(3)}
    _assert_equal_trees(to_flax(tensors, table, params), params)


def test_ignoring_is_by_family():
    params = _random_params(PATCH, np.ones((1, 12, 12, 3), np.float32))
    with pytest.raises(ValueError, match="extra: lm_head.bias"):
        to_flax(to_torch(params, VIT) | {"lm_head.bias": np.ones(3)}, VIT, params)


@pytest.mark.parametrize("table, tower, batch", TOWERS)
def test_parameters_are_cast_to_the_template(table, tower, batch):
    params = _random_params(tower, batch)
    tensors = {name: x.astype(np.float16) for name, x in to_torch(params, table).items()}
    rounded = jax.tree.map(lambda x: x.astype(np.float16).astype(np.float32), params)
    _assert_equal_trees(to_flax(tensors, table, params), rounded)


@pytest.mark.parametrize("table, tower, batch", TOWERS)
def test_results_share_no_memory_and_are_contiguous(table, tower, batch):
    params = _random_params(tower, batch)
    tensors = to_torch(params, table)
    read = to_flax(tensors, table, params)
    for sources, results in ((params, tensors), (tensors, read)):
        for result in jax.tree.leaves(results):
            assert result.flags.c_contiguous
            assert not any(np.shares_memory(result, x) for x in jax.tree.leaves(sources))


def test_patch_kernel_is_the_convolution():
    params = _random_params(PATCH, np.ones((1, 12, 12, 3), np.float32))
    kernel = to_torch(params, VIT)["embeddings.patch_embeddings.projection.weight"]
    image = np.random.default_rng(1).normal(size=(12, 12, 3)).astype(np.float32)
    patches = np.asarray(to_patches(jnp.asarray(image)[None], 4))[0]
    embedded = patches @ params["patch_embedding"]["kernel"]
    for row in range(3):
        for column in range(3):
            window = image[4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
            expected = np.einsum("ijc,ocij->o", window, kernel)
            np.testing.assert_allclose(embedded[3 * row + column], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("table, tower, batch", TOWERS)
def test_one_error_lists_everything_wrong_with_a_checkpoint(table, tower, batch):
    params = _random_params(tower, batch)
    tensors = to_torch(params, table, prefix=table.prefix)
    names = {name.removeprefix(table.prefix): name for name in tensors}
    missing = ["encoder.layer.0.intermediate.dense.bias", "encoder.layer.1.output.dense.weight"]
    for name in missing:
        del tensors[names[name]]
    misshaped = ["embeddings.position_embeddings", "encoder.layer.1.intermediate.dense.weight"]
    misshaped = [name for name in names if name.startswith(tuple(misshaped))]
    assert len(misshaped) == 2
    for name in misshaped:
        tensors[names[name]] = tensors[names[name]].swapaxes(-1, -2)
    extra = [f"{table.prefix}encoder.layer.{DEPTH}.output.dense.bias", "vocab_projection.weight"]
    tensors |= {name: np.zeros((2, 9)) for name in extra}
    repeated = "encoder.layer.1.intermediate.dense.bias"
    tensors[repeated] = tensors[names[repeated]]
    with pytest.raises(ValueError) as error:
        to_flax(tensors, table, params)
    first, *lines = str(error.value).splitlines()
    assert "7 problems" in first and "depth and widths" in first
    found = {tuple(line.split()[:2]) for line in lines}
    assert found == (
        {("missing:", name) for name in missing}
        | {("mis-shaped:", name) for name in misshaped}
        | {("extra:", name) for name in extra}
        | {("repeated:", repeated)}
    )
    shape = "is (6, 7), must be (7, 6)"
    assert any("intermediate.dense.weight" in line and shape in line for line in lines)


@pytest.mark.parametrize("table, tower, batch", TOWERS)
def test_parameters_that_no_row_names_are_an_error(table, tower, batch):
    params = _random_params(tower, batch)
    tensors = to_torch(params, table)
    leaves = flatten_dict(params, sep="/") | {"gate/scale": np.ones(3, np.float32)}
    with pytest.raises(ValueError, match=r"(?s)1 problems.*not in the table: gate/scale"):
        to_flax(tensors, table, unflatten_dict(leaves, sep="/"))
    del leaves["encoder/layers/mlp_in/bias"]
    leaves["encoder/layers/mlp_out/bias"] = leaves["encoder/layers/mlp_out/bias"][:1]
    with pytest.raises(ValueError) as error:
        to_torch(unflatten_dict(leaves, sep="/"), table)
    for problem in (
        "missing: encoder/layers/mlp_in/bias",
        "not in the table: gate/scale",
        "mis-shaped: encoder/layers/mlp_out/bias holds 1 layers",
        "mis-shaped: encoder/layers/mlp_out/kernel holds 2 layers",
    ):
        assert problem in str(error.value)
