"""Weak pairs without image-text contrast: what each form of the regularizer is worth.

python launch/ablate.py --study=configs/studies/claim.py
"""

import pathlib

from rc3_jax.studies.study import load_config
from rc3_jax.studies.weak_pairs import weak_pair_study

DEMO = pathlib.Path(__file__).parents[1] / "rc3_demo.py"


def get_study():
    return weak_pair_study(
        "claim",
        lambda seed: load_config(DEMO),
        "RC³ on generated scenes (`configs/rc3_demo.py`) without ITC, as published.",
        {"objective.weights.itc": 0.0},
        {},
    )
