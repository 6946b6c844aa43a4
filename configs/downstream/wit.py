"""WIT: captions of Wikipedia and their pictures look for one another.

    python launch/finetune.py --config=configs/downstream/wit.py:annotations=/data/iglue/WIT,images=/data/wit --from=runs/base

Without arguments the task is generated from scenes, for models of the demo.
"""

from rc3_jax.tasks.config import task_config


def get_config(argument: str = ""):
    return task_config("wit", argument)
