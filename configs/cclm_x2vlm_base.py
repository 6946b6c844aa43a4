"""CCLM-X²VLM base: BEiT-v2-B/16, XLM-R-base, six layers of cross encoder.

    python launch/train.py --config=configs/cclm_x2vlm_base.py:root=/data/cclm --config.init=/models/cclm_x2vlm_base

The published recipe on data in the published formats (docs/data.md). `config.init` starts from
published weights that launch/convert.py has converted; see `rc3_jax/config_cclm.py`.
"""

from rc3_jax.config_cclm import published_config


def get_config(argument: str = ""):
    return published_config("cclm_x2vlm_base", argument)
