"""CCLM-3M: Swin-B at 224, every second layer of XLM-R-large; image captions and parallel text.

    python launch/train.py --config=configs/cclm_3m.py:root=/data/cclm --config.init=/models/cclm_3m

The published recipe on data in the published formats (docs/data.md). `config.init` starts from
published weights that launch/convert.py has converted; see `rc3_jax/config_cclm.py`.
"""

from rc3_jax.config_cclm import published_config


def get_config(argument: str = ""):
    return published_config("cclm_3m", argument)
