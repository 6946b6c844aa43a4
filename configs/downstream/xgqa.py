"""xGQA: questions about pictures, answered from a list of 1,842.

    python launch/finetune.py --config=configs/downstream/xgqa.py:annotations=/data/iglue/xGQA,images=/data/gqa --from=runs/base

Without arguments the task is generated from scenes, for models of the demo.
"""

from rc3_jax.tasks.config import task_config


def get_config(argument: str = ""):
    return task_config("xgqa", argument)
