"""What it is worth to train with patches, with regions and with both, by what a test shows.

python launch/ablate.py --study=configs/studies/visual_forms.py
"""

from rc3_jax.studies.study import Claim, Score
from rc3_jax.studies.world import helps, world_study

FORMS = ("patches", "regions", "both")
TESTED = {"evaluation.modes": ("both", "patches", "regions")}


def get_study():
    scores = {
        f"{form}_at_test": Score(
            of=(f"retrieval/{form}/{{weak}}/IR@1", f"retrieval/{form}/{{strict}}/IR@1")
        )
        for form in FORMS
    }
    claims = []
    for form in FORMS[:2]:
        scores[f"both_above_{form}"] = Score(
            of=scores["both_at_test"].of, minus=scores[f"{form}_at_test"].of
        )
        claims += [
            Claim(
                sentence=f"Both forms together are better at test than {form} alone.",
                score=f"both_above_{form}",
                variants=("both",),
                than=0.0,
            ),
            *helps(
                f"Training with both is better for {form} at test than training with them alone.",
                ("both",),
                form,
                f"{form}_at_test",
            ),
        ]
    return world_study(
        "visual_forms",
        "RC³ with ITC; retrieval by vectors in all languages.",
        {form: {"data.visual_forms": form, **TESTED} for form in FORMS},
        claims,
        baseline="both",
        mode="both",
        scores=scores,
    )
