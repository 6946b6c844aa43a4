"""Micro-batches: the gradient of the whole batch, with a part of the activations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rc3_jax.data.kinds import KINDS
from rc3_jax.data.stream import batch_rows
from rc3_jax.systems import system_of
from rc3_jax.training.aot import abstract_run, compile_ahead
from tests.tiny import load_config, tiny_config
from tests.training.test_step import prepared


@pytest.mark.slow
@pytest.mark.parametrize(
    ("parts", "regularizer"), [(8, ("weighted", "hinge")), (4, ("soft", "mse"))]
)
def test_the_gradient_is_that_of_the_whole_batch(parts, regularizer):
    run, params, batch = prepared(batch_size=32)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda p: p + 0.02 * rng.normal(size=p.shape).astype(np.float32), params)

    def gradient(microbatches):
        config = tiny_config()
        config.objective.update(regularizer=regularizer, ramp=0.0)
        config.microbatches = microbatches
        loss = system_of(config).loss(run.model, config, run.mesh)
        return jax.jit(jax.value_and_grad(loss, has_aux=True))(params, None, jnp.int32(5), batch)

    (whole, terms), expected = gradient(1)
    (value, in_parts), found = gradient(parts)
    np.testing.assert_allclose(value, whole, rtol=2e-6)
    for name in terms:
        np.testing.assert_allclose(in_parts[name], terms[name], rtol=2e-6, err_msg=name)
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected))
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-6 * largest)


def temporaries(microbatches: int) -> int:
    """Of a step of the demo's model, eight times as wide."""
    config = load_config("rc3_demo")
    for part in (config.model.text, config.model.patch):
        part.update(width=512, mlp_width=2048, heads=8)
    config.microbatches = microbatches
    rows = batch_rows(config.batch_size, config.batch_mix, KINDS)
    run = abstract_run(config, jax.devices()[:1], rows, config.data.tokenizer.vocab_size)
    compiled = compile_ahead(run, rows)
    found = compiled.memory_analysis().temp_size_in_bytes
    print(f"{microbatches} parts: {found / 2**20:.0f} MiB of temporaries")
    return found


@pytest.mark.slow
def test_eight_parts_take_less_than_a_third_of_the_memory():
    assert 3 * temporaries(8) < temporaries(1)
