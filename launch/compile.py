"""Compiles the training step ahead of time, for TPUs that are not attached, and reports on it.

python launch/compile.py --config=configs/rc3_demo.py --devices=8
python launch/compile.py --config=configs/rc3_base.py:root=/any,batch=8192 --topology=v5e:16x16
python launch/compile.py --config=... --topology=v5p:8x8x8 --config.mesh.fsdp=8 --print_rules
python launch/compile.py --config=... --topology=v5e:16x16 --search=1
python launch/compile.py --config=... --topology=h100:8 --search=0

No data is read and nothing is computed. --search ranks the settings that fit by an estimate, and
compiles the best ones. --topology needs the package libtpu for TPUs, which the extra `tpu` installs;
for GPUs there are estimates alone. Ends with status 1 if the compiled step stores an array of all
pairs of rows.
"""

import functools
import importlib.metadata
import os
import pathlib
import shlex
import sys
from typing import TYPE_CHECKING

from absl import app, flags, logging
from ml_collections import config_flags

from rc3_jax.command_line import parse_flags
from rc3_jax.data.record import DataError
from rc3_jax.settings import ConfigError

if TYPE_CHECKING:
    from rc3_jax.observe.chips import Chip
    from rc3_jax.training.run import RunModel

CONFIG = config_flags.DEFINE_config_file("config", None, "Configuration file, such as in configs/.")
TOPOLOGY = flags.DEFINE_string(
    "topology", None, "TPUs to compile for, such as v5e:16x16; GPUs to estimate, such as h100:8."
)
DEVICES = flags.DEFINE_integer("devices", None, "Simulated CPU devices to compile for.")
KINDS = flags.DEFINE_list(
    "kinds", None, "Kinds of rows that the data offer; by default all that have a share."
)
VOCABULARY = flags.DEFINE_integer(
    "vocab_size", None, "The vocabulary's; by default the setting, or XLM-R's where it has a path."
)
RULES = flags.DEFINE_bool("print_rules", False, "Prints how parameters are sharded, and ends.")
SEARCH = flags.DEFINE_integer(
    "search",
    None,
    "Ranks remat, micro-batches and fsdp by an estimate, and compiles so many of the best; 0 for none.",
    lower_bound=0,
)
SHOWN = 10
"""Settings that --search prints."""
OUT = flags.DEFINE_string("out", None, "File to store the report in.")
HLO = flags.DEFINE_string("hlo", None, "File to store the compiled program's text in.")
ALLOW = flags.DEFINE_bool("allow_pair_buffers", False, "Arrays of all pairs are only reported.")


def prepare_environment() -> None:
    """Sets what JAX reads when it is imported: which devices to simulate."""
    if (TOPOLOGY.value is None) == (DEVICES.value is None):
        raise ConfigError("name either --topology=v5e:16x16 or --devices=8")
    if SEARCH.value is not None and TOPOLOGY.value is None:
        raise ConfigError("--search needs figures of a chip; name --topology=v5e:16x16 or h100:8")
    if SEARCH.value is not None and (OUT.value or HLO.value):
        raise ConfigError("--out and --hlo store one report; leave them out with --search")
    from rc3_jax.observe.chips import gpus

    simulated = DEVICES.value or gpus(TOPOLOGY.value)
    if gpus(TOPOLOGY.value) and SEARCH.value != 0:
        raise ConfigError(
            f"--topology={TOPOLOGY.value}: nothing compiles for GPUs that are not attached; "
            "--search=0 estimates"
        )
    os.environ["JAX_PLATFORMS"] = "cpu"  # no TPU is looked for
    # Nor is libtpu to ask the network what TPUs this machine has.
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    if simulated:
        from rc3_jax.runtime import simulate_devices

        simulate_devices(simulated)


def main(argv: list[str]) -> None:
    del argv
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)
    try:
        prepare_environment()
        from rc3_jax.training.memory import OutOfMemory
    except ConfigError as error:
        sys.exit(f"error: {error}")
    try:
        offends = compile_and_report()
    except (ConfigError, DataError, OutOfMemory) as error:
        sys.exit(f"error: {error}")
    if offends and not ALLOW.value:
        sys.exit("error: the step stores arrays of all pairs of rows; the report names them")


def compile_and_report() -> bool:
    """Prints what was asked for; True if arrays are stored that should not be."""
    import jax

    from rc3_jax.config import validate
    from rc3_jax.data.kinds import KINDS as ALL_KINDS
    from rc3_jax.data.stream import batch_rows
    from rc3_jax.observe.aot_report import rules_table
    from rc3_jax.observe.chips import find_chip, gpus
    from rc3_jax.paths import local_path
    from rc3_jax.training import aot
    from rc3_jax.training.memory import OutOfMemory
    from rc3_jax.training.search import flags_of, search, search_report

    for flag in (OUT, HLO):
        local_path(flag.value or "", f"--{flag.name}")
    config, topology = CONFIG.value, TOPOLOGY.value
    validate(config)
    kinds = KINDS.value or [kind for kind, share in config.batch_mix.items() if share]
    unknown = [kind for kind in kinds if kind not in ALL_KINDS]
    if unknown:
        raise ConfigError(f"--kinds: {', '.join(unknown)} unknown; use {', '.join(ALL_KINDS)}")
    rows = batch_rows(config.batch_size, config.batch_mix, kinds)
    vocabulary = VOCABULARY.value or aot.vocabulary_size(config)
    if topology is None:
        devices = jax.devices()
    elif gpus(topology):
        devices = jax.devices()
        config.model.attention = "auto"  # these stand for others, which may have it
    else:
        devices = aot.topology_devices(topology)
    run = aot.abstract_run(config, devices, rows, vocabulary)
    if RULES.value:
        print(rules_table(run))
        return False
    chip = find_chip(topology) if topology else None
    if SEARCH.value is None or chip is None:
        return report(run, rows, chip)
    found = search(run, rows, chip, functools.partial(print, flush=True))
    print(search_report(found, SHOWN))
    offends = False
    for one in found[: SEARCH.value]:
        print(f"\n# Compiled with {flags_of(one)}\n", flush=True)
        try:
            offends |= report(aot.changed_run(run, rows, one.changes), rows, chip)
        except OutOfMemory as error:
            print(f"It does not fit: {error}")
    return offends


def report(run: "RunModel", rows: dict[str, int], chip: "Chip | None") -> bool:
    """Compiles a run's step and prints the report; True if it stores arrays of all pairs."""
    from rc3_jax.observe.aot_report import aot_report
    from rc3_jax.training import aot

    compiled = aot.compile_ahead(run, rows)
    work = aot.count_work(run, rows, chip.on_chip if chip else 0.0)
    text = heading() + aot_report(run, rows, compiled, work, chip)
    print(text)
    store(OUT.value, text)
    if HLO.value:
        store(HLO.value, compiled.as_text())
    return bool(work.quadratic)


def heading() -> str:
    """Title, command and versions."""
    where = TOPOLOGY.value or f"{DEVICES.value} simulated devices"
    packages = ("jax", "jaxlib", "flax", *(("libtpu",) if TOPOLOGY.value else ()))
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    given = [flag for flag in sys.argv[1:] if not flag.startswith(("--out", "--hlo"))]
    command = shlex.join(["python", "launch/compile.py", *given])
    return f"# {CONFIG.value.name} on {where}\n\n    {command}\n\n{versions}.\n\n"


def store(path: str | None, text: str | None) -> None:
    if path and text is not None:
        pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
        pathlib.Path(path).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    app.run(main, flags_parser=functools.partial(parse_flags, CONFIG))
