"""The model of a task, from its settings, its data and a pre-trained model."""

from __future__ import annotations

import functools
from collections.abc import Callable

import ml_collections
from jax.sharding import Mesh

from rc3_jax.config import ConfigError, check_choice
from rc3_jax.data.tokenizer import PAD_ID, Tokenizer
from rc3_jax.downstream.answering import answerer
from rc3_jax.downstream.batches import Batches, picture_fields
from rc3_jax.downstream.classification import classifier
from rc3_jax.downstream.config import TASKS
from rc3_jax.downstream.examples import TaskData
from rc3_jax.downstream.learner import Learner
from rc3_jax.downstream.pretrained import Pretrained
from rc3_jax.downstream.retrieval import retrieval
from rc3_jax.evaluation.retrieval import MODES

HEADS = ("class", "decoder")
LENGTHS = 8
"""Texts are padded to a multiple of so many tokens."""

MakeBatches = Callable[..., Batches]
"""Examples, and by name what is to differ, to their batches."""


def make_learner(
    config: ml_collections.ConfigDict, data: TaskData, pretrained: Pretrained, mesh: Mesh
) -> tuple[Learner, MakeBatches]:
    """The task's model, and what makes batches of its examples; see `finetune_config`.

    Raises:
      ConfigError: for a head that the task cannot have; if the model was fine-tuned for another
        task, for other classes or with another head.
    """
    task = TASKS[config.task]
    check_choice("head", config.head, HEADS)
    if config.head == "decoder" and config.task != "xgqa":
        raise ConfigError(f"head='decoder' ranks the answers of xgqa; {config.task} has none")
    if pretrained.task not in (None, config.task):
        raise ConfigError(f"the model was fine-tuned for {pretrained.task}, not for {config.task}")
    head = pretrained.finetuning.get("head", "class")
    if pretrained.task is not None and head != config.head:
        raise ConfigError(
            f"head={config.head!r}: the model was fine-tuned with {head!r}; set "
            f"--config.head={head}, or start from the pre-trained model"
        )
    if pretrained.classes and pretrained.classes != data.classes:
        raise ConfigError(
            f"the model was fine-tuned for {len(pretrained.classes)} classes, which are not the "
            f"{len(data.classes)} of the data; start from the pre-trained model"
        )
    pretrained = pretrained._replace(tokenizer=_shortened(pretrained.tokenizer, data))
    settings = dict(model=pretrained.model, data=dict(threads=config.threads))
    settings = ml_collections.ConfigDict(settings)
    check_choice("mode", config.mode, MODES)
    mode = config.mode
    if not pretrained.model.roi.regions:
        if mode == "regions":
            raise ConfigError("mode='regions': the model has no tower for regions; use patches")
        mode = "patches"
    make = functools.partial(
        Batches,
        tokenizer=pretrained.tokenizer,
        config=settings,
        batch_size=config.batch_size,
        mode=mode,
        mesh=mesh,
    )
    if task.retrieval:
        fields_of = functools.partial(picture_fields, config=settings, mode=mode)
        rerank = None if config.rerank < 0 else config.rerank
        options = config.batch_size, rerank, config.threads
        learner = retrieval(pretrained, mesh, fields_of, *options)
        numbers = {name: number for number, name in enumerate(data.pictures())}
        return learner, functools.partial(make, numbers=numbers)
    if config.head == "decoder":
        options = config.candidates, config.count_first_twice
        return answerer(pretrained, data.classes, mesh, make, *options), make
    return classifier(pretrained, data.classes, task.pictures, mesh, make, config.seed), make


def _shortened(tokenizer: Tokenizer, data: TaskData) -> Tokenizer:
    """Pads no further than the longest text or answer of the task, rounded up to `LENGTHS`."""
    texts = {*data.classes, *(example.text for example in data.examples())}
    longest = int((tokenizer.encode(sorted(texts)) != PAD_ID).sum(axis=1).max())
    return tokenizer.with_length(min(-(-longest // LENGTHS) * LENGTHS, tokenizer.max_length))
