"""What else may make the contrast of weak pairs useful (METHOD.md section 2, R-XVtCL).

python launch/ablate.py --study=configs/studies/remedies.py
"""

from rc3_jax.studies.world import IN_WEAK, OFF, PROXIMITY, helps, world_study

BOTH = {"data.visual_forms": "both", "evaluation.modes": ("both",)}
REMEDIES = {
    "ranked": {"objective.regularizer": ("ranked",)},
    "top": {"objective.regularizer": ("top",)},
    "forms": {"objective.weak_views": "forms"},
    "early": {"objective.weak_start": 0.0},
    "readout": {"objective.weak_gradient": "readout"},
    "early_readout": {"objective.weak_gradient": "readout", "objective.weak_start": 0.0},
    "forms_soft": {"objective.weak_views": "forms", "objective.regularizer": ("soft",)},
}


def get_study():
    scores = ("tasks_weak", "retrieval_weak")
    return world_study(
        "remedies",
        "`weighted`, and what else METHOD.md's idea allows, with ITC; with patches and regions.",
        {name: {**BOTH, **own} for name, own in {"off": OFF, "weighted": {}, **REMEDIES}.items()},
        [
            *helps(f"It helps {IN_WEAK}.", ("weighted", *REMEDIES), "off", *scores),
            *helps("It is better than `weighted` alone.", tuple(REMEDIES), "weighted", *scores),
            *helps(PROXIMITY, ("weighted", *REMEDIES), "off", "proximity_relevance"),
            *helps(
                "The fused vector depends on the text more than with `weighted` alone.",
                tuple(REMEDIES),
                "weighted",
                "text_dependence",
            ),
        ],
        mode="both",
    )
