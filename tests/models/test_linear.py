"""Linear maps and GELU against flax's, PyTorch's and XLA's own gradients."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from rc3_jax.models.linear import apply_together, dense, gelu
from tests.processes import run_python

SHAPES = [((3, 5, 8), 4), ((2, 8), 24), ((7, 2, 3, 6), 6)]


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize(("shape", "width"), SHAPES)
def test_values_and_gradients_are_those_of_flax(shape, width, use_bias):
    x = jax.random.normal(jax.random.key(0), shape)
    ours, theirs = dense(width, jnp.float32, use_bias=use_bias), nn.Dense(width, use_bias)
    params = ours.init(jax.random.key(1), x)
    assert jax.tree.structure(params) == jax.tree.structure(theirs.init(jax.random.key(1), x))

    def value(module, params, x):
        return jnp.sum(jnp.sin(module.apply(params, x)))

    for got, want in zip(
        jax.tree.leaves(jax.value_and_grad(value, (1, 2))(ours, params, x)),
        jax.tree.leaves(jax.value_and_grad(value, (1, 2))(theirs, params, x)),
        strict=True,
    ):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


class Maps(nn.Module):
    """Three maps of one input, one of them without a bias; by flax, one by one, or by us together."""

    by_flax: bool

    @nn.compact
    def __call__(self, x):
        maps = [("query", True), ("key", False), ("value", True)]
        if self.by_flax:
            return [nn.Dense(6, use_bias, name=name)(x) for name, use_bias in maps]
        return apply_together(x, *(dense(6, jnp.float32, name, bias) for name, bias in maps))


@pytest.mark.parametrize("inputs", [4, 24])
def test_maps_together_are_those_of_flax_one_by_one(inputs):
    x = jax.random.normal(jax.random.key(0), (3, 5, inputs))
    ours, theirs = Maps(False), Maps(True)
    params = ours.init(jax.random.key(1), x)
    assert jax.tree.structure(params) == jax.tree.structure(theirs.init(jax.random.key(1), x))

    def value(module, params, x):
        return sum(jnp.sum(jnp.sin(n * y)) for n, y in enumerate(module.apply(params, x), 1))

    jaxpr = str(jax.make_jaxpr(lambda x: ours.apply(params, x))(x))
    assert jaxpr.count("dot_general") == 1
    for got, want in zip(
        jax.tree.leaves(jax.value_and_grad(value, (1, 2))(ours, params, x)),
        jax.tree.leaves(jax.value_and_grad(value, (1, 2))(theirs, params, x)),
        strict=True,
    ):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def check_shared_columns():
    """In a process with two devices: see the test below."""
    mesh = jax.make_mesh((2,), ("tensor",))
    x = jnp.ones((4, 8))
    params = jax.jit(Maps(False).init)(jax.random.key(0), x)
    columns = jax.tree.map(
        lambda p: NamedSharding(mesh, PartitionSpec(*(None,) * (p.ndim - 1), "tensor")), params
    )
    rows = NamedSharding(mesh, PartitionSpec())
    compiled = jax.jit(Maps(False).apply, in_shardings=(columns, rows)).lower(params, x).compile()
    text = compiled.as_text()
    for kind in ("all-gather", "all-to-all", "all-reduce", "collective-permute"):
        assert kind not in text, kind
    for outputs in compiled.output_shardings:
        assert outputs.shard_shape((4, 6)) == (4, 3)


def test_maps_together_move_nothing_between_devices_that_share_their_columns():
    run_python("from tests.models.test_linear import *; check_shared_columns()", devices=2)


def test_bfloat16_rounds_once():
    x = jax.random.normal(jax.random.key(0), (6, 8))
    ours, theirs = dense(4, jnp.bfloat16), nn.Dense(4, dtype=jnp.bfloat16)
    params = ours.init(jax.random.key(1), x)
    assert ours.apply(params, x).dtype == jnp.bfloat16
    np.testing.assert_array_equal(ours.apply(params, x), theirs.apply(params, x))


def test_gradients_in_bfloat16_are_those_of_flax_within_its_rounding():
    x = jax.random.normal(jax.random.key(0), (3, 6, 24)).astype(jnp.bfloat16)
    ours, theirs = dense(4, jnp.bfloat16), nn.Dense(4, dtype=jnp.bfloat16)
    params = ours.init(jax.random.key(1), x)

    def value(module, params, x):
        return jnp.sum(module.apply(params, x).astype(jnp.float32) ** 2)

    for got, want in zip(
        jax.tree.leaves(jax.grad(value, (1, 2))(ours, params, x)),
        jax.tree.leaves(jax.grad(value, (1, 2))(theirs, params, x)),
        strict=True,
    ):
        assert got.dtype == want.dtype
        got, want = (np.asarray(leaf, np.float32) for leaf in (got, want))
        np.testing.assert_allclose(got, want, rtol=0.03, atol=0.03 * np.abs(want).max())


def test_gelu_and_its_gradient_are_those_of_pytorch():
    torch = pytest.importorskip("torch", reason="PyTorch is the reference")
    x = np.concatenate([np.linspace(-12, 12, 1001), [-40.0, 40.0]]).astype(np.float32)
    theirs = torch.tensor(x, requires_grad=True)
    torch.nn.functional.gelu(theirs).sum().backward()
    np.testing.assert_allclose(gelu(x), torch.nn.functional.gelu(theirs).detach(), atol=2e-6)
    np.testing.assert_allclose(jax.vmap(jax.grad(gelu))(x), theirs.grad, atol=2e-6)


def test_gelu_keeps_only_its_input_for_the_backward_pass():
    x = jnp.ones((4, 8))
    _, backward = jax.vjp(gelu, x)
    kept = jax.tree.leaves(backward)
    assert sum(leaf.size for leaf in kept if jnp.shape(leaf) == x.shape) == x.size
