"""MSCOCO: captions in en, zh and ja and their photographs look for one another.

    python launch/finetune.py --config=configs/downstream/mscoco.py:annotations=/data/mscoco,images=/data/coco --from=runs/base

`annotations` holds `captions.jsonl` (docs/data.md).
"""

from rc3_jax.tasks.config import task_config


def get_config(argument: str = ""):
    return task_config("mscoco", argument)
