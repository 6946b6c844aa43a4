"""What the share of weak pairs among images is worth, with and without their contrast.

python launch/ablate.py --study=configs/studies/share_of_weak.py
"""

from rc3_jax.studies.world import IN_WEAK, OFF, helps, world_study

SHARES = {0: (3.0, 0.0), 25: (2.25, 0.75), 50: (1.5, 1.5), 75: (0.75, 2.25)}
"""Per cent of the images → shares of strict and of weak rows, beside 1 of parallel text."""


def get_study():
    variants, claims = {}, []
    for percent, (strict, weak) in SHARES.items():
        mix = {"batch_mix.strict": strict, "batch_mix.weak": weak}
        variants[f"off_{percent}"] = {**OFF, **mix}
        if not weak:
            continue
        variants[f"weighted_{percent}"] = mix
        sentence = f"The contrast of weak pairs helps {IN_WEAK} at {percent} % of them."
        named = (f"weighted_{percent}",)
        claims += helps(sentence, named, f"off_{percent}", "tasks_weak", "retrieval_weak")
        sentence = f"{percent} % of weak pairs help {IN_WEAK}."
        claims += helps(sentence, named, "off_0", "tasks_weak", "retrieval_weak")
    return world_study("share_of_weak", "RC³ with ITC.", variants, claims, baseline="off_0")
