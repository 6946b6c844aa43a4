"""A configuration file for programs of launch/: `--config=tests/tiny_run.py:rc3_demo`, in miniature."""

from tests.tiny import load_config, shrink


def get_config(name: str = "rc3_demo"):
    return shrink(load_config(name))
