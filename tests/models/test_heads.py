"""Heads against the same formulas in float64, and their float32 results."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from rc3_jax.models.heads import MaskedLMHead, MLPHead, Projection

WIDTH = 12


def _normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def _random_params(module, *args) -> dict:
    rng = np.random.default_rng(5)
    template = jax.eval_shape(module.init, jax.random.key(0), *args)["params"]
    return jax.tree.map(lambda x: rng.normal(0, 0.5, x.shape).astype(x.dtype), template)


def _linear(params: dict, x: np.ndarray) -> np.ndarray:
    return x @ np.float64(params["kernel"]) + params["bias"]


def _gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def _norm(params: dict, x: np.ndarray) -> np.ndarray:
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return x * params["scale"] + params["bias"]


def test_matching_logits():
    x, head = _normal(5, WIDTH), MLPHead(2)
    params = _random_params(head, x)
    hidden = _gelu(_norm(params["hidden_norm"], _linear(params["hidden"], x)))
    expected = _linear(params["logits"], hidden)
    assert expected.shape == (5, 2)
    np.testing.assert_allclose(head.apply({"params": params}, x), expected, atol=1e-4)


def test_states_of_masked_tokens():
    x, head = _normal(2, 3, WIDTH), MaskedLMHead()
    params = _random_params(head, x)
    expected = _norm(params["hidden_norm"], _gelu(_linear(params["hidden"], x)))
    np.testing.assert_allclose(head.apply({"params": params}, x), expected, atol=1e-4)


def test_projection_of_bfloat16_is_a_float32_unit_vector():
    x, head = 100 * _normal(4, WIDTH), Projection(6)
    params = _random_params(head, x)
    vectors = head.apply({"params": params}, jnp.bfloat16(x))
    assert vectors.dtype == jnp.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=-1), 1.0, atol=1e-6)
    expected = _linear(params["linear"], x)
    expected /= np.linalg.norm(expected, axis=-1, keepdims=True)
    np.testing.assert_allclose(vectors, expected, atol=0.03)
