"""Settings of fine-tuning, by task and system."""

from __future__ import annotations

from typing import Literal

import ml_collections
from pydantic import Field, PositiveFloat

from rc3_jax.config import parse_argument
from rc3_jax.parallel.mesh import MeshSettings
from rc3_jax.settings import ConfigError, Settings, check_choice
from rc3_jax.tasks.base import ENGLISH
from rc3_jax.tasks.benchmarks import TASKS
from rc3_jax.training.optimizer import OptimizerSettings

MINIATURE = "miniature"
"""In place of a folder: the task is generated."""


class SplitSettings(Settings):
    """The examples of one use."""

    split: str
    """`train`, `dev`, `test`, `train_48` (48 shots), `test_mt` (machine translated), ..."""
    languages: tuple[str, ...] = (ENGLISH,)
    """Language codes; () takes every language of the split."""


class GeneratedSizes(Settings):
    """Numbers of examples of a generated task."""

    train: int = Field(3000, gt=0)
    dev: int = Field(300, gt=0)
    test: int = Field(300, gt=0)


class FewShotSettings(Settings):
    """Few-shot fine-tunings of launch/iglue.py; the defaults are those of IGLUE."""

    epochs: int = Field(20, gt=0)
    lrs: tuple[PositiveFloat, ...] = (1e-4, 5e-5, 1e-5)
    """Learning rates, each of which is tried."""


class FinetuneSettings(Settings):
    """Zero-shot transfer: trained and selected on English, tested in every language."""

    name: str
    """Name of the run."""
    task: str
    """Name of the task."""
    annotations: str = ""
    """Folder of the task's files; `miniature` generates the task."""
    generated: GeneratedSizes | None = None
    """Sizes of a generated task; unset for a task read from files."""
    images: str = ""
    """Folder of the images; several are joined by ":"."""
    english: str = ""
    """Folder of the English files: GQA, NLVR2 or Flickr30k."""
    answers: str = ""
    """File of GQA's answers where it is in none of these folders."""
    strip_phrase_numbers: bool = False
    """Removes the phrase numbers from Japanese captions of xFlickr&CO."""
    allow_missing: bool = False
    """Goes on where more than 5 % of the images of a split are missing."""
    mode: Literal["both", "patches", "regions"] = "both"
    """Parts of an image that the model reads."""
    rerank: int = Field(128, ge=-1)
    """Candidates that the matching head ranks; 0 for none, -1 for all."""
    head: Literal["class", "decoder"] = "class"
    """`decoder`, for questions alone, ranks the answers as sentences."""
    candidates: int = Field(128, gt=0)
    """Answers that the decoder ranks: those with the likeliest first tokens."""
    count_first_twice: bool = False
    """Counts an answer's first token twice, as the published code does."""
    epochs: int = Field(10, gt=0)
    batch_size: int = Field(128, gt=0)
    max_length: int = Field(80, gt=0)
    """Tokens of a text, at most the model's."""
    max_words: int | None = Field(None, ge=0)
    """Words of a cleaned text; 0 leaves texts as they are, None cleans as in pre-training."""
    seed: int = Field(0, ge=0, lt=2**32)
    lrs: tuple[PositiveFloat, ...] = ()
    """Rates in place of `optimizer.lr`, each of which is tried; the best one on dev is kept."""
    dropout: float = Field(0.1, ge=0, lt=1)
    remat: Literal["none", "dots", "full"] | None = None
    """What the backward pass recomputes; None: as in pre-training."""
    train: SplitSettings = SplitSettings(split="train")
    select: SplitSettings = SplitSettings(split="dev")
    """On these the best epoch is selected."""
    test: SplitSettings = SplitSettings(split="test", languages=())
    few_shot: FewShotSettings = FewShotSettings()
    threads: int = Field(8, gt=0)
    """Threads that read images."""
    log_every: int = Field(50, gt=0)
    """Steps between two console lines."""
    watchdog_minutes: float = Field(30.0, ge=0)
    """Minutes without progress after which the process ends; 0 waits for ever."""
    save_minutes: float = Field(5.0, ge=0)
    """A checkpoint is written after an epoch if so many minutes have passed since the last one."""
    mesh: MeshSettings = MeshSettings(rules=())
    optimizer: OptimizerSettings = OptimizerSettings(
        lr=2e-5,
        warmup=0.1,
        decay="linear",
        weight_decay=1e-4,
        b2=0.999,
        eps=1e-6,
    )


def finetune_config(task: str) -> ml_collections.ConfigDict:
    """The settings of a task that is read from files, see `FinetuneSettings`.

    Raises:
      ConfigError: for an unknown task.
    """
    check_choice("the task", task, TASKS)
    chosen = TASKS[task]
    config = FinetuneSettings(
        name=task,
        task=task,
        epochs=chosen.epochs,
        batch_size=chosen.batch_size,
        max_length=chosen.max_length,
    ).config_dict()
    config.optimizer.lr = chosen.lr
    return config


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
    if not chosen.annotations and TASKS[task].miniature:
        return miniature_config(task, chosen.seed)
    config = finetune_config(task)
    config.update(chosen)
    return config


def miniature_config(task: str, seed: int = 0) -> ml_collections.ConfigDict:
    """The settings of the task generated from scenes, for models of the demo.

    The matching head of so short a run knows little, so it ranks no candidates.
    """
    config = finetune_config(task)
    config.update(annotations=MINIATURE, seed=seed, dropout=0.0, max_length=60, batch_size=64)
    config.update(rerank=0, epochs=TASKS[task].miniature_epochs)
    config.generated = GeneratedSizes(train=TASKS[task].miniature_train).config_dict()
    config.optimizer.lr = 1e-3
    config.few_shot.lrs = (1e-3, 5e-4, 1e-4)
    return config
