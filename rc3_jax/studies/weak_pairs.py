"""Studies of what weak pairs are worth, and of each form of their regularizer (METHOD.md section 5)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import ml_collections

from rc3_jax.scenes.source import STRICT_LANGUAGES, WEAK_LANGUAGES
from rc3_jax.studies.study import Claim, Score, Study

SCALE = 10.0
"""Of `hinge` and `mse`, which hardly bind at 1 (METHOD.md section 2)."""
REGULARIZED: dict[str, dict[str, Any]] = {
    "weighted": {"objective.regularizer": ("weighted",)},
    "hinge": {"objective.regularizer": ("hinge",), "objective.scales.hinge": SCALE},
    "weighted_hinge": {
        "objective.regularizer": ("weighted", "hinge"),
        "objective.scales.hinge": SCALE,
    },
    "soft": {"objective.regularizer": ("soft",)},
    "mse": {"objective.regularizer": ("mse",), "objective.scales.mse": SCALE},
    "kl": {"objective.regularizer": ("kl",)},
}
OTHERS: dict[str, dict[str, Any]] = {
    "off": {"objective.regularizer": ("off",)},
    "strict_only": {"objective.regularizer": ("off",), "batch_mix.weak": 0.0},
    "none": {"objective.regularizer": ("none",)},
}
ACCURACY = {"xvnli": "accuracy", "xflickrco": "IR@1", "wit": "IR@1"}
"""Task → its score."""


def weak_pair_study(
    name: str,
    base: Callable[[int], ml_collections.ConfigDict],
    about: str,
    settings: Mapping[str, Any],
    scores: Mapping[str, Score],
) -> Study:
    """Each form of the regularizer against leaving the contrast of weak rows out.

    Args:
      base: seed → a configuration of RC³ on generated scenes.
      settings: of all variants.
      scores: further scores than those of tasks and of dependence. One named `retrieval_weak` is
        claimed to rise as that of tasks.
    """
    tasks = {
        group: tuple(f"{task}/{{{group}}}/{score}" for task, score in ACCURACY.items())
        for group in ("weak", "strict")
    }
    every = {f"tasks_{group}": Score(of=of) for group, of in tasks.items()}
    every |= {pattern.split("/")[0] + "_weak": Score(of=(pattern,)) for pattern in tasks["weak"]}
    every |= {
        figure: Score(of=(f"dependence/{figure}",), percent=False)
        for figure in ("text_dependence", "image_dependence", "proximity_relevance")
    }
    every |= scores
    forms, contrasted = tuple(REGULARIZED), ("none", *REGULARIZED)
    weak = "in languages that have weak pairs alone"
    claims = [
        Claim(
            sentence=f"Images with weak pairs help {weak}.",
            score="tasks_weak",
            variants=("off", *contrasted),
            than="strict_only",
        ),
        Claim(
            sentence=f"A regularized contrast of weak pairs helps {weak}.",
            score="tasks_weak",
            variants=forms,
            than="off",
        ),
        Claim(
            sentence="The contrast of weak pairs needs a regularizer.",
            score="tasks_weak",
            variants=forms,
            than="none",
        ),
        Claim(
            sentence="With a regularizer the proximity follows the relevance of texts.",
            score="proximity_relevance",
            variants=forms,
            than="none",
        ),
        Claim(
            sentence="The fused vector depends on the text.",
            score="text_dependence",
            variants=contrasted,
            than=0.0,
        ),
        Claim(
            sentence="The fused vector depends on the image.",
            score="image_dependence",
            variants=contrasted,
            than=0.0,
        ),
    ]
    if "retrieval_weak" in scores:
        claims.append(
            Claim(
                sentence=f"A regularized contrast of weak pairs helps retrieval {weak}.",
                score="retrieval_weak",
                variants=forms,
                than="off",
            )
        )
    return Study(
        name=name,
        about=about,
        base=base,
        languages={"strict": STRICT_LANGUAGES, "weak": WEAK_LANGUAGES},
        variants={name: {**settings, **own} for name, own in (OTHERS | REGULARIZED).items()},
        baseline="off",
        seeds=(0, 1, 2),
        fresh_seeds=(10, 11, 12, 13, 14),
        tasks=tuple(ACCURACY),
        scores=every,
        claims=tuple(claims),
    )
