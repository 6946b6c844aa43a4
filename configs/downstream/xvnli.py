"""XVNLI: does a picture entail a sentence, contradict it, or neither?

    python launch/finetune.py --config=configs/downstream/xvnli.py:annotations=/data/iglue/XVNLI,images=/data/flickr30k --from=runs/base

Without arguments the task is generated from scenes, for models of the demo.
"""

from rc3_jax.tasks.config import task_config


def get_config(argument: str = ""):
    return task_config("xvnli", argument)
