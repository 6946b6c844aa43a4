"""Weak pairs beside image-text contrast: what each form of the regularizer is worth.

python launch/ablate.py --study=configs/studies/claim_with_itc.py --fresh
"""

from rc3_jax.studies.world import weak_pair_study


def get_study():
    about = "RC³ with ITC, which is this project's addition."
    return weak_pair_study("claim_with_itc", about, {}, has_itc=True)
