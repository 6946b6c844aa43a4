"""Builds the head of a task from its settings, its data and a pre-trained model."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import ml_collections
from jax.sharding import Mesh

from rc3_jax.data.tokenizer import PAD_ID, Tokenizer
from rc3_jax.settings import ConfigError, check_choice
from rc3_jax.tasks.base import Example, TaskData
from rc3_jax.tasks.batches import Batches, MakeBatches, picture_fields
from rc3_jax.tasks.benchmarks import TASKS
from rc3_jax.tasks.classification import answer_head, class_head
from rc3_jax.tasks.head import TaskHead
from rc3_jax.tasks.retrieval import retrieval_head
from rc3_jax.training.load import LoadedModel

LENGTHS = 8
"""Texts are padded to a multiple of so many tokens."""


def make_head(
    config: ml_collections.ConfigDict, data: TaskData, pretrained: LoadedModel, mesh: Mesh
) -> TaskHead:
    """Builds the head of a task.

    Args:
      config: see `FinetuneSettings`.

    Raises:
      ConfigError: for a head that the task cannot have; if the model was fine-tuned for another
        task, for other classes or with another head.
    """
    task = TASKS[config.task]
    check_choice(f"head of {task.name}", config.head, task.heads)
    _check_fine_tuned(config, data, pretrained)
    pretrained = pretrained._replace(tokenizer=_shortened(pretrained.tokenizer, data))
    regions = bool(pretrained.settings.roi.regions)
    if config.mode == "regions" and not regions:
        raise ConfigError("mode='regions': the model has no tower for regions; use patches")
    read = functools.partial(
        picture_fields,
        config=ml_collections.ConfigDict(dict(model=pretrained.settings)),
        mode=config.mode if regions else "patches",
    )
    batches = functools.partial(
        Batches,
        tokenizer=pretrained.tokenizer,
        read=read,
        batch_size=config.batch_size,
        mesh=mesh,
        threads=config.threads,
    )
    if task.retrieval:
        rerank = None if config.rerank < 0 else config.rerank
        numbers = {name: number for number, name in enumerate(data.pictures())}
        return retrieval_head(
            pretrained,
            mesh,
            _grouped(batches, numbers),
            read,
            config.batch_size,
            rerank,
            config.threads,
        )
    if config.head == "decoder":
        candidates, twice = config.candidates, config.count_first_twice
        return answer_head(pretrained, data.classes, mesh, batches, candidates, twice)
    return class_head(pretrained, data.classes, task.pictures, mesh, batches, config.seed)


def _check_fine_tuned(config, data: TaskData, pretrained: LoadedModel) -> None:
    """Raises ConfigError unless a fine-tuned model is one for this task."""
    if pretrained.task is None:
        return
    if pretrained.task != config.task:
        raise ConfigError(
            f"the model was fine-tuned for {pretrained.task}, not for {config.task}; start from the "
            "pre-trained model"
        )
    head = pretrained.finetuning.get("head", "class")
    if head != config.head:
        raise ConfigError(
            f"head={config.head!r}: the model was fine-tuned with {head!r}; set "
            f"--config.head={head}, or start from the pre-trained model"
        )
    if pretrained.classes != data.classes:
        raise ConfigError(
            f"the model was fine-tuned for {len(pretrained.classes)} classes, which are not the "
            f"{len(data.classes)} of the data; start from the pre-trained model"
        )


def _grouped(batches: MakeBatches, numbers: Mapping[str, int]) -> MakeBatches:
    """Batches whose label is the number of the picture: rows of equal numbers are no negatives."""

    def make(examples: Sequence[Example], **changes) -> Batches:
        labels = (numbers[example.pictures[0].name] for example in examples)
        rows = [dataclasses.replace(e, label=n) for e, n in zip(examples, labels, strict=True)]
        return batches(rows, **changes)

    return make


def _shortened(tokenizer: Tokenizer, data: TaskData) -> Tokenizer:
    """Pads no further than the longest text or answer of the task, rounded up to `LENGTHS`."""
    texts = {*data.classes, *(example.text for example in data.examples())}
    longest = int((tokenizer.encode(sorted(texts)) != PAD_ID).sum(axis=1).max())
    return tokenizer.with_length(min(-(-longest // LENGTHS) * LENGTHS, tokenizer.max_length))
