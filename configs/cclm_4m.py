"""CCLM-4M: the model of CCLM-3M, trained on parts of images too.

    python launch/train.py --config=configs/cclm_4m.py:root=/data/cclm --config.init=/models/cclm_4m

The published recipe on data in the published formats (docs/data.md). `config.init` starts from
published weights that launch/convert.py has converted; see `rc3_jax/config_cclm.py`.
"""

from rc3_jax.config_cclm import published_config


def get_config(argument: str = ""):
    return published_config("cclm_4m", argument)
