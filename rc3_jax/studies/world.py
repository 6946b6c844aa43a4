"""Studies on configs/studies/world.py: what they have in common, and the variants of several."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from rc3_jax.scenes.source import STRICT_LANGUAGES, WEAK_LANGUAGES
from rc3_jax.studies.study import Claim, Score, Study, load_config

WORLD = pathlib.Path(__file__).parents[2] / "configs" / "studies" / "world.py"
Variants = Mapping[str, Mapping[str, Any]]

SCALE = 10.0
"""Of `hinge` and `mse`, which hardly bind at 1 (METHOD.md section 2)."""
REGULARIZED: Variants = {
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
"""The forms of the regularizer."""
OFF: Mapping[str, Any] = {"objective.regularizer": ("off",)}
NONE: Mapping[str, Any] = {"objective.regularizer": ("none",)}
STRICT_ONLY: Mapping[str, Any] = {**OFF, "batch_mix.weak": 0.0}
NO_ITC: Mapping[str, Any] = {"objective.weights.itc": 0.0}
TASKS = ("xvnli", "xgqa", "marvl")
"""Those with short texts. Captions of the others may mention more objects than the world's; retrieval
is scored after pre-training instead."""
DEPENDENCE = {
    **{
        name: Score(of=(f"dependence/{name}",), percent=False)
        for name in ("text_dependence", "image_dependence", "proximity_relevance")
    },
    "relevance_above_length": Score(
        of=("dependence/relevance_spearman",), minus=("dependence/length_spearman",), percent=False
    ),
}
"""What z depends on, and what the relevance of texts is worth."""
IN_WEAK = "in languages that have only weak pairs"
PROXIMITY = "With a regularizer the proximity follows the relevance of texts."


def world_study(
    name: str,
    about: str,
    variants: Variants,
    claims: Sequence[Claim],
    baseline: str = "off",
    vectors: bool = True,
    mode: str = "regions",
    scores: Mapping[str, Score] = {},
) -> Study:
    """A study with the scores that all have.

    They are `tasks_weak` and `tasks_strict`, means over all tasks in the languages with weak pairs alone
    and in the others; of each task by itself, such as `xvnli_weak`; of pre-training, the accuracy of
    matching, retrieval by matching alone and `retrieval_weak`, by vectors; the dependences; and what
    the relevance is worth.

    Args:
      vectors: whether there is `retrieval_weak`; without ITC vectors of images and texts do not meet.
      mode: what is shown of a picture where tasks, matching and `retrieval_weak` are scored.
      scores: further ones.
    """
    tasks = {
        group: tuple(f"{task}/{{{group}}}/accuracy" for task in TASKS)
        for group in ("weak", "strict")
    }
    every = {f"tasks_{group}": Score(of=of) for group, of in tasks.items()}
    every |= {pattern.split("/")[0] + "_weak": Score(of=(pattern,)) for pattern in tasks["weak"]}
    every["matching_accuracy_weak"] = Score(of=(f"matching/{mode}/{{weak}}/pairwise_accuracy",))
    every["matching_retrieval_weak"] = Score(of=(f"matching/{mode}/{{weak}}/IR@1",))
    if vectors:
        every["retrieval_weak"] = Score(of=(f"retrieval/{mode}/{{weak}}/IR@1",))
    for figure in ("relevance_spearman", "length_spearman"):
        every[figure] = Score(of=(f"dependence/{figure}",), percent=False)
    return Study(
        name=name,
        about=about,
        base=lambda seed: load_config(WORLD),
        languages={"strict": STRICT_LANGUAGES, "weak": WEAK_LANGUAGES},
        variants={name: dict(settings) for name, settings in variants.items()},
        baseline=baseline,
        seeds=(0, 1, 2),
        fresh_seeds=(10, 11, 12, 13, 14),
        tasks=TASKS,
        task_settings={"max_length": load_config(WORLD).data.max_length, "mode": mode},
        scores=every | DEPENDENCE | dict(scores),
        claims=tuple(claims),
    )


def helps(sentence: str, variants: Sequence[str], than: str, *scores: str) -> list[Claim]:
    """Claims that variants have higher scores than another, one for each score."""
    return [
        Claim(
            sentence=f"{sentence.removesuffix('.')}: {score}.",
            score=score,
            variants=tuple(variants),
            than=than,
        )
        for score in scores
    ]


def depends(variants: Sequence[str]) -> list[Claim]:
    """Claims that z of variants depends on the text and on the image, by more than 0.1."""
    return [
        Claim(
            sentence=f"The fused vector depends on the {what}.",
            score=f"{what}_dependence",
            variants=tuple(variants),
            than=0.1,
        )
        for what in ("text", "image")
    ]


def weak_pair_study(name: str, about: str, settings: Mapping[str, Any], has_itc: bool) -> Study:
    """Each form of the regularizer against leaving the contrast of weak rows out.

    Args:
      settings: of all variants.
    """
    scores = ("tasks_weak", "matching_retrieval_weak", *["retrieval_weak"] * has_itc)
    forms, contrasted = tuple(REGULARIZED), ("none", *REGULARIZED)
    claims = [
        *helps(
            f"Images with weak pairs help {IN_WEAK}.", ("off", *contrasted), "strict_only", *scores
        ),
        *helps(f"A regularized contrast of weak pairs helps {IN_WEAK}.", forms, "off", *scores),
        *helps("The contrast of weak pairs needs a regularizer.", forms, "none", *scores),
    ]
    claims += helps(PROXIMITY, forms, "none", "proximity_relevance")
    claims += helps(PROXIMITY, forms, "off", "proximity_relevance")
    claims += depends(contrasted)
    variants = {"strict_only": STRICT_ONLY, "off": OFF, "none": NONE, **REGULARIZED}
    return world_study(
        name,
        about,
        {name: {**settings, **own} for name, own in variants.items()},
        claims,
        vectors=has_itc,
    )
