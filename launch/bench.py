"""Measures memory and speed of the losses that compare all pairs of a batch.

python launch/bench.py --batch=16384
python launch/bench.py --batch=131072 --devices=8 --memory_only

Memory is what the compiled program reserves for temporaries on each device, for value and gradient;
seconds are the least of a few repetitions. Simulated CPU devices (--devices) share the machine's
cores: their memory is meaningful, their speed is not.
"""

import os
import time

from absl import app, flags
from rich.console import Console
from rich.table import Table

BATCH = flags.DEFINE_multi_integer("batch", [16384], "Rows of the global batch; may be repeated.")
SIZE = flags.DEFINE_integer("size", 512, "Numbers of a vector.")
TILE = flags.DEFINE_integer("tile", 512, "Columns compared at a time.")
DEVICES = flags.DEFINE_integer("devices", 0, "Simulated CPU devices; 0 uses those present.")
LOSSES = flags.DEFINE_list("losses", ["info_nce", "sigmoid", "soft"], "Which losses.")
TRANSPORTS = flags.DEFINE_list("transports", ["dense", "gather", "ring"], "Which tilings.")
MEMORY_ONLY = flags.DEFINE_bool("memory_only", False, "Compiles and does not run.")
REPETITIONS = flags.DEFINE_integer("repetitions", 3, "Runs of which the fastest counts.")


def main(_) -> None:
    if DEVICES.value:
        os.environ["JAX_PLATFORMS"] = "cpu"
        os.environ["NPROC"] = str(4 * DEVICES.value)
        os.environ["XLA_FLAGS"] = (
            f"--xla_force_host_platform_device_count={DEVICES.value} "
            + os.environ.get("XLA_FLAGS", "")
        )
    import jax

    from rc3_jax.config import default_config
    from rc3_jax.parallel.mesh import make_mesh

    mesh = make_mesh(default_config().mesh)
    table = Table(title=f"{mesh.size} {jax.devices()[0].platform} device(s), size {SIZE.value}")
    for name in ("loss", "transport", "batch", "temporaries (MiB)", "seconds"):
        table.add_column(name, justify="right")
    for loss in LOSSES.value:
        for batch in BATCH.value:
            for transport in TRANSPORTS.value:
                table.add_row(loss, transport, f"{batch:,}", *measure(loss, transport, batch, mesh))
    Console(soft_wrap=True).print(table)


def measure(loss: str, transport: str, batch: int, mesh) -> tuple[str, str]:
    """Temporaries in MiB and the least seconds of value and gradient, as text."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import NamedSharding, PartitionSpec

    from rc3_jax.objectives.contrastive import info_nce, sigmoid_loss, soft_cross_entropy
    from rc3_jax.objectives.tiles import Tiling
    from rc3_jax.parallel.mesh import BATCH

    tiling = Tiling(transport, TILE.value, mesh)
    rows, whole = NamedSharding(mesh, BATCH), NamedSharding(mesh, PartitionSpec())

    def value(x, y, tau, a, b, groups):
        if loss == "info_nce":
            return info_nce(x, y, tau, groups, tiling=tiling)
        if loss == "sigmoid":
            return sigmoid_loss(x, y, tau, jnp.float32(-10), groups, tiling=tiling)
        return soft_cross_entropy(x, y, tau, a, b, 0.1, tiling)[0]

    def vectors(seed):
        x = jax.random.normal(jax.random.key(seed), (batch, SIZE.value))
        return x / jnp.linalg.norm(x, axis=1, keepdims=True)

    def inputs():
        x, y, a, b = map(vectors, range(4))
        return x, y, jnp.float32(0.07), a, b, jnp.arange(batch)

    layout = (rows, rows, whole, rows, rows, rows)
    function = jax.jit(
        jax.value_and_grad(value, (0, 1, 2)),
        in_shardings=layout,
        out_shardings=(whole, (rows, rows, whole)),
    )
    compiled = function.lower(*jax.eval_shape(inputs)).compile()
    analysis = compiled.memory_analysis()
    memory = f"{analysis.temp_size_in_bytes / 2**20:,.0f}" if analysis else "-"
    if MEMORY_ONLY.value:
        return memory, "-"
    arguments = jax.jit(inputs, out_shardings=layout)()
    seconds = []
    for _ in range(REPETITIONS.value):
        begun = time.perf_counter()
        jax.block_until_ready(compiled(*arguments))
        seconds.append(time.perf_counter() - begun)
    return memory, f"{min(seconds):.2f}"


if __name__ == "__main__":
    app.run(main)
