"""Fine-tunes a model on a task, and scores it in every language of the test.

python launch/finetune.py --config=configs/downstream/xvnli.py --from=runs/demo
python launch/finetune.py --from=runs/base --workdir=runs/base_xvnli \\
    --config=configs/downstream/xvnli.py:annotations=/data/iglue/XVNLI,images=/data/flickr30k
python launch/finetune.py ... --from=runs/base_xvnli --config.train.split=train_48 \\
    --config.train.languages="('fr',)"

What follows a config's colon are its own arguments; --config.NAME=VALUE changes any setting. The same
command goes on with a fine-tuning that was interrupted. launch/iglue.py runs many.
"""

import functools

from absl import app, flags
from ml_collections import config_flags

from rc3_jax.command_line import define_cluster_flags, named_folder, parse_flags, run_program

CONFIG = config_flags.DEFINE_config_file("config", None, "A file of configs/downstream.")
FROM = flags.DEFINE_string("from", None, "Folder of the model to start from.")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder to write; <from>_<task> by default.")
define_cluster_flags()


def main(argv: list[str]) -> None:
    del argv

    def work() -> None:
        from rc3_jax.observe.log import speaker
        from rc3_jax.paths import local_path
        from rc3_jax.tasks.evaluate import check_settings
        from rc3_jax.tasks.finetune import finetune
        from rc3_jax.tasks.load import load_task

        config, source = CONFIG.value, named_folder(FROM, "runs/demo")
        check_settings(config)
        folder = local_path(WORKDIR.value or f"{source}_{config.task}", "--workdir")
        finetune(config, load_task(config, speaker()), source, folder)

    run_program(work)


if __name__ == "__main__":
    app.run(main, flags_parser=functools.partial(parse_flags, CONFIG))
