"""Trains a model: python launch/train.py --config=configs/rc3_base.py --workdir=runs/rc3_base

Settings are changed on the command line: --config.optimizer.lr=2e-4 for any of them, and after a
colon the config's own arguments: --config=configs/rc3_base.py:batch=4096.
"""

import pathlib
import sys

from absl import app, flags
from ml_collections import config_flags

from rc3_jax.config import ConfigError
from rc3_jax.data.record import DataError

CONFIG = config_flags.DEFINE_config_file("config", None, "The configuration file.")
WORKDIR = flags.DEFINE_string("workdir", None, "The run's folder; runs/<name> by default.")
RESUME = flags.DEFINE_bool("resume", False, "Goes on from the newest checkpoint in the folder.")


def main(argv):
    del argv
    from rc3_jax.training.loop import train

    config = CONFIG.value
    folder = pathlib.Path(WORKDIR.value or f"runs/{config.name}")
    try:
        train(config, folder, RESUME.value)
    except (ConfigError, DataError, ValueError, FloatingPointError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    app.run(main)
