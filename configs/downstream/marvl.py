"""MaRVL, trained on NLVR2: is a statement true of two pictures?

    python launch/finetune.py --config=configs/downstream/marvl.py:annotations=/data/iglue/MaRVL,images=/data/marvl --from=runs/base

Without arguments the task is generated from scenes, for models of the demo.
"""

from rc3_jax.tasks.config import task_config


def get_config(argument: str = ""):
    return task_config("marvl", argument)
