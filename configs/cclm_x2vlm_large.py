"""CCLM-X²VLM large: BEiT-v2-L/16, XLM-R-large, six layers of cross encoder.

    python launch/train.py --config=configs/cclm_x2vlm_large.py:root=/data/cclm --config.init=/models/cclm_x2vlm_large

The published recipe on data in the published formats (docs/data.md). `config.init` starts from
published weights that launch/convert.py has converted; see `rc3_jax/config_cclm.py`.
"""

from rc3_jax.config_cclm import published_config


def get_config(argument: str = ""):
    return published_config("cclm_x2vlm_large", argument)
