"""A configuration file for `launch/compile.py`: the demo, shrunk, with small tiles."""

from tests.tiny import load_config, shrink


def get_config(argument=""):
    config = shrink(load_config("rc3_demo", argument))
    config.batch_size = 160
    config.objective.pairs.tile = 10
    return config
