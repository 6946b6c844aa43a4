"""Attention, blocks and their stack: values, masks, precision, and the ways to compile them."""

from __future__ import annotations

import functools

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

from rc3_jax.models.layers import (
    Attention,
    AttentionPool,
    Block,
    Stack,
    l2_normalise,
    masked_mean,
)

WIDTH, HEADS, MLP_WIDTH, DEPTH, VIEW_WIDTH = 12, 3, 20, 3, 10


def _normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def _key(seed: int):
    """Of the generator that compiles fastest."""
    return jax.random.key(seed, impl="unsafe_rbg")


def _random_variables(module, *args, scale: float = 0.3):
    """Every parameter random, norms and biases too."""
    rng = np.random.default_rng(5)
    template = jax.eval_shape(lambda: module.init(jax.random.key(0), *args))
    return jax.tree.map(lambda x: rng.normal(0, scale, x.shape).astype(x.dtype), template)


def _attention_by_loops(params, queries, keys, mask, heads: int) -> np.ndarray:
    """Textbook attention in float64, one row, head and query at a time."""

    def linear(name, x):
        return x @ np.float64(params[name]["kernel"]) + np.float64(params[name]["bias"])

    query, key, value = linear("query", queries), linear("key", keys), linear("value", keys)
    size = query.shape[-1] // heads
    attended = np.zeros_like(query)
    for row in range(len(query)):
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            for i in range(query.shape[1]):
                logits = key[row, mask[row], part] @ query[row, i, part] / np.sqrt(size)
                weights = np.exp(logits - logits.max())
                attended[row, i, part] = weights / weights.sum() @ value[row, mask[row], part]
    return linear("out", attended)


@pytest.mark.parametrize("heads", [1, 3, 12])
def test_attention_equals_the_textbook(heads):
    queries, keys = _normal(3, 5, WIDTH), _normal(3, 7, VIEW_WIDTH, seed=1)
    mask = np.arange(7) < np.array([[7], [4], [1]])
    module = Attention(heads)
    variables = _random_variables(module, queries, keys, mask)
    expected = _attention_by_loops(variables["params"], queries, keys, mask, heads)
    np.testing.assert_allclose(module.apply(variables, queries, keys, mask), expected, atol=1e-5)
    expected = _attention_by_loops(variables["params"], queries, keys, mask | True, heads)
    np.testing.assert_allclose(module.apply(variables, queries, keys), expected, atol=1e-5)


def _stack(**options) -> Stack:
    settings = dict(pre_norm=False, epsilon=1e-5, cross_attention=True) | options
    return Stack(DEPTH, HEADS, MLP_WIDTH, **settings)


def _inputs(seed: int = 0) -> tuple[np.ndarray, ...]:
    """Tokens and a context of another width, each with a mask, two rows."""
    x, context = _normal(2, 5, WIDTH, seed=seed), _normal(2, 4, VIEW_WIDTH, seed=seed + 1)
    return x, np.arange(5) < [[5], [3]], context, np.arange(4) < [[2], [4]]


@functools.cache
def _stack_variables():
    """The same for every option: none of them is to change the parameters."""
    return _random_variables(_stack(), *_inputs())


_apply_stack = jax.jit(_stack().apply)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_masked_tokens_have_no_influence(data):
    def any_mask(length):
        rows = st.lists(st.booleans(), min_size=length, max_size=length).filter(any)
        return np.array(data.draw(st.tuples(rows, rows)))

    x, _, context, _ = _inputs()
    mask, context_mask = any_mask(5), any_mask(4)
    scale = data.draw(st.sampled_from([1.0, 1e4]))
    other_x = np.where(mask[..., None], x, scale * _normal(*x.shape, seed=9))
    other_context = np.where(context_mask[..., None], context, scale * _normal(*context.shape))
    variables = _stack_variables()
    states = np.asarray(_apply_stack(variables, x, mask, context, context_mask))
    others = np.asarray(_apply_stack(variables, other_x, mask, other_context, context_mask))
    np.testing.assert_array_equal(others[mask], states[mask])


def test_masked_tokens_get_no_gradient_and_the_others_do():
    module, (_, _, keys, mask) = Attention(HEADS), _inputs()
    queries = _normal(2, 5, WIDTH)
    variables = _random_variables(module, queries, keys, mask)

    def functional(keys):
        return jnp.sum(module.apply(variables, queries, keys, mask) * _normal(2, 5, WIDTH, seed=3))

    largest = np.abs(jax.grad(functional)(keys)).max(axis=-1)
    assert (largest[~mask] == 0).all() and (largest[mask] > 1e-3).all()


@pytest.mark.parametrize("pre_norm", [False, True])
@pytest.mark.parametrize("cross_attention", [False, True])
def test_stack_is_its_blocks_one_after_another(pre_norm, cross_attention):
    options = dict(pre_norm=pre_norm, epsilon=1e-5, cross_attention=cross_attention)
    x, mask, context, context_mask = _inputs()
    if not cross_attention:
        context = context_mask = None
    stack = _stack(**options)
    variables = _random_variables(stack, x, mask, context, context_mask)
    block = Block(HEADS, MLP_WIDTH, **options)
    expected = x
    for layer in range(DEPTH):
        params = jax.tree.map(lambda leaf, i=layer: leaf[i], variables["params"]["layers"])
        expected = block.apply({"params": params}, expected, mask, context, context_mask, True)
    actual = stack.apply(variables, x, mask, context, context_mask)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5)


def test_layers_start_from_different_parameters():
    stack = _stack(cross_attention=False)
    params = jax.jit(stack.init)(_key(0), _inputs()[0])["params"]
    kernel = params["layers"]["mlp_in"]["kernel"]
    assert kernel.shape == (DEPTH, WIDTH, MLP_WIDTH)
    assert not np.allclose(kernel[0], kernel[1]) and not np.allclose(kernel[1], kernel[2])


def _block_by_hand(params, x, mask, context, context_mask, pre_norm: bool) -> np.ndarray:
    def norm(name, y):
        p = params[f"{name}_norm"]
        y = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-5)
        return y * p["scale"] + p["bias"]

    def feed_forward(y):
        y = y @ params["mlp_in"]["kernel"] + params["mlp_in"]["bias"]
        y = np.asarray(jax.nn.gelu(y, approximate=False))
        return y @ params["mlp_out"]["kernel"] + params["mlp_out"]["bias"]

    def attend(name, y, keys, key_mask):
        return _attention_by_loops(params[name], y, keys, key_mask, HEADS)

    for name, function in (
        ("self_attention", lambda y: attend("self_attention", y, y, mask)),
        ("cross_attention", lambda y: attend("cross_attention", y, context, context_mask)),
        ("mlp", feed_forward),
    ):
        x = x + function(norm(name, x)) if pre_norm else norm(name, x + function(x))
    return x


@pytest.mark.parametrize("pre_norm", [False, True])
def test_block_is_three_residual_parts(pre_norm):
    x, mask, context, context_mask = _inputs()
    block = Block(HEADS, MLP_WIDTH, pre_norm, epsilon=1e-5, cross_attention=True)
    variables = _random_variables(block, *_inputs(), True)
    expected = _block_by_hand(variables["params"], *_inputs(), pre_norm)
    actual = block.apply(variables, x, mask, context, context_mask, True)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-5)


@functools.cache
def _value_and_gradient(remat: str, unroll: int):
    """With dropout, which a recomputation has to repeat."""
    stack = _stack(cross_attention=False, dropout=0.5, remat=remat, unroll=unroll)
    x, mask, *_ = _inputs()
    weights = _normal(*x.shape, seed=3)

    def functional(variables):
        rngs = {"dropout": _key(1)}
        return jnp.sum(weights * stack.apply(variables, x, mask, deterministic=False, rngs=rngs))

    fast_compile = {"xla_backend_optimization_level": 0}
    function = jax.jit(jax.value_and_grad(functional), compiler_options=fast_compile)
    return function(_random_variables(stack, x, mask))


@pytest.mark.parametrize("remat, unroll", [("dots", 1), ("full", 2), ("none", DEPTH + 2)])
def test_remat_and_unroll_change_neither_value_nor_gradient(remat, unroll):
    value, gradient = _value_and_gradient(remat, unroll)
    expected_value, expected_gradient = _value_and_gradient("none", 1)
    np.testing.assert_allclose(value, expected_value, rtol=1e-5)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=0, atol=2e-5),
        gradient,
        expected_gradient,
    )


def test_dropout_is_of_the_key_and_of_the_layer():
    """Two layers with the same parameters, whose feed-forward gives its bias of one."""
    stack = Stack(2, HEADS, MLP_WIDTH, True, 1e-5, dropout=0.5)
    x = np.zeros((1, 20, WIDTH), np.float32)
    variables = jax.eval_shape(stack.init, jax.random.key(0), x)
    variables = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), variables)
    variables["params"]["layers"]["mlp_out"]["bias"][:] = 1.0

    @jax.jit
    def apply(key):
        return stack.apply(variables, x, deterministic=False, rngs={"dropout": key})

    first, other = (np.asarray(apply(_key(seed))) for seed in (0, 1))
    np.testing.assert_array_equal(apply(_key(0)), first)
    assert not np.array_equal(first, other)
    np.testing.assert_array_equal(np.unique(first), [0.0, 2.0, 4.0])


def test_remat_keeps_less_for_the_backward_pass():
    def kept_bytes(remat):
        stack = _stack(remat=remat)

        def backward(variables):
            return jax.vjp(lambda v: stack.apply(v, *_inputs()), variables)[1]

        leaves = jax.tree.leaves(jax.eval_shape(backward, _stack_variables()))
        return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)

    assert kept_bytes("full") < kept_bytes("dots") < kept_bytes("none")


def _equations(jaxpr):
    """All equations, of inner computations too."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")
        ):
            if hasattr(inner, "eqns"):
                yield from _equations(inner)


def test_bfloat16_compute_keeps_parameters_and_statistics_in_float32():
    stack = _stack(dtype=jnp.bfloat16)
    x, mask, context, context_mask = _inputs()
    inputs = (jnp.bfloat16(x), mask, jnp.bfloat16(context), context_mask)
    variables = jax.eval_shape(stack.init, jax.random.key(0), *inputs)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
    assert jax.eval_shape(stack.apply, variables, *inputs).dtype == jnp.bfloat16
    types = {}
    for equation in _equations(jax.make_jaxpr(stack.apply)(variables, *inputs).jaxpr):
        for operand in equation.invars[:1]:
            types.setdefault(equation.primitive.name, set()).add(operand.aval.dtype.name)
    assert types["dot_general"] == {"bfloat16"}
    assert types["exp"] == types["rsqrt"] == types["reduce_sum"] == {"float32"}


def test_bfloat16_attention_tells_large_logits_apart():
    """Logits of 100 and 100.25 are one number in bfloat16."""
    queries = jnp.array([[[16.0, 1.0, 0.0, 0.0]]], jnp.bfloat16)
    keys = jnp.array([[[12.5, 0.5, 1.0, 0.0], [12.5, 0.0, -1.0, 0.0]]], jnp.bfloat16)
    module = Attention(heads=1, dtype=jnp.bfloat16)
    params = jax.tree.map(jnp.zeros_like, module.init(jax.random.key(0), queries, keys)["params"])
    params["query"]["kernel"] = params["out"]["kernel"] = jnp.eye(4)
    params["key"]["kernel"] = jnp.diag(jnp.array([1.0, 1.0, 0.0, 0.0]))
    params["value"]["kernel"] = jnp.diag(jnp.array([0.0, 0.0, 1.0, 0.0]))
    attended = module.apply({"params": params}, queries, keys)
    np.testing.assert_allclose(np.float32(attended)[0, 0], [0, 0, np.tanh(0.125), 0], atol=1e-2)


def test_attention_pool_is_attention_of_the_learned_query():
    tokens, mask = _normal(3, 4, WIDTH), np.arange(4) < [[4], [2], [1]]
    module = AttentionPool(HEADS)
    variables = _random_variables(module, tokens, mask)
    params = variables["params"]
    query = np.broadcast_to(params["query"], (3, 1, WIDTH))
    expected = _attention_by_loops(params["attention"], query, tokens, mask, HEADS)[:, 0]
    np.testing.assert_allclose(module.apply(variables, tokens, mask), expected, atol=1e-5)


def test_masked_mean():
    tokens = jnp.asarray(100 + _normal(3, 4, WIDTH), jnp.bfloat16)
    mask = np.arange(4) < [[4], [3], [0]]
    mean = masked_mean(tokens, mask)
    assert mean.dtype == jnp.float32
    exact = np.asarray(tokens, np.float64)
    expected = [exact[0].mean(axis=0), exact[1, :3].mean(axis=0), np.zeros(WIDTH)]
    np.testing.assert_allclose(mean, expected, rtol=1e-6)


def test_l2_normalise():
    x = 1e3 * _normal(4, WIDTH)
    expected = x / np.linalg.norm(x, axis=-1, keepdims=True)
    np.testing.assert_allclose(l2_normalise(x), expected, rtol=1e-5)
    assert l2_normalise(jnp.bfloat16(x)).dtype == jnp.float32
    gradient = jax.grad(lambda x: l2_normalise(x).sum())(jnp.zeros((2, WIDTH)))
    assert np.isfinite(gradient).all()


def test_rows_that_share_a_context_read_it_as_if_each_had_a_copy():
    stack = _stack()
    x, context = _normal(6, 5, WIDTH), _normal(2, 4, VIEW_WIDTH, seed=1)
    mask, context_mask = (
        np.arange(5) < np.array([[5], [2]] * 3),
        np.arange(4) < np.array([[4], [3]]),
    )
    variables = _random_variables(stack, x, mask, np.repeat(context, 3, 0), None)

    def value(variables, x, context, copies):
        seen = (jnp.repeat(c, copies, axis=0) for c in (context, context_mask))
        return jnp.sum(jnp.sin(stack.apply(variables, x, mask, *seen)))

    shared, copied = (
        jax.value_and_grad(value, (0, 1, 2))(variables, x, context, copies) for copies in (1, 3)
    )
    for got, want in zip(jax.tree.leaves(shared), jax.tree.leaves(copied), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="6 rows"):
        stack.apply(variables, x, mask, _normal(4, 4, VIEW_WIDTH), None)
