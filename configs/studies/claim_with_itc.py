"""Weak pairs beside image-text contrast: what each form of the regularizer is worth.

python launch/ablate.py --study=configs/studies/claim_with_itc.py
"""

import pathlib

from rc3_jax.studies.study import Score, load_config
from rc3_jax.studies.weak_pairs import weak_pair_study

DEMO = pathlib.Path(__file__).parents[1] / "rc3_demo.py"


def get_study():
    return weak_pair_study(
        "claim_with_itc",
        lambda seed: load_config(DEMO),
        "RC³ on generated scenes (`configs/rc3_demo.py`) with ITC, which is this project's addition.",
        {},
        {"retrieval_weak": Score(of=("retrieval/regions/{weak}/IR@1",))},
    )
