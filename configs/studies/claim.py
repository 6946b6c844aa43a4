"""Weak pairs without image-text contrast: what each form of the regularizer is worth.

python launch/ablate.py --study=configs/studies/claim.py --fresh
"""

from rc3_jax.studies.world import NO_ITC, weak_pair_study


def get_study():
    return weak_pair_study("claim", "RC³ without ITC, as published.", NO_ITC, has_itc=False)
