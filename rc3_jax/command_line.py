"""Reading the command line of the programs in launch/."""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Callable
from typing import Any

import ml_collections
from absl import flags, logging
from ml_collections import config_flags

from rc3_jax.data.record import DataError
from rc3_jax.paths import as_path
from rc3_jax.settings import ConfigError

CONFIG = "--config"


def parse_flags(
    config: flags.FlagHolder[ml_collections.ConfigDict] | None,
    argv: list[str],
    workdir: flags.FlagHolder[str | None] | None = None,
) -> list[str]:
    """Parses flags; exits with a one-line message on an unknown flag or value.

    Args:
      config: the flag that names the configuration, of programs that need one.
      workdir: the flag that names the run's folder, of programs that have `--resume`: without
        `--config` a resumed run has its stored settings, which `--config.NAME=VALUE` changes.
    """
    argv = with_equals(argv)
    try:
        flags.FLAGS.set_gnu_getopt(True)
        stored = None if workdir is None else _stored_settings(argv, workdir)
        try:
            if config is not None and stored is not None:
                delattr(flags.FLAGS, config.name)
                config_flags.DEFINE_config_dict(config.name, stored, sys_argv=argv)
            remaining = flags.FLAGS(argv)
        except (AttributeError, KeyError) as error:
            raise ConfigError(_unknown_override(stored, argv) or str(error)) from error
        if config is not None and config.value is None:
            raise ConfigError("name a configuration: --config=configs/rc3_demo.py")
        if config is not None and not config.value.name:  # a missing file shows when it is read
            raise ConfigError("config.name is empty; the run's folder is named after it")
        if len(remaining) > 1:
            raise ConfigError(f"{' '.join(remaining[1:])!r} is unknown; see --help")
    except (flags.Error, AttributeError, KeyError, OSError, TypeError, ConfigError) as error:
        reason = str(error.args[0] if error.args else error)
        # What fails inside a config file comes with a traceback; its last line holds the reason.
        last = reason.strip().splitlines()[-1].strip().rpartition("Error: ")[2]
        sys.exit("error: " + (last if len(reason.splitlines()) > 2 else reason.replace("\n", " ")))
    return remaining


def with_equals(argv: list[str]) -> list[str]:
    """`--config=FILE` and `--config.NAME=VALUE` for the other ways in which absl lets one write them."""
    written = list(argv)
    for place, argument in enumerate(argv):
        name, equals, _ = argument.partition("=")
        if name.lstrip("-").partition(".")[0] != "config" or name[:1] != "-":
            continue
        written[place] = "--" + argument.lstrip("-")
        if not equals and place + 1 < len(argv):
            written[place] += f"={argv[place + 1]}"
            written[place + 1] = ""
    return [argument for argument in written if argument]


def _stored_settings(
    argv: list[str], workdir: flags.FlagHolder[str | None]
) -> ml_collections.ConfigDict | None:
    """The settings of a run that resumes with these; None where `--config` names others."""
    if any(argument.partition("=")[0] == CONFIG for argument in argv):
        return None
    flags.FLAGS(argv, known_only=True)
    if not flags.FLAGS.resume:
        return None
    if not workdir.value:
        raise ConfigError(f"name the run's folder: --resume --{workdir.name}=runs/demo")
    from rc3_jax.config import stored_settings

    return stored_settings(as_path(workdir.value, f"--{workdir.name}")).config_dict()


def _unknown_override(stored: ml_collections.ConfigDict | None, argv: list[str]) -> str | None:
    """What to say of the first `--config.NAME` that the configuration lacks; None if it has all."""
    from rc3_jax.config import settings_class
    from rc3_jax.settings import no_such_setting, plain
    from rc3_jax.tasks.config import FinetuneSettings

    given = [argument.partition("=") for argument in argv]
    files = [value for name, _, value in given if name == CONFIG]
    if stored is None and not files:
        return None
    values = stored or flags.FLAGS["config"].parser.parse(files[-1])
    settings = plain(values)
    schema = FinetuneSettings if "task" in settings else settings_class(settings)
    for name, _, _ in given:
        path, group = name.removeprefix(f"{CONFIG}."), values
        for part in path.split(".") if path != name else ():
            if not isinstance(group, ml_collections.ConfigDict) or part not in group:
                return no_such_setting(path, schema)
            group = group[part]
    return None


def define_cluster_flags() -> None:
    """Defines the flags about the other processes that a program runs with; see `run_program`."""
    flags.DEFINE_string(
        "coordinator",
        None,
        "host:port of the first process, where the cluster manager does not say.",
    )
    flags.DEFINE_integer("processes", None, "With --coordinator: processes in all.")
    flags.DEFINE_integer("process", None, "With --coordinator: this one, from 0.")
    flags.DEFINE_bool("distributed", True, "Joins the other processes of a cluster.")
    define_tune_flag()


def define_tune_flag() -> None:
    """Defines the flag about what `run_program` sets on a CPU."""
    flags.DEFINE_bool(
        "tune",
        True,
        "Keeps freed memory on a CPU, and compiled programs in the user's cache folder.",
    )


def run_program(work: Callable[[], Any], computes: bool = True) -> None:
    """Joins the other processes and works; user errors exit with a short message.

    Args:
      computes: whether this process computes itself; one that only starts others leaves the
        accelerators to them.
    """
    import jax

    from rc3_jax.observe.log import speaker
    from rc3_jax.parallel.processes import join_processes
    from rc3_jax.runtime import keep_programs, tune_cpu
    from rc3_jax.training.memory import OutOfMemory

    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # the libraries narrate at the level of INFO
    given = flags.FLAGS
    try:
        if not computes:
            jax.config.update("jax_platforms", "cpu")
        tunes = computes and given.tune
        told = tune_cpu() if tunes else []
        if "distributed" in given and given.distributed:
            join_processes(given.coordinator, given.processes, given.process)
        told += keep_programs() if tunes else []
        if told:
            speaker(stderr=True)(f"{'; '.join(told)} (--notune turns this off)")
        work()
    except (ConfigError, DataError, FloatingPointError, OutOfMemory) as error:
        sys.exit(f"error: {error}")


def named_folder(flag: flags.FlagHolder[str | None], example: str) -> pathlib.Path:
    """The folder that a flag names.

    Raises:
      ConfigError: if it names none, or it is not there.
    """
    if not flag.value:
        raise ConfigError(f"name a folder: --{flag.name}={example}")
    folder = as_path(flag.value, f"--{flag.name}")
    if not folder.is_dir():
        raise ConfigError(f"--{flag.name}={folder}: no such folder")
    return folder
