"""What configs/rc3_demo.py learns, and what four of its settings change; README's table is of it.

python launch/ablate.py --study=configs/studies/demo.py --fresh --processes=2 --out=results/demo.json
"""

import pathlib

from rc3_jax.scenes.source import STRICT_LANGUAGES, WEAK_LANGUAGES
from rc3_jax.studies.study import Claim, Score, Study, load_config
from rc3_jax.studies.world import DEPENDENCE, IN_WEAK, OFF, PROXIMITY, depends, helps

DEMO = pathlib.Path(__file__).parents[1] / "rc3_demo.py"
LEARNED = ("retrieval_weak", "retrieval_strict", "matching_accuracy_weak")
GROUPS = {"weak": WEAK_LANGUAGES, "strict": STRICT_LANGUAGES}


def get_study():
    every = tuple(f"{{{group}}}" for group in GROUPS)
    scores = {
        f"retrieval_{group}": Score(of=(f"retrieval/both/{{{group}}}/IR@1",)) for group in GROUPS
    }
    for form in ("patches", "regions"):
        scores[form] = Score(of=tuple(f"retrieval/{form}/{of}/IR@1" for of in every))
    for group in GROUPS:
        scores[f"matching_accuracy_{group}"] = Score(
            of=(f"matching/both/{{{group}}}/pairwise_accuracy",)
        )
        scores[f"gain_{group}"] = Score(
            of=(f"matching/both/{{{group}}}/IR@1",), minus=scores[f"retrieval_{group}"].of
        )
    return Study(
        name="demo",
        about="configs/rc3_demo.py, 500 steps; with no contrast of weak rows (`off`), with one that "
        "trains all parameters (`all`), the same from the start in place of the second half "
        "(`early`), and with the wrong texts and images of matching drawn by similarity alone "
        "(`hard_negatives`). `gain` is what re-ranking adds to IR@1. The demo's form of the "
        "contrast, which begins late and trains the read-out alone, was chosen on seed 0.",
        base=lambda seed: load_config(DEMO),
        languages=GROUPS,
        variants={
            "demo": {},
            "off": {**OFF, "objective.weak_start": 0.0},
            "all": {"objective.weak_gradient": "all"},
            "early": {"objective.weak_gradient": "all", "objective.weak_start": 0.0},
            "hard_negatives": {"objective.random_negatives": 0.0},
        },
        baseline="demo",
        seeds=(0,),
        fresh_seeds=(1, 2),
        scores=scores | DEPENDENCE,
        claims=(
            *helps(
                f"The regularized contrast of weak pairs helps {IN_WEAK}.",
                ("demo",),
                "off",
                "retrieval_weak",
            ),
            *helps(
                "The contrast of weak pairs had better train the read-out of z alone.",
                ("demo",),
                "all",
                *LEARNED,
            ),
            *helps(
                "The contrast of weak pairs is better left out of the first half.",
                ("all",),
                "early",
                *LEARNED,
            ),
            *helps(PROXIMITY, ("demo", "all"), "off", "proximity_relevance"),
            Claim(
                sentence="The relevance of texts knows more of the truth than their length.",
                score="relevance_above_length",
                variants=("demo",),
                than=0.15,
            ),
            *depends(("demo",)),
            *(
                Claim(
                    sentence=f"{sentence}, in the {group} languages.",
                    score=f"{score}_{group}",
                    variants=("demo",),
                    than=than,
                )
                for group in GROUPS
                for sentence, score, than in (
                    ("Random negatives help matching", "matching_accuracy", "hard_negatives"),
                    ("Re-ranking raises recall", "gain", 0.0),
                )
            ),
        ),
    )
