"""Measures speed and memory: of a training step, of the losses that compare all pairs of a batch, of
reading the data, or of the start, the evaluation and the checkpoints of a run.

python launch/bench.py step --size=demo
python launch/bench.py step --size=wide --peer=torch
python launch/bench.py step --config=configs/rc3_base.py:root=/any --config.batch_size=256
python launch/bench.py losses --batch=16384
python launch/bench.py losses --batch=131072 --devices=8 --memory_only
python launch/bench.py data --size=quarter --peer=torch
python launch/bench.py data --config=configs/rc3_base.py:root=/data/pairs --chip=v5e
python launch/bench.py start --config=configs/rc3_demo.py
python launch/bench.py eval --config=configs/rc3_demo.py --config.evaluation.images=1000
python launch/bench.py checkpoint --size=quarter

`step` runs the step of a configuration on random rows, for --rounds times --seconds. --peer=torch
lets PyTorch take the same steps in turn, in a process of its own, and prints the ratio of both. With
--worker it serves a program that alternates several workers: it prints a line of JSON about the step
when it is ready, and then answers each line of its input, a number of seconds, with a line of JSON.

`data` makes rows of the configuration's images with texts on one core, stage by stage; without
data.sources, of generated scenes with JPEGs of 500 x 375 and 1600 x 1200 pixels in their place.
--peer=torch lets PyTorch's DataLoader with Pillow take turns. --chip says how many cores feed a chip.

`start` begins the training twice, up to its first step, with caches of its own that are empty and
then warm. `eval` encodes and ranks held-out images and their texts; without data.sources, generated
scenes. `checkpoint` saves and restores a state where temporary files are (TMPDIR).

Memory is what the compiled program reserves for temporaries on each device, for value and gradient;
the seconds of `losses` are the least of a few repetitions. Simulated CPU devices (--devices) share
the machine's cores: their memory is meaningful, their speed is not.
"""

import contextlib
import itertools
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

from absl import app, flags
from ml_collections import config_flags
from rich.console import Console
from rich.table import Table

from rc3_jax.command_line import define_cluster_flags, parse_flags, run_program, with_equals
from rc3_jax.settings import ConfigError

SIZES = pathlib.Path(__file__).parents[1] / "configs" / "bench.py"

CONFIG = config_flags.DEFINE_config_file(
    "config",
    str(SIZES),
    "All but losses: the configuration; --size=NAME is a size of configs/bench.py.",
)
SECONDS = flags.DEFINE_float("seconds", 10.0, "step: seconds of a round.", lower_bound=0.0)
ROUNDS = flags.DEFINE_integer("rounds", 5, "All but losses and start: rounds.", lower_bound=1)
ENGINES = ["jax", "torch", "torch_compiled"]
ENGINE = flags.DEFINE_enum("engine", "jax", ENGINES, "step: what takes the steps.")
PEER = flags.DEFINE_enum("peer", None, ENGINES, "step, data: what takes turns, for the ratio.")
DEVICE = flags.DEFINE_string("device", "cpu", "step: PyTorch's device, such as cuda.")
WORKER = flags.DEFINE_bool("worker", False, "step: serves a program that alternates workers.")
JSON = flags.DEFINE_bool("json", False, "All but losses: prints JSON instead of a table.")
PICTURES = flags.DEFINE_integer("pictures", 32, "data: pictures of a round.", lower_bound=1)
CHIP = flags.DEFINE_string("chip", None, "data: a TPU, such as v5e, that cores are to feed.")
define_cluster_flags()
BATCH = flags.DEFINE_multi_integer(
    "batch", [16384], "losses: rows of the global batch; may be repeated."
)
WIDTH = flags.DEFINE_integer("width", 512, "losses: numbers of a vector.")
TILE = flags.DEFINE_integer("tile", 512, "losses: columns compared at a time.")
DEVICES = flags.DEFINE_integer("devices", 0, "losses: simulated CPU devices; 0 uses those present.")
LOSSES = flags.DEFINE_list("losses", ["info_nce", "sigmoid", "soft"], "losses: which losses.")
TRANSPORTS = flags.DEFINE_list("transports", ["dense", "gather", "ring"], "losses: which tilings.")
MEMORY_ONLY = flags.DEFINE_bool("memory_only", False, "losses: compiles and does not run.")
REPETITIONS = flags.DEFINE_integer("repetitions", 3, "losses: runs of which the fastest counts.")


def main(argv: list[str]) -> None:
    del argv
    if DEVICES.value:
        from rc3_jax.runtime import simulate_devices

        simulate_devices(DEVICES.value)
    if COMMANDS[sys.argv[1]] is start:  # the devices are for the program that it starts
        return start()
    return run_program(COMMANDS[sys.argv[1]])


def step() -> None:
    """Times the step of the configuration."""
    if PEER.value:
        return compare()
    from rc3_jax.observe.log import speaker
    from rc3_jax.observe.step_bench import StepBench, Timed
    from rc3_jax.training.aot import vocabulary_size

    arguments = CONFIG.value, vocabulary_size(CONFIG.value)
    if ENGINE.value == "jax":
        bench: Timed = StepBench(*arguments, speaker(stderr=True))
    else:
        from rc3_jax.observe.torch_peer import TorchPeer

        bench = TorchPeer(*arguments, DEVICE.value, compiles=ENGINE.value == "torch_compiled")
    if WORKER.value:
        return bench.work(sys.stdin, sys.stdout)
    bench.run(0.0)
    return show([(bench.about, [bench.run(SECONDS.value) for _ in range(ROUNDS.value)])])


def compare() -> None:
    """Lets two engines take steps in turn, each in a process that stays warm while it waits."""
    same = [
        given for given in sys.argv[1:] if not given.startswith(("--peer", "--engine", "--json"))
    ]
    found: list[tuple[subprocess.Popen, dict, list[dict]]] = []
    with contextlib.ExitStack() as stack:
        for engine in (PEER.value, ENGINE.value):
            command = [sys.executable, __file__, *same, f"--engine={engine}", "--worker"]
            process = stack.enter_context(
                subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            )
            if not (ready := answer(process)):
                raise ConfigError(f"{engine} ended before its first step; its message is above")
            found.append((process, ready, []))
        for _, (process, _, chunks) in itertools.product(range(ROUNDS.value), found):
            chunks.append(answer(process, f"{SECONDS.value}\n"))
    show([(about, chunks) for _, about, chunks in found])


def answer(worker: subprocess.Popen, request: str = "") -> dict:
    """The worker's next line of JSON; empty if it has ended."""
    assert worker.stdin and worker.stdout
    worker.stdin.write(request)
    worker.stdin.flush()
    return json.loads(worker.stdout.readline() or "{}")


def show(found: list[tuple[dict, list[dict]]]) -> None:
    """Prints what was measured of each engine; ratios are to the first."""
    results: list[dict] = []
    for about, chunks in found:
        medians = [chunk["median"] for chunk in chunks]
        middle = statistics.median(medians)
        first = results[0]["milliseconds"] if results else middle
        results.append(
            about
            | dict(
                milliseconds=middle,
                least=min(medians),
                most=max(medians),
                samples_per_second=1e3 * about["batch"] / middle,
                gflop_per_second=about["flops"] / middle / 1e6,
                speed=first / middle,
            )
        )
    if JSON.value:
        print(json.dumps(results))
        return
    table = Table("", *(about["name"] for about in results), title=f"{ROUNDS.value} rounds")
    for name in list(dict.fromkeys(itertools.chain(*results)))[1:]:
        values = [about.get(name, "") for about in results]
        table.add_row(name, *(f"{x:,.2f}" if isinstance(x, float) else str(x) for x in values))
    Console(soft_wrap=True).print(table)


def losses() -> None:
    """Measures the losses that compare all pairs."""
    import jax

    from rc3_jax.config import default_config
    from rc3_jax.parallel.mesh import make_mesh

    mesh = make_mesh(default_config().mesh)
    table = Table(title=f"{mesh.size} {jax.devices()[0].platform} device(s), width {WIDTH.value}")
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
        x = jax.random.normal(jax.random.key(seed), (batch, WIDTH.value))
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


def data() -> None:
    """Measures how rows are made."""
    from rc3_jax.observe.data_bench import GENERATED, DataBench, write_pictures

    generated = {} if CONFIG.value.data.sources else GENERATED
    bench = DataBench(CONFIG.value, PICTURES.value)
    results: list[dict] = []

    def add(pictures: str) -> None:
        stages = bench.measure(ROUNDS.value, peer=PEER.value is not None)
        found = dict(pictures=pictures, rows_a_second_by_threads=bench.threads(), stages=stages)
        chip = {f"cores_a_{CHIP.value}": bench.cores(CHIP.value, stages)} if CHIP.value else {}
        results.append(found | chip)

    if not generated:
        add("of the configuration")
    for size, quality in generated.items():
        with tempfile.TemporaryDirectory() as folder:
            paths = write_pictures(pathlib.Path(folder), size, quality, PICTURES.value)
            bench.use_pictures(paths)
            kilobytes = statistics.mean(path.stat().st_size for path in paths) / 1e3
            add(f"{size[0]} x {size[1]}, {kilobytes:.0f} kB")
    show_stages(results)


def start() -> None:
    """Measures how long a run takes to its first step."""
    from rc3_jax.observe.run_bench import time_starts

    given = [part for part in with_equals(written_out(sys.argv)) if part.startswith("--config")]
    try:
        show_stages(time_starts([str(SIZES.parents[1] / "launch/train.py"), *given]))
    except ConfigError as error:
        sys.exit(f"error: {error}")


def evaluation() -> None:
    """Measures how fast held-out images and texts are encoded and ranked."""
    from rc3_jax.observe.run_bench import time_evaluation

    show_stages([time_evaluation(CONFIG.value, ROUNDS.value)])


def checkpoint() -> None:
    """Measures how long a state takes to disk and back."""
    from rc3_jax.observe.run_bench import time_checkpoints

    show_stages([time_checkpoints(CONFIG.value, ROUNDS.value)])


def show_stages(results: list[dict]) -> None:
    """Prints what was measured of each stage; the first value of a result is its title."""
    if JSON.value:
        print(json.dumps(results))
        return
    for result in results:
        (what, title), *about = (
            (name, value) for name, value in result.items() if name != "stages"
        )
        stages = result["stages"]
        table = Table("stage", *next(iter(stages.values())), title=f"{what}: {title}")
        for name, times in stages.items():
            table.add_row(name, *(f"{x:,.2f}" if x >= 1 else f"{x:.2g}" for x in times.values()))
        Console(soft_wrap=True).print(table, dict(about) or "")


COMMANDS = dict(
    step=step, losses=losses, data=data, start=start, eval=evaluation, checkpoint=checkpoint
)


def parse(argv: list[str]) -> list[str]:
    """The flags after the command; `--size=NAME` is short for a configuration."""
    if len(argv) < 2 or (argv[1] not in COMMANDS and not argv[1].startswith("--help")):
        sys.exit(f"error: say what to measure, {' or '.join(COMMANDS)}; see --help")
    if argv[1] not in COMMANDS:
        return parse_flags(CONFIG, argv)
    return parse_flags(CONFIG, written_out(argv[1:]))


def written_out(argv: list[str]) -> list[str]:
    """`--config=FILE:size=NAME` for `--size=NAME`."""
    return [
        f"--config={SIZES}:{argument[2:]}" if argument.startswith("--size=") else argument
        for argument in argv
    ]


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
