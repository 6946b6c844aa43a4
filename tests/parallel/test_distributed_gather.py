"""Rows fetched from other devices are those that indexing gives, and so are their gradients."""

from tests.processes import run_python

CODE = """
import jax, jax.numpy as jnp, numpy as np
from hypothesis import given, settings, strategies as st
from jax.sharding import NamedSharding
from rc3_jax.parallel.distributed_gather import gather_rows
from rc3_jax.parallel.mesh import BATCH
from tests.objectives.tile_cases import mesh_of

@settings(max_examples=12, deadline=None, derandomize=True, database=None)
@given(
    axes=st.sampled_from([(1,), (2,), (8,), (2, 2), (2, 2, 1, 2)]),
    per_device=st.integers(1, 5),
    crowd=st.booleans(),
    seed=st.integers(0, 2**31 - 1),
)
def check(axes, per_device, crowd, seed):
    mesh = mesh_of(*axes)
    rng = np.random.default_rng(seed)
    batch = per_device * int(np.prod([mesh.shape[a] for a in ("replica", "data", "fsdp")]))
    wanted = rng.integers(min(batch, per_device) if crowd else batch, size=batch)
    rows = {"x": rng.normal(size=(batch, 3, 2)).astype("f"), "mask": rng.random((batch, 3)) < 0.5}
    weights = rng.normal(size=(batch, 3, 2)).astype("f")
    sharding = NamedSharding(mesh, BATCH)
    given_rows, given_wanted = jax.device_put((rows, wanted), sharding)

    def weighted(x, fetch):
        fetched = fetch({"x": x, "mask": given_rows["mask"]}, given_wanted)
        return jnp.sum(weights * fetched["x"] ** 2), fetched["mask"]

    ways = (lambda r, w: gather_rows(mesh, r, w), lambda r, w: jax.tree.map(lambda a: a[w], r))
    found, expected = (
        jax.jit(jax.value_and_grad(lambda x: weighted(x, way), has_aux=True))(given_rows["x"])
        for way in ways
    )
    np.testing.assert_array_equal(found[0][1], rows["mask"][wanted])
    np.testing.assert_allclose(found[0][0], expected[0][0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-5, atol=1e-5)

check()
"""


def test_fetched_rows_and_their_gradients():
    run_python(CODE, devices=8)
