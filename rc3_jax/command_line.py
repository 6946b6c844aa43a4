"""Reading the command line of the programs in launch/."""

from __future__ import annotations

import sys

import ml_collections
from absl import flags

from rc3_jax.config import ConfigError


def parse_flags(config: flags.FlagHolder[ml_collections.ConfigDict], argv: list[str]) -> list[str]:
    """Reads the command line; what is not understood ends the program with the reason in one line.

    Args:
      config: the flag that names the configuration.
    """
    try:
        remaining = flags.FLAGS(argv)
        if config.value is None:
            raise ConfigError("name a configuration: --config=configs/rc3_demo.py")
        if not config.value.name:  # a file that is missing shows only when it is read
            raise ConfigError("config.name is empty; the run's folder is named after it")
        if len(remaining) > 1:
            raise ConfigError(f"{' '.join(remaining[1:])!r} is not understood; see --help")
    except (flags.Error, AttributeError, KeyError, OSError, TypeError, ConfigError) as error:
        reason = str(error.args[0] if error.args else error)
        # What fails inside a config file comes with a traceback; its last line holds the reason.
        last = reason.strip().splitlines()[-1].strip().rpartition("Error: ")[2]
        sys.exit("error: " + (last if len(reason.splitlines()) > 2 else reason.replace("\n", " ")))
    return remaining
