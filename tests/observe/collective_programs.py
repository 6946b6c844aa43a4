"""Functions whose collectives are known, compiled for eight devices; `main` prints their texts."""

import json

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

ROWS = P(("data", "fsdp"))


def loops(x):
    """x: [16, 8] on a device."""

    def inner(c, _):
        return jnp.tanh(lax.psum(c, "data")), None

    def outer(c, _):
        c, _ = lax.scan(inner, c, None, length=3)
        everything = lax.all_gather(jnp.sin(c), "fsdp", tiled=True)
        c += lax.psum_scatter(jnp.cos(everything), "fsdp", tiled=True)
        return lax.ppermute(c, "data", [(0, 1), (1, 0)]), None

    c, _ = lax.scan(outer, x, None, length=5)
    return c + lax.all_to_all(c, ("data", "fsdp"), 0, 0, tiled=True)


def search(x):
    """A loop whose length depends on data."""

    def step(c):
        return jnp.tanh(lax.psum(c, ("data", "fsdp")))

    return lax.while_loop(lambda c: c[0, 0] < 0.5, step, x)


def main() -> None:
    """Prints name to text of the compiled program, as JSON."""
    mesh = jax.make_mesh((2, 4), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    x = jax.ShapeDtypeStruct((128, 8), jnp.float32, sharding=NamedSharding(mesh, ROWS))
    texts = {}
    for function in (loops, search):
        mapped = jax.shard_map(function, mesh=mesh, in_specs=ROWS, out_specs=ROWS, check_vma=False)
        texts[function.__name__] = jax.jit(mapped).lower(x).compile().as_text()
    print(json.dumps(texts))
