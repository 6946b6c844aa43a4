"""Tables of names without any model: stacks, numbers, joined tensors, axes, and every error."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from rc3_jax.models.visual import to_patches
from rc3_jax.param_map import CONVOLUTION, WITHOUT_BATCH, Name, ParamMap

LAYER = ParamMap(
    {f"attention/{x}": Name("attn.qkv", part=i) for i, x in enumerate(("query", "key", "value"))}
    | {"attention/query/bias": "attn.q_bias", "norm": "norm1"}
)
NAMES = LAYER.within("encoder/layers", "blocks.{}", first=3) | ParamMap(
    {
        "": "rest",
        "class_token": "cls_token",
        "positions": Name("positions.weight", WITHOUT_BATCH),
        "patch": Name("embed.proj", CONVOLUTION),
        "stage_{}/block_{}": "layers.{}.blocks.{}",
        "stage_{}/block_{}/in": "layers.{}.blocks.{}.fc1",
    }
)
SHAPES = {
    "encoder/layers/attention/query/kernel": (2, 4, 6),
    "encoder/layers/attention/query/bias": (2, 6),
    "encoder/layers/attention/key/kernel": (2, 4, 6),
    "encoder/layers/attention/value/kernel": (2, 4, 6),
    "encoder/layers/norm/scale": (2, 4),
    "class_token": (1, 1, 4),
    "positions": (1, 7, 4),
    "patch/kernel": (12, 4),
    "patch/bias": (4,),
    "stage_0/block_12/in/kernel": (4, 5),
    "stage_0/block_12/out/bias": (4,),
    "head/hidden/kernel": (4, 3),
    "head/words/embedding": (9, 4),
}
THEIRS = {
    "blocks.3.attn.qkv.weight": (18, 4),
    "blocks.4.attn.qkv.weight": (18, 4),
    "blocks.3.attn.q_bias": (6,),
    "blocks.4.attn.q_bias": (6,),
    "blocks.3.norm1.weight": (4,),
    "blocks.4.norm1.weight": (4,),
    "cls_token": (1, 1, 4),
    "positions.weight": (7, 4),
    "embed.proj.weight": (4, 3, 2, 2),
    "embed.proj.bias": (4,),
    "layers.0.blocks.12.fc1.weight": (5, 4),
    "layers.0.blocks.12.out.bias": (4,),
    "rest.head.hidden.weight": (3, 4),
    "rest.head.words.weight": (9, 4),
}


def _params() -> dict:
    rng = np.random.default_rng(0)
    return unflatten_dict({k: rng.normal(size=s).astype("f4") for k, s in SHAPES.items()}, sep="/")


def test_names_shapes_and_values_in_both_directions():
    params = _params()
    tensors = NAMES.to_theirs(params)
    assert {name: x.shape for name, x in tensors.items()} == THEIRS
    key = params["encoder"]["layers"]["attention"]["key"]["kernel"]
    np.testing.assert_array_equal(tensors["blocks.4.attn.qkv.weight"][6:12], key[1].T)
    back = NAMES.to_ours(tensors, jax.eval_shape(lambda: params))
    jax.tree.map(np.testing.assert_array_equal, back, params)
    for sources, results in ((params, tensors), (tensors, back)):
        for result in jax.tree.leaves(results):
            assert result.flags.c_contiguous
            assert not any(np.shares_memory(result, x) for x in jax.tree.leaves(sources))


def test_parameters_are_cast_to_the_template():
    tensors = {name: x.astype(np.float16) for name, x in NAMES.to_theirs(_params()).items()}
    rounded = jax.tree.map(lambda x: x.astype(np.float16).astype(np.float32), _params())
    back = NAMES.to_ours(tensors, _params())
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, y, strict=True), back, rounded)


def test_a_patch_kernel_is_the_convolution():
    params = _params()["patch"]
    kernel = ParamMap({"": Name("", CONVOLUTION)}).to_theirs(params)["weight"]
    image = np.random.default_rng(1).normal(size=(1, 4, 4, 3)).astype(np.float32)
    embedded = to_patches(jnp.asarray(image), 2)[0] @ params["kernel"]
    for place in range(4):
        row, column = 2 * (place // 2), 2 * (place % 2)
        window = image[0, row : row + 2, column : column + 2]
        expected = np.einsum("ijc,ocij->o", window, kernel)
        np.testing.assert_allclose(embedded[place], expected, rtol=1e-4, atol=1e-4)


def test_one_error_lists_everything_wrong_with_a_checkpoint():
    tensors = NAMES.to_theirs(_params())
    del tensors["blocks.3.attn.q_bias"], tensors["cls_token"]
    for name in ("positions.weight", "blocks.4.attn.qkv.weight"):
        tensors[name] = tensors[name].T
    tensors["blocks.5.norm1.weight"] = np.ones(4)
    with pytest.raises(ValueError) as error:
        NAMES.to_ours(tensors, _params())
    first, *lines = str(error.value).splitlines()
    assert "5 problems" in first
    assert {tuple(line.split()[:2]) for line in lines} == {
        ("missing:", "blocks.3.attn.q_bias"),
        ("missing:", "cls_token"),
        ("mis-shaped:", "positions.weight"),
        ("mis-shaped:", "blocks.4.attn.qkv.weight"),
        ("extra:", "blocks.5.norm1.weight"),
    }
    assert any("(4, 18), must be (18, 4)" in line for line in lines)


def test_parameters_that_no_row_names_are_an_error():
    paths = flatten_dict(_params(), sep="/") | {"gate/scale": np.ones(3, np.float32)}
    rows = {path: name for path, name in NAMES.rows.items() if path}
    for call in (ParamMap(rows).to_theirs, lambda params: ParamMap(rows).to_ours({}, params)):
        with pytest.raises(ValueError, match="gate/scale"):
            call(unflatten_dict(paths, sep="/"))
