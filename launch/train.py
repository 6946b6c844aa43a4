"""Trains a model.

python launch/train.py --config=configs/rc3_demo.py
python launch/train.py --config=configs/rc3_base.py:root=/data/pairs,batch=4096 --workdir=runs/base
python launch/train.py ... --config.optimizer.lr=2e-4 --resume

What follows a config's colon are its own arguments; --config.NAME=VALUE changes any setting.
"""

import functools
import pathlib
import sys

from absl import app, flags, logging
from ml_collections import config_flags

from rc3_jax.command_line import parse_flags
from rc3_jax.config import ConfigError
from rc3_jax.data.record import DataError

CONFIG = config_flags.DEFINE_config_file("config", None, "Configuration file, such as in configs/.")
WORKDIR = flags.DEFINE_string("workdir", None, "The run's folder; runs/<config.name> by default.")
COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "host:port of the first process, where the cluster does not tell."
)
PROCESSES = flags.DEFINE_integer("processes", None, "With --coordinator: processes in all.")
PROCESS = flags.DEFINE_integer("process", None, "With --coordinator: this one, from 0.")
DISTRIBUTED = flags.DEFINE_bool("distributed", True, "Joins the other processes of a cluster.")
RESUME = flags.DEFINE_bool("resume", False, "Goes on from the newest checkpoint in the folder.")


def main(argv: list[str]) -> None:
    del argv
    from rc3_jax.parallel.processes import join_processes
    from rc3_jax.training.loop import train
    from rc3_jax.training.memory import OutOfMemory

    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # the libraries narrate at the level of INFO
    config = CONFIG.value
    folder = pathlib.Path(WORKDIR.value or f"runs/{config.name}")
    try:
        if DISTRIBUTED.value:
            join_processes(COORDINATOR.value, PROCESSES.value, PROCESS.value)
        train(config, folder, RESUME.value)
    except (ConfigError, DataError, FloatingPointError, OutOfMemory) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    app.run(main, flags_parser=functools.partial(parse_flags, CONFIG))
