"""What gives the relevance of texts: the model itself, as it is or debiased, its average, or the truth.

python launch/ablate.py --study=configs/studies/relevance.py
"""

from rc3_jax.studies.study import Claim
from rc3_jax.studies.world import IN_WEAK, REGULARIZED, helps, world_study

SOURCES = {
    "biased": {"objective.debias_relevance": False},
    "debiased": {},
    "ema": {"objective.relevance": "ema"},
    "true": {"objective.relevance": "true"},
}


def get_study():
    variants = {
        f"{form}_{source}": {**settings, **REGULARIZED[form]}
        for form in ("weighted", "mse")
        for source, settings in SOURCES.items()
    }
    claims = [
        claim
        for form in ("weighted", "mse")
        for sentence, scores in (
            (
                f"The better the relevance, the more it helps {IN_WEAK}.",
                ("tasks_weak", "retrieval_weak"),
            ),
            (
                "The better the relevance, the more the proximity follows the truth.",
                ("proximity_relevance",),
            ),
        )
        for claim in helps(
            sentence,
            (f"{form}_debiased", f"{form}_ema", f"{form}_true"),
            f"{form}_biased",
            *scores,
        )
    ]
    claims.append(
        Claim(
            sentence="The debiased relevance knows more of the truth than the length of texts.",
            score="relevance_above_length",
            variants=("weighted_debiased", "mse_debiased"),
            than=0.15,
        )
    )
    about = "`weighted` and `mse`, with ITC."
    return world_study("relevance", about, variants, claims, baseline="weighted_debiased")
