"""A study in miniature: two variants, two seeds to choose on and one for the report."""

from rc3_jax.studies.study import Claim, Score, Study
from tests.tiny import itc_alone, tiny_config

TASK = {"generated.train": 16, "generated.dev": 8, "generated.test": 8, "batch_size": 8}


def base(seed):
    config = itc_alone(tiny_config())
    config.data.sources.scenes.seed = seed
    return config


def get_study(**changes):
    values = dict(
        name="tiny",
        about="Nothing is to be learned from it.",
        base=base,
        languages={"strict": ("en", "de"), "weak": ("cs", "ja")},
        variants={"slow": {}, "fast": {"optimizer.lr": 4e-3, "steps": 2}},
        baseline="slow",
        seeds=(0, 1),
        fresh_seeds=(7,),
        tasks=("xvnli",),
        task_settings={**TASK, "epochs": 1, "threads": 2, "max_length": 24},
        scores={
            "retrieval": Score(of=("retrieval/regions/{weak}/IR@1",)),
            "accuracy": Score(of=("xvnli/{weak}/accuracy", "xvnli/{strict}/accuracy")),
            "text": Score(of=("dependence/text_dependence",), percent=False),
        },
        claims=(
            Claim(sentence="Fast wins.", score="accuracy", variants=("fast",), than="slow"),
            Claim(sentence="Text counts.", score="text", variants=("slow", "fast"), than=0.0),
        ),
    )
    return Study(**(values | changes))
