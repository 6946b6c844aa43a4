"""Fine-tunes a model on a task, and scores it in every language of the test.

python launch/finetune.py --config=configs/downstream/xvnli.py --from=runs/demo
python launch/finetune.py --from=runs/base --workdir=runs/base_xvnli \\
    --config=configs/downstream/xvnli.py:annotations=/data/iglue/XVNLI,images=/data/flickr30k
python launch/finetune.py ... --from=runs/base_xvnli --config.train.split=train_48 \\
    --config.train.languages="('fr',)"

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

CONFIG = config_flags.DEFINE_config_file("config", None, "A file of configs/downstream.")
FROM = flags.DEFINE_string("from", None, "Folder of the model to start from.")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder to write; <from>_<task> by default.")


def main(argv: list[str]) -> None:
    del argv
    from rc3_jax.downstream.finetune import finetune
    from rc3_jax.downstream.open import open_task

    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)
    config = CONFIG.value
    try:
        if FROM.value is None:
            raise ConfigError("name the folder of a model: --from=runs/demo")
        source = pathlib.Path(FROM.value)
        folder = pathlib.Path(WORKDIR.value or f"{source}_{config.task}")
        finetune(config, open_task(config), source, folder)
    except (ConfigError, DataError, FloatingPointError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    app.run(main, flags_parser=functools.partial(parse_flags, CONFIG))
