"""Joining and splitting rows: nothing is lost, rows stay on their device."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from rc3_jax.objectives.batching import deinterleave, interleave
from tests.processes import run_python


@settings(max_examples=15)  # each compiles
@given(counts=st.lists(st.sampled_from([1, 4, 6, 12]), min_size=1, max_size=4))
def test_deinterleave_undoes_interleave(counts):
    parts = [jnp.arange(n * 2).reshape(n, 2) + 100 * i for i, n in enumerate(counts)]
    joined = interleave(parts)
    assert joined.shape == (sum(counts), 2)
    for part, back in zip(parts, deinterleave(joined, counts), strict=True):
        np.testing.assert_array_equal(part, back)


@settings(max_examples=15)
@given(shares=st.lists(st.integers(1, 4), min_size=1, max_size=3), devices=st.integers(1, 8))
def test_rows_stay_on_the_device_that_holds_them(shares, devices):
    counts = [share * devices for share in shares]
    owners = [np.repeat(np.arange(devices), share) for share in shares]
    joined = np.array(interleave([jnp.array(owner) for owner in owners]))
    np.testing.assert_array_equal(joined, np.repeat(np.arange(devices), sum(shares)))
    assert len(joined) == sum(counts)


def test_joining_sharded_rows_needs_no_communication():
    code = """
import jax, jax.numpy as jnp
from jax.sharding import NamedSharding
from rc3_jax.objectives.batching import deinterleave, interleave
from rc3_jax.parallel.mesh import BATCH
from tests.objectives.tile_cases import mesh_of
rows = NamedSharding(mesh_of(8), BATCH)
shapes = [jax.ShapeDtypeStruct((n, 3), jnp.float32, sharding=rows) for n in (16, 8)]
f = jax.jit(lambda a, b: deinterleave(2 * interleave([a, b]), (16, 8)), out_shardings=rows)
text = f.lower(*shapes).compile().as_text()
words = ("all-gather", "all-to-all", "collective-permute", "all-reduce")
print([word for word in words if word in text])
"""
    assert run_python(code, 8).strip() == "[]"


def test_one_part_is_left_as_it_is():
    x = jax.numpy.arange(6).reshape(3, 2)
    np.testing.assert_array_equal(interleave([x]), x)
