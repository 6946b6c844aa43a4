"""Trains a model.

python launch/train.py --config=configs/rc3_demo.py
python launch/train.py --config=configs/rc3_base.py:root=/data/pairs,batch=4096 --workdir=runs/base
python launch/train.py --resume --workdir=runs/base
python launch/train.py --resume --workdir=runs/base --config.steps=200_000 --config.optimizer.lr=1e-4

What follows a config's colon are its own arguments; --config.NAME=VALUE changes any setting. Without
--config a resumed run has the settings that it began with.
"""

import functools

from absl import app, flags
from ml_collections import config_flags

from rc3_jax.command_line import define_cluster_flags, parse_flags, run_program

CONFIG = config_flags.DEFINE_config_file("config", None, "Configuration file, such as in configs/.")
WORKDIR = flags.DEFINE_string("workdir", None, "The run's folder; runs/<config.name> by default.")
define_cluster_flags()
RESUME = flags.DEFINE_bool("resume", False, "Goes on from the newest checkpoint in the folder.")
ACCEPT_CHANGES = flags.DEFINE_list(
    "accept_changes",
    [],
    "Settings that a resumed run may have otherwise although they change what was promised, such as "
    "batch_size,objective.*.",
)


def main(argv: list[str]) -> None:
    del argv

    def work() -> None:
        from rc3_jax.config import validate
        from rc3_jax.paths import as_path

        config = validate(CONFIG.value)
        # Most of the time that imports take is here: after the first line, and after mistakes.
        from rc3_jax.training.pretrain import train

        folder = as_path(WORKDIR.value or f"runs/{config.name}", "--workdir")
        train(config, folder, RESUME.value, None, ACCEPT_CHANGES.value)

    run_program(work)


if __name__ == "__main__":
    app.run(main, flags_parser=functools.partial(parse_flags, CONFIG, workdir=WORKDIR))
