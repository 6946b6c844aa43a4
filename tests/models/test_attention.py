"""Implementations of attention: padding, agreement with the plain form, and which devices have which."""

from __future__ import annotations

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rc3_jax.config import model_settings
from rc3_jax.models.attention import XLA, Attend, padded, splash
from rc3_jax.parallel.mesh import one_device_mesh
from rc3_jax.settings import ConfigError
from tests.processes import run_python
from tests.tiny import tiny_config

HEADS, SIZE = 2, 8
SHARED = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh
from rc3_jax.models.attention import splash
from rc3_jax.parallel.mesh import AXES
devices = np.array(jax.devices()).reshape([{"data": 2, "tensor": 2}.get(axis, 1) for axis in AXES])
query, key, value = jax.random.normal(jax.random.key(0), (3, 4, 128, 2, 8))
mask = jnp.arange(128) < jnp.array([[1], [50], [127], [128]])
def total(query, mesh):
    return (splash(query, key, value, mask, None, False, mesh, interpret=True) ** 2).sum()
gradient = jax.jit(jax.value_and_grad(total), static_argnums=1)
for shared, alone in zip(gradient(query, Mesh(devices, AXES)), gradient(query, None)):
    np.testing.assert_allclose(shared, alone, rtol=1e-5, atol=1e-6)
"""


def _value_and_gradients(attend, queries: int, keys: int, is_causal: bool, has_bias: bool):
    """Of random queries, keys, values and masks, each row with a key that the first query reads."""
    rng = np.random.default_rng(queries + keys)

    def normal(*shape):
        return rng.normal(size=shape).astype(np.float32)

    query, key, value = normal(3, queries, HEADS, SIZE), *normal(2, 3, keys, HEADS, SIZE)
    mask, weights = rng.random((3, keys)) < 0.6, normal(*query.shape)
    mask[:, 0] = True
    bias = normal(1, HEADS, queries, keys) if has_bias else None

    def functional(query, key, value, bias):
        attended = attend(query, key, value, mask, bias, is_causal)
        return jnp.sum(weights * attended), attended

    wanted = (0, 1, 2, 3) if has_bias else (0, 1, 2)
    function = jax.jit(jax.value_and_grad(functional, wanted, has_aux=True))
    (_, attended), gradients = function(query, key, value, bias)
    return attended, *gradients


def _assert_equal(attend, *case):
    for got, want in zip(
        _value_and_gradients(attend, *case), _value_and_gradients(XLA, *case), strict=True
    ):
        np.testing.assert_allclose(got, want, rtol=0, atol=3e-6)


@pytest.mark.parametrize(
    ("queries", "keys", "is_causal", "has_bias"),
    [(5, 7, False, False), (7, 7, True, False), (7, 7, False, True)],
)
@pytest.mark.parametrize("multiple", [2, 128])
def test_padding_changes_neither_outputs_nor_gradients(
    multiple, queries, keys, is_causal, has_bias
):
    attend = functools.partial(padded, XLA, multiple)
    _assert_equal(attend, queries, keys, is_causal, has_bias)


def test_padding_masks_added_keys_where_there_was_no_mask():
    query, key = (np.random.default_rng(n).normal(size=(2, n, 1, 4)) for n in (3, 5))
    got = padded(XLA, 8, query, key, key, None, None, False)
    np.testing.assert_allclose(got, XLA(query, key, key), atol=1e-6)


@pytest.mark.parametrize(("queries", "keys", "is_causal"), [(80, 233, False), (9, 9, True)])
def test_splash_attention_equals_the_plain_form(queries, keys, is_causal):
    attend = functools.partial(padded, functools.partial(splash, interpret=True), 128)
    _assert_equal(attend, queries, keys, is_causal, False)


def _lowered_for_cuda(attend, keys: int, has_mask: bool = True) -> str:
    def functional(query, key, mask):
        return attend(query, key, key, mask).astype(jnp.float32).sum()

    def shape(length):
        return jax.ShapeDtypeStruct((4, length, 12, 64), jnp.bfloat16)

    mask = jax.ShapeDtypeStruct((4, keys), bool) if has_mask else None
    traced = jax.jit(jax.grad(functional, (0, 1))).trace(shape(40), shape(keys), mask)
    return traced.lower(lowering_platforms=("cuda",)).as_text()


def test_cudnn_takes_odd_lengths(monkeypatch):
    version = types.SimpleNamespace(cudnn_get_version=lambda: 91000)
    monkeypatch.setattr("jax._src.cudnn.fused_attention_stablehlo.cuda_versions", version)
    text = _lowered_for_cuda(Attend("cudnn"), 233)
    assert "fmhaScaleBiasSoftmax(" in text and "fmhaScaleBiasSoftmaxBackward(" in text
    assert "4x234x12x64" in text
    assert "4x198x12x64" in _lowered_for_cuda(Attend("cudnn"), 197, has_mask=False)
    unpadded = functools.partial(jax.nn.dot_product_attention, implementation="cudnn")
    with pytest.raises(NotImplementedError, match="233"):
        _lowered_for_cuda(
            lambda q, k, v, mask: unpadded(
                q, k, v, mask=jnp.broadcast_to(mask[:, None, None], (4, 1, 40, 233))
            ),
            233,
        )


def _mesh(platform: str, kind: str, capability: str = "", version: str = ""):
    client = types.SimpleNamespace(platform_version=version)
    device = types.SimpleNamespace(
        platform=platform, device_kind=kind, compute_capability=capability, client=client
    )
    return types.SimpleNamespace(devices=np.array([device], object))


H100 = _mesh("gpu", "NVIDIA H100 80GB HBM3", "9.0", "cuda 13000")
T4 = _mesh("gpu", "Tesla T4", "7.5", "cuda 12090")
MI300 = _mesh("gpu", "AMD Instinct MI300X", "9.4", "rocm 60300")
V5E = _mesh("tpu", "TPU v5 lite")


@pytest.mark.parametrize(
    ("setting", "dtype", "mesh", "expected"),
    [
        ("auto", "bfloat16", H100, "xla"),
        ("auto", "bfloat16", V5E, "xla"),
        ("auto", "float32", one_device_mesh(), "xla"),
        ("splash", "bfloat16", V5E, "splash"),
        ("cudnn", "bfloat16", H100, "cudnn"),
        ("xla", "bfloat16", H100, "xla"),
        ("cudnn", "bfloat16", None, "xla"),  # such as for shapes alone
    ],
)
def test_what_the_setting_stands_for(setting, dtype, mesh, expected):
    assert Attend.of(setting, dtype, mesh).name == expected


@pytest.mark.parametrize(
    ("setting", "dtype", "mesh", "reason"),
    [
        ("cudnn", "bfloat16", V5E, "NVIDIA.*TPU v5 lite"),
        ("cudnn", "bfloat16", MI300, "NVIDIA"),
        ("cudnn", "bfloat16", T4, "8.0.*Tesla T4"),
        ("cudnn", "float32", H100, "model.dtype=float32"),
        ("splash", "bfloat16", H100, "TPUs alone.*H100"),
        ("splash", "bfloat16", one_device_mesh(), "TPUs alone.*cpu"),
    ],
)
def test_what_devices_do_not_have_is_an_error(setting, dtype, mesh, reason):
    with pytest.raises(
        ConfigError, match=f"model.attention={setting}: .*{reason}.*use auto or xla"
    ):
        Attend.of(setting, dtype, mesh)
    assert Attend.of("auto", dtype, mesh) == Attend.of("xla", dtype, mesh) == XLA


def test_arguments_that_an_implementation_cannot_take():
    tokens, bias = jnp.ones((2, 4, 1, 12)), jnp.zeros((1, 1, 4, 4))
    for name, arguments, reason in (
        ("cudnn", (), "width 12"),
        ("splash", (None, bias), "relative positions"),
    ):
        with pytest.raises(ConfigError, match=f"{reason}.*; use auto or xla"):
            Attend(name)(tokens, tokens, tokens, *arguments)
        assert XLA(tokens, tokens, tokens, *arguments).shape == tokens.shape


def test_cudnn_takes_no_bias_of_many_rows_on_several_devices():
    tokens, bias = jnp.ones((2, 4, 1, 16)), jnp.zeros((2, 1, 4, 4))
    with pytest.raises(ConfigError, match="model.attention=cudnn: .*shifted windows"):
        Attend("cudnn", types.SimpleNamespace(size=2))(tokens, tokens, tokens, None, bias)


def test_splash_attention_of_shared_rows_and_heads_equals_that_of_one_device():
    run_python(SHARED, devices=4)


def test_a_stored_model_runs_on_devices_of_any_kind(tmp_path):
    stored = tiny_config().model.to_dict() | {"attention": "cudnn"}
    assert model_settings("rc3", stored, tmp_path).attention == "auto"
