"""How much weak pairs help with plenty of parallel text, with little and with none.

python launch/ablate.py --study=configs/studies/parallel_text.py
"""

from rc3_jax.studies.world import IN_WEAK, OFF, STRICT_ONLY, helps, world_study

AMOUNTS = {
    "plenty": {"data.sources.scenes.parallel": 40_000},
    "little": {"data.sources.scenes.parallel": 400},
    "none": {"data.sources.scenes.parallel": 0, "batch_mix.parallel": 0.0},
}
SCORES = ("retrieval_weak", "matching_retrieval_weak", "xvnli_weak")
"""Scores of texts in words that captions have: without parallel text those of questions are unknown."""
FORMS = {"strict_only": STRICT_ONLY, "off": OFF, "weighted": {}}


def get_study():
    variants = {
        f"{form}_{amount}": {**settings, **of}
        for amount, of in AMOUNTS.items()
        for form, settings in FORMS.items()
    }
    claims = [
        claim
        for amount in AMOUNTS
        for claim in (
            *helps(
                f"Images with weak pairs help {IN_WEAK}; parallel text: {amount}.",
                (f"off_{amount}", f"weighted_{amount}"),
                f"strict_only_{amount}",
                *SCORES,
            ),
            *helps(
                f"The contrast of weak pairs helps {IN_WEAK}; parallel text: {amount}.",
                (f"weighted_{amount}",),
                f"off_{amount}",
                *SCORES,
            ),
        )
    ]
    return world_study("parallel_text", "RC³ with ITC.", variants, claims, baseline="off_plenty")
