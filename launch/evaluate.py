"""Scores a model on the test of a task, in every language.

python launch/evaluate.py --config=configs/downstream/xvnli.py --from=runs/demo_xvnli
python launch/evaluate.py --config=configs/downstream/xflickrco.py --from=runs/demo
python launch/evaluate.py ... --config.test.split=test_mt --config.test.languages="('de','ja')"

Retrieval needs no fine-tuning; a model for the other tasks comes from launch/finetune.py.
"""

import functools

from absl import app, flags
from ml_collections import config_flags

from rc3_jax.command_line import define_cluster_flags, named_folder, parse_flags, run_program

CONFIG = config_flags.DEFINE_config_file("config", None, "A file of configs/downstream.")
FROM = flags.DEFINE_string("from", None, "Folder of the model.")
OUTPUT = flags.DEFINE_string("output", None, "Folder for scores.json and the predictions.")
define_cluster_flags()


def main(argv: list[str]) -> None:
    del argv

    def work() -> None:
        from rc3_jax.observe.log import speaker
        from rc3_jax.paths import local_path
        from rc3_jax.tasks.evaluate import check_settings, evaluate
        from rc3_jax.tasks.load import load_task

        config, source = CONFIG.value, named_folder(FROM, "runs/demo_xvnli")
        folder = local_path(OUTPUT.value, "--output") if OUTPUT.value else None
        check_settings(config)
        evaluate(config, load_task(config, speaker(), parts=("test",)), source, folder)

    run_program(work)


if __name__ == "__main__":
    app.run(main, flags_parser=functools.partial(parse_flags, CONFIG))
