"""xFlickr&CO: texts and pictures look for one another.

    python launch/finetune.py --config=configs/downstream/xflickrco.py:annotations=/data/iglue/xFlickrCO,images=/data/flickr30k --from=runs/base

Without arguments the task is generated from scenes, for models of the demo.
"""

from rc3_jax.tasks.config import task_config


def get_config(argument: str = ""):
    return task_config("xflickrco", argument)
