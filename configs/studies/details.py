"""Details of the weak contrast: its weight, its ramp, same-image negatives, the read-out of z.

python launch/ablate.py --study=configs/studies/details.py
"""

from rc3_jax.studies.world import IN_WEAK, helps, world_study

DETAILS = {
    "weight_0.3": {"objective.weights.xvtcl_weak": 0.3},
    "weight_3": {"objective.weights.xvtcl_weak": 3.0},
    "no_ramp": {"objective.ramp": 0.0},
    "long_ramp": {"objective.ramp": 0.5},
    "no_same_image": {"objective.same_image_negatives": False},
    "mean_readout": {"model.readout": "mean"},
    "sigmoid": {"objective.contrast": "sigmoid"},
}


def get_study():
    return world_study(
        "details",
        "The default, `weighted`, with ITC, and one change at a time.",
        {"default": {}, **DETAILS},
        helps(f"It helps {IN_WEAK}.", tuple(DETAILS), "default", "tasks_weak", "retrieval_weak"),
        baseline="default",
    )
