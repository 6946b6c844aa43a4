"""Scores a model on the test of a task, in every language.

python launch/evaluate.py --config=configs/downstream/xvnli.py --from=runs/demo_xvnli
python launch/evaluate.py --config=configs/downstream/xflickrco.py --from=runs/demo
python launch/evaluate.py ... --config.test.split=test_mt --config.test.languages="('de','ja')"

Retrieval needs no fine-tuning; a model for the other tasks comes from launch/finetune.py.
"""

import functools
import json
import pathlib
import sys

from absl import app, flags, logging
from ml_collections import config_flags

from rc3_jax.command_line import parse_flags
from rc3_jax.config import ConfigError
from rc3_jax.data.record import DataError

CONFIG = config_flags.DEFINE_config_file("config", None, "A file of configs/downstream.")
FROM = flags.DEFINE_string("from", None, "Folder of the model.")
OUTPUT = flags.DEFINE_string("output", None, "JSON file for the scores.")


def main(argv: list[str]) -> None:
    del argv
    from rc3_jax.downstream.finetune import evaluate
    from rc3_jax.downstream.open import open_task

    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)
    config = CONFIG.value
    try:
        if FROM.value is None:
            raise ConfigError("name the folder of a model: --from=runs/demo_xvnli")
        scores = evaluate(config, open_task(config), pathlib.Path(FROM.value))
        if OUTPUT.value:
            text = json.dumps({"task": config.task, "scores": scores}, indent=2) + "\n"
            pathlib.Path(OUTPUT.value).write_text(text, encoding="utf-8")
    except (ConfigError, DataError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    app.run(main, flags_parser=functools.partial(parse_flags, CONFIG))
