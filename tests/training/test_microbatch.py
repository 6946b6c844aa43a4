"""Micro-batches: the gradient of the whole batch, with a part of the activations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rc3_jax.data.example import abstract_batch
from rc3_jax.data.stream import KINDS, batch_rows
from rc3_jax.models.rc3 import build_rc3
from rc3_jax.parallel.mesh import one_device_mesh
from rc3_jax.training.optimizer import make_optimizer
from rc3_jax.training.run import Run
from rc3_jax.training.state import initial_params
from rc3_jax.training.step import loss_function, make_step
from tests.tiny import load_config
from tests.training.test_step import prepared


@pytest.mark.parametrize(
    ("parts", "regularizer"), [(2, ("weighted", "hinge")), (4, ("soft", "mse"))]
)
def test_the_gradient_is_that_of_the_whole_batch(parts, regularizer):
    run, params, batch = prepared()
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda p: p + 0.02 * rng.normal(size=p.shape).astype(np.float32), params)

    def gradient(microbatches):
        config = run.config.copy_and_resolve_references()
        config.objective.update(regularizer=regularizer, ramp=0.0)
        config.microbatches = microbatches
        loss = loss_function(run.model, config, run.mesh)
        return jax.jit(jax.value_and_grad(loss, has_aux=True))(params, None, jnp.int32(5), batch)

    (whole, terms), expected = gradient(1)
    (value, in_parts), found = gradient(parts)
    np.testing.assert_allclose(value, whole, rtol=2e-6)
    for name in terms:
        np.testing.assert_allclose(in_parts[name], terms[name], rtol=2e-6, err_msg=name)
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected))
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-6 * largest)


def widened(microbatches: int) -> Run:
    """The demo's model, eight times as wide, without data."""
    config = load_config("rc3_demo")
    for part in (config.model.text, config.model.patch):
        part.update(width=512, mlp_width=2048, heads=8)
    config.microbatches = microbatches
    mesh = one_device_mesh()
    model = build_rc3(config.model, config.data.tokenizer.vocab_size, mesh)
    params = jax.eval_shape(lambda: initial_params(model, config))
    optimizer = make_optimizer(config.optimizer, config.steps, params)
    return Run(config, mesh, None, None, model, optimizer, None)


def temporaries(run: Run) -> int:
    config = run.config
    batch = abstract_batch(config, batch_rows(config.batch_size, config.shares, KINDS))
    state = run.abstract_state()
    fast = {"xla_backend_optimization_level": 0}
    compiled = make_step(run, state).lower(state, batch).compile(compiler_options=fast)
    analysis = compiled.memory_analysis()
    print(f"{config.microbatches} parts: {analysis.temp_size_in_bytes / 2**20:.0f} MiB")
    return analysis.temp_size_in_bytes


@pytest.mark.slow
def test_eight_parts_take_less_than_a_third_of_the_memory():
    assert 3 * temporaries(widened(8)) < temporaries(widened(1))
