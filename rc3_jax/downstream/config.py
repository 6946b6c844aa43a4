"""Settings of fine-tuning, by task and system."""

from __future__ import annotations

import dataclasses

import ml_collections
from ml_collections import config_dict

from rc3_jax.config import ConfigError, check_choice, parse_argument

MINIATURE = "miniature"
"""In place of a folder: the task is generated."""
MINIATURES = ("xvnli", "xgqa", "marvl", "xflickrco", "wit")
ENGLISH = "en"


@dataclasses.dataclass(frozen=True)
class Task:
    """What sets a task apart.

    Attributes:
      pictures: of a text.
      retrieval: texts and images look for one another; otherwise a text has a class.
      epochs, lr, batch_size: of fine-tuning in English, as IGLUE's baselines were
        (Bugliarello et al., ICML 2022), where it has the task.
    """

    pictures: int = 1
    retrieval: bool = False
    epochs: int = 10
    lr: float = 2e-5
    batch_size: int = 128


TASKS = {
    "xvnli": Task(),
    "xgqa": Task(epochs=5, lr=4e-5, batch_size=256),
    "marvl": Task(pictures=2, epochs=20, lr=1e-5, batch_size=64),
    "xflickrco": Task(retrieval=True, batch_size=64),
    "wit": Task(retrieval=True, epochs=2, batch_size=64),
    "multi30k": Task(retrieval=True, batch_size=64),
    "mscoco": Task(retrieval=True, batch_size=64),
}


def finetune_config(task: str) -> ml_collections.ConfigDict:
    """Zero-shot transfer: trained and selected on English, tested in every language.

    Raises:
      ConfigError: for an unknown task.
    """
    check_choice("the task", task, TASKS)
    chosen = TASKS[task]
    return ml_collections.ConfigDict(
        dict(
            name=task,
            task=task,
            annotations="",  # folder of the task's files; MINIATURE generates the task
            generated=config_dict.placeholder(ml_collections.ConfigDict),  # of MINIATURE alone
            images="",  # folder of its pictures; several are joined by ":"
            english="",  # folder of the English files: GQA, NLVR2 or Flickr30k
            answers="",  # file of GQA's answers, if it is not in that folder
            strip_phrase_numbers=False,  # of Japanese captions of xFlickr&CO
            allow_missing=False,  # goes on where more than 5 % of the pictures are missing
            mode="both",  # visual parts that are read: both, patches or regions
            rerank=128,  # candidates that the matching head orders; 0 for none, -1 for all
            head="class",  # of xgqa also "decoder", which ranks the answers as sentences
            candidates=128,  # answers that the decoder ranks, those of the likeliest first tokens
            count_first_twice=False,  # an answer's first token weighs double, as published
            epochs=chosen.epochs,
            batch_size=chosen.batch_size,
            max_length=80 if task != "xgqa" else 40,  # tokens of a text, at most the model's
            max_words=config_dict.placeholder(int),  # of cleaned texts; 0: as they are
            seed=0,
            lrs=(),  # rates in place of optimizer.lr, each tried; what is best on dev is kept
            dropout=0.1,
            remat=config_dict.placeholder(str),  # none, dots or full; None: as in pre-training
            train=dict(split="train", languages=(ENGLISH,)),
            select=dict(split="dev", languages=(ENGLISH,)),
            test=dict(split="test", languages=()),  # () for all that there are
            few_shot=dict(epochs=20, lrs=(1e-4, 5e-5, 1e-5)),  # of launch/iglue.py; as IGLUE's
            threads=8,
            save_minutes=5.0,  # after an epoch, if so many have passed; what an interruption costs
            mesh=dict(replica=1, data=-1, fsdp=1, tensor=1, fsdp_threshold=2**20, rules=()),
            optimizer=dict(
                lr=chosen.lr,
                warmup=0.1,
                decay="linear",
                final_lr=0.0,
                weight_decay=1e-4,
                b1=0.9,
                b2=0.999,
                eps=1e-6,
                clip=1.0,
                mu_dtype=config_dict.placeholder(str),
                rates=dict(),
                no_decay=(r".*/bias", r".*norm/scale"),
            ),
        )
    )


def task_config(task: str, argument: str) -> ml_collections.ConfigDict:
    """What a file of configs/downstream returns.

    Args:
      argument: what follows the colon of `--config`: `annotations`, `images` and `english` name the
        folders of real data; without them the task is generated from scenes, with settings for
        small models.

    Raises:
      ConfigError: for an unknown argument.
    """
    chosen = parse_argument(argument, annotations="", images="", english="", seed=0)
    if (chosen.images or chosen.english) and not chosen.annotations:
        raise ConfigError(
            "images and english are of the files in annotations: name that folder too"
        )
    if chosen.annotations or task not in MINIATURES:
        config = finetune_config(task)
        config.update(chosen)
        return config
    return miniature_config(task, chosen.seed)


def miniature_config(task: str, seed: int = 0) -> ml_collections.ConfigDict:
    """The task generated from scenes, with settings for models of the demo."""
    config = finetune_config(task)
    config.update(annotations=MINIATURE, seed=seed, dropout=0.0, max_length=60, batch_size=64)
    config.update(rerank=0)  # the matching head of so short a run knows little
    config.update(epochs=2 if TASKS[task].retrieval else 6)
    examples = 3000
    if task == "marvl":  # hard to learn: new examples help more than further epochs
        examples, config.epochs = 9000, 3
    config.generated = ml_collections.ConfigDict(dict(train=examples, dev=300, test=300))
    config.optimizer.lr = 1e-3
    config.few_shot.lrs = (1e-3, 5e-4, 1e-4)
    return config
