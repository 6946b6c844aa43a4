"""Multi30K: captions in en, de, fr and cs and their photographs look for one another.

    python launch/finetune.py --config=configs/downstream/multi30k.py:annotations=/data/multi30k,images=/data/flickr30k --from=runs/base

`annotations` holds `captions.jsonl` (docs/data.md). Training in all languages:
`--config.train.languages="('en','de','fr','cs')"`.
"""

from rc3_jax.tasks.config import task_config


def get_config(argument: str = ""):
    return task_config("multi30k", argument)
