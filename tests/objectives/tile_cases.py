"""Tiled losses against the dense ones on 1, 2, 4 and 8 devices; run in a process that has eight."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding

from rc3_jax.config import default_config
from rc3_jax.objectives.contrastive import info_nce, sigmoid_loss, soft_cross_entropy
from rc3_jax.objectives.matching import NegativeSampling, has_negative, sample_negatives
from rc3_jax.objectives.tiles import Tiling
from rc3_jax.parallel.mesh import BATCH, BATCH_AXES, make_mesh

LIMIT = {"float32": 2e-6, "bfloat16": 2e-2}  # bfloat16 rounds by up to 2^-8, and more than once


@functools.cache
def mesh_of(data: int, fsdp: int = 1, tensor: int = 1, replica: int = 1):
    config = default_config().mesh
    config.update(data=data, fsdp=fsdp, tensor=tensor, replica=replica)
    return make_mesh(config, jax.devices()[: data * fsdp * tensor * replica])


MESHES = st.sampled_from([(1,), (2,), (4,), (8,), (2, 2), (2, 2, 2), (2, 1, 2, 2)])
cases = st.fixed_dictionaries(
    dict(
        mesh=MESHES,
        per_device=st.integers(1, 9),
        size=st.integers(1, 6),
        tile=st.integers(1, 11),
        transport=st.sampled_from(["gather", "ring"]),
        dtype=st.sampled_from(["float32", "bfloat16"]),
        temperature=st.floats(0.05, 0.5),
        images=st.integers(1, 12),
        seed=st.integers(0, 2**31 - 1),
    )
)
checked = settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    database=None,
    phases=(
        Phase.explicit,
        Phase.generate,
    ),  # every case compiles: looking for smaller ones is slow
)


def unit_rows(rng, rows, size):
    x = rng.normal(size=(rows, size))
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def inputs(case):
    mesh = mesh_of(*case["mesh"])
    rng = np.random.default_rng(case["seed"])
    batch = int(np.prod([mesh.shape[a] for a in BATCH_AXES])) * case["per_device"]
    x, y, target_x, target_y = (unit_rows(rng, batch, case["size"]) for _ in range(4))
    arrays = dict(
        x=jnp.array(x, case["dtype"]),
        y=jnp.array(y, case["dtype"]),
        target_x=jnp.array(target_x, jnp.float32),
        target_y=jnp.array(target_y, jnp.float32),
        groups=jnp.array(rng.integers(case["images"], size=batch)),
        weights=jnp.array(rng.random(batch), jnp.float32),
        extra=jnp.array(rng.uniform(-1, 1, (batch, 2)), jnp.float32),
    )
    arrays = jax.device_put(arrays, NamedSharding(mesh, BATCH))
    return arrays, Tiling(case["transport"], case["tile"], mesh)


def compare(case, loss, *arguments):
    """Value and gradient of `loss(tiling, *arguments)` against the dense form of the same."""
    _, tiling = inputs(case)
    numbers = tuple(range(len(arguments)))

    def of(tiling):
        function = jax.value_and_grad(functools.partial(loss, tiling), numbers)
        return jax.tree.map(np.float64, jax.jit(function)(*arguments))

    (value, gradient), (expected, reference) = of(tiling), of(Tiling())
    limit = LIMIT[case["dtype"]]
    assert abs(value - expected) <= limit * max(1.0, abs(expected)), (value, expected)
    for ours, theirs in zip(gradient, reference, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=limit * np.abs(theirs).max())


@checked
@given(case=cases, with_weights=st.booleans(), with_extra=st.booleans())
def check_info_nce(case, with_weights, with_extra):
    a, _ = inputs(case)

    def loss(tiling, x, y, temperature, weights, extra):
        weights = weights if with_weights else None
        extra = (extra[:, 0], extra[:, 1]) if with_extra else None
        return info_nce(x, y, temperature, a["groups"], weights, extra, tiling)

    temperature = jnp.float32(case["temperature"])
    compare(case, loss, a["x"], a["y"], temperature, a["weights"], a["extra"])


@checked
@given(case=cases, bias=st.floats(-10, 1))
def check_sigmoid(case, bias):
    a, _ = inputs(case)

    def loss(tiling, x, y, temperature, bias, weights):
        return sigmoid_loss(x, y, temperature, bias, a["groups"], weights, tiling=tiling)

    temperature = jnp.float32(case["temperature"])
    compare(case, loss, a["x"], a["y"], temperature, jnp.float32(bias), a["weights"])


@checked
@given(case=cases, share=st.floats(0, 1))
def check_soft_cross_entropy(case, share):
    a, _ = inputs(case)

    def loss(tiling, x, y, temperature):
        cross, entropy = soft_cross_entropy(
            x, y, temperature, a["target_x"], a["target_y"], 0.1, tiling
        )
        return cross + share * entropy

    compare(case, loss, a["x"], a["y"], jnp.float32(case["temperature"]))


@checked
@given(
    case=cases,
    floor=st.sampled_from([0.0, 1e-2]),
    local=st.booleans(),
    random=st.sampled_from([0.0, 0.5]),
)
def check_negatives(case, floor, local, random):
    a, tiling = inputs(case)
    sampling = NegativeSampling(floor, case["per_device"] if local else None, random)

    def draw(tiling):
        function = jax.jit(functools.partial(sample_negatives, tiling=tiling, sampling=sampling))
        temperature = jnp.float32(case["temperature"])
        return function(jax.random.key(case["seed"]), a["x"], a["y"], temperature, a["groups"])

    counted = np.asarray(has_negative(a["groups"], sampling.block_size))  # others mean nothing
    np.testing.assert_array_equal(draw(tiling)[counted], draw(Tiling())[counted])
