"""Every tiling gives what the dense matrix gives, and takes the memory that it promises."""

import json

import pytest

from tests.processes import run_python


@pytest.mark.slow
def test_every_tiling_equals_the_dense_matrix():
    checks = ("info_nce", "sigmoid", "soft_cross_entropy", "negatives")
    calls = "\n".join(f"cases.check_{name}()" for name in checks)
    run_python(f"from tests.objectives import tile_cases as cases\n{calls}", devices=8)


MEMORY = """
import json, jax, jax.numpy as jnp
from jax.sharding import NamedSharding
from rc3_jax.objectives.contrastive import info_nce, soft_cross_entropy
from rc3_jax.objectives.tiles import Tiling
from rc3_jax.parallel.mesh import BATCH
from tests.objectives.tile_cases import mesh_of

mesh = mesh_of(8)
rows = NamedSharding(mesh, BATCH)

def temporaries(form, transport, batch, size=128, tile=256):
    tiling = Tiling(transport, tile, mesh)
    vectors = [jax.ShapeDtypeStruct((batch, size), jnp.float32, sharding=rows)] * 4
    groups = jax.ShapeDtypeStruct((batch,), jnp.int32, sharding=rows)
    def loss(x, y, tau, a, b, groups):
        if form == "info_nce":
            return info_nce(x, y, tau, groups, tiling=tiling)
        return soft_cross_entropy(x, y, tau, a, b, 0.1, tiling)[0]
    function = jax.jit(jax.value_and_grad(loss, (0, 1, 2)), out_shardings=(None, (rows, rows, None)))
    tau = jax.ShapeDtypeStruct((), jnp.float32)
    compiled = function.lower(*vectors[:2], tau, *vectors[2:], groups).compile()
    return compiled.memory_analysis().temp_size_in_bytes

print(json.dumps({
    f"{form} {transport}": [temporaries(form, transport, batch) for batch in (8192, 16384)]
    for form in ("info_nce", "soft") for transport in ("gather", "ring")
}))
"""


def test_memory_grows_with_the_batch_and_not_with_its_square():
    """Temporary bytes a device for 8,192 and 16,384 rows of 128 numbers in tiles of 256."""
    found = json.loads(run_python(MEMORY, devices=8).splitlines()[-1])
    for name, (small, large) in found.items():
        assert large <= 2.1 * small, name
    local, numbers, tile = 16384 // 8, 128, 256
    one = 4 * (local * tile + local * numbers)  # a tile of logits, and one side's vectors
    everything = 4 * 16384 * numbers
    assert found["info_nce ring"][1] <= 4 * one
    assert found["info_nce gather"][1] <= 4 * one + 2.2 * everything
    for transport in ("gather", "ring"):
        assert found[f"soft {transport}"][1] <= 2.5 * found[f"info_nce {transport}"][1]
