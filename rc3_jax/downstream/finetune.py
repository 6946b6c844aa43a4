"""Fine-tuning on a task: train, select on dev, score every language of the test."""

from __future__ import annotations

import json
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec
from rich.console import Console

from rc3_jax.config import ConfigError
from rc3_jax.convert.output import write_json
from rc3_jax.data.record import DataError
from rc3_jax.data.tokenizer import FILE_NAME
from rc3_jax.downstream.config import TASKS
from rc3_jax.downstream.examples import Example, TaskData
from rc3_jax.downstream.learner import Learner
from rc3_jax.downstream.pretrained import Pretrained, load_pretrained
from rc3_jax.downstream.tasks import make_learner
from rc3_jax.parallel.mesh import BATCH, batch_devices, from_host, make_mesh
from rc3_jax.parallel.rules import shardings
from rc3_jax.training.checkpoint import PARAMS, save_params
from rc3_jax.training.optimizer import make_optimizer


def finetune(
    config: ml_collections.ConfigDict,
    data: TaskData,
    source: pathlib.Path,
    folder: pathlib.Path,
    console: Console | None = None,
) -> dict[str, Any]:
    """Trains from `source`, keeps the epoch that is best on dev, and scores it on the test.

    Writes `params`, `config.json`, the vocabulary and `scores.json` into `folder`, which may be
    the `source` of another fine-tuning, few-shot for instance.

    Args:
      config: see `finetune_config`.
      source: the folder of a run, of converted parameters, or of a fine-tuned model.

    Raises:
      ConfigError, DataError: for settings or data that cannot be; nothing is written then.

    Returns:
      What `scores.json` holds: the scores by language, and those of every epoch on dev.
    """
    console = Console() if console is None else console
    if (folder / PARAMS).exists():
        raise ConfigError(f"{folder} holds a fine-tuned model already; choose another --workdir")
    mesh = make_mesh(config.mesh)
    if config.batch_size % batch_devices(mesh):
        raise ConfigError(
            f"batch_size={config.batch_size} is not a multiple of the {batch_devices(mesh)} devices"
        )
    pretrained = load_pretrained(source, config.max_length)
    pretrained.model.dropout = config.dropout
    learner, batches = make_learner(config, data, pretrained, mesh)
    chosen = {name: examples_of(data, config[name], name) for name in ("train", "select", "test")}
    train = [e for of in chosen["train"].values() for e in of if _is_usable(e, config.task)]
    if not train:
        raise DataError(f"{config.task}: no example of {config.train.split} has a class to learn")
    console.print(
        f"{config.task}: {len(train):,} examples to train on, "
        + ", ".join(f"{len(of):,} in {code}" for code, of in chosen["test"].items())
        + " to test"
    )
    params, history = _train(
        config, learner, batches(train), batches, chosen["select"], mesh, console
    )
    scores = score_languages(learner, params, chosen["test"], console)
    result = {"task": config.task, "scores": scores, "dev": history}
    _write(folder, config, data, pretrained, params, result)
    return result


def evaluate(
    config: ml_collections.ConfigDict,
    data: TaskData,
    source: pathlib.Path,
    console: Console | None = None,
) -> dict[str, dict[str, float]]:
    """Scores of a model on `config.test`, by language.

    Args:
      source: the folder of a fine-tuned model; for retrieval also of a run, zero-shot without any
        fine-tuning.

    Raises:
      ConfigError, DataError: for settings or data that cannot be.
    """
    pretrained = load_pretrained(source, config.max_length)
    if pretrained.task is None and not TASKS[config.task].retrieval:
        raise ConfigError(f"{source} was not fine-tuned for {config.task}; use launch/finetune.py")
    learner, _ = make_learner(config, data, pretrained, make_mesh(config.mesh))
    return score_languages(learner, learner.params, examples_of(data, config.test, "test"), console)


def score_languages(
    learner: Learner,
    params: Any,
    examples: Mapping[str, Sequence[Example]],
    console: Console | None,
) -> dict[str, dict[str, float]]:
    """language → scores, each printed when it is known."""
    scores = {}
    for code, of in examples.items():
        scores[code], _ = learner.score(params, of, final=True)
        (console or Console()).print(f"{code}: {_line(scores[code])}")
    return scores


def examples_of(
    data: TaskData, chosen: Mapping[str, Any], what: str
) -> dict[str, Sequence[Example]]:
    """language → examples of a split, of all its languages where none are named.

    Raises:
      DataError: if the task has no such split, or not in such a language.
    """
    languages = data.splits.get(chosen["split"])
    if languages is None:
        known = ", ".join(data.splits)
        raise DataError(f"{what}.split={chosen['split']!r}: the data have {known}")
    missing = [code for code in chosen["languages"] if code not in languages]
    if missing:
        raise DataError(
            f"{what}.languages: {chosen['split']} has no {', '.join(missing)}; it has "
            f"{', '.join(languages)}"
        )
    return {code: languages[code] for code in chosen["languages"] or languages}


def _is_usable(example: Example, task: str) -> bool:
    return TASKS[task].retrieval or example.label is not None


def _train(config, learner: Learner, train: Batches, batches, dev, mesh, console):
    """The parameters that are best on dev, and the dev scores of every epoch."""
    steps = config.epochs * len(train)
    optimizer = make_optimizer(config.optimizer, steps, learner.params)
    state = (learner.params, optimizer.init(learner.params))
    places = shardings(state, mesh, config.mesh)

    def step(state, batch, number):
        params, moments = state
        key = jax.random.fold_in(jax.random.key(config.seed), number)
        loss, gradients = jax.value_and_grad(learner.loss)(params, batch, key)
        updates, moments = optimizer.update(gradients, moments, params)
        return (optax.apply_updates(params, updates), moments), loss

    whole = NamedSharding(mesh, PartitionSpec())
    compiled = jax.jit(
        step,
        in_shardings=(places, NamedSharding(mesh, BATCH), whole),
        out_shardings=(places, whole),
        donate_argnums=0,
    )
    state = jax.device_put(state, places)
    best, kept, history, begun = -np.inf, None, [], time.perf_counter()
    for epoch in range(config.epochs):
        losses = []
        for place, batch in enumerate(train.shuffled(config.seed, epoch)):
            number = np.int32(epoch * len(train) + place)
            state, loss = compiled(state, from_host(batch, mesh), number)
            losses.append(loss)
        mean = float(np.mean(jax.device_get(losses)))
        if not np.isfinite(mean):
            raise FloatingPointError(f"the loss of epoch {epoch + 1} is {mean}; lower optimizer.lr")
        found = {code: learner.score(state[0], examples)[0] for code, examples in dev.items()}
        value = float(np.mean([scores[learner.main] for scores in found.values()]))
        history.append({"epoch": epoch + 1, "loss": mean, **found})
        console.print(
            f"epoch {epoch + 1}/{config.epochs}  loss {mean:.3f}  dev {learner.main} "
            f"{value:.1%}  {time.perf_counter() - begun:.0f} s"
        )
        if value > best:  # the earlier one of equals
            best, kept = value, jax.device_get(state[0])
    return jax.device_put(kept, places[0]), history


def _line(scores: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {value:.1%}" for name, value in scores.items())


def _write(folder, config, data, pretrained: Pretrained, params, result) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_params(folder, params)
    if jax.process_index():
        return
    settings = {
        "system": pretrained.system,
        "model": json.loads(pretrained.model.to_json()),
        "vocab_size": pretrained.tokenizer.vocab_size,
        "task": config.task,
        "classes": data.classes,
        "finetuning": json.loads(config.to_json_best_effort()),
    }
    write_json(folder / "config.json", settings)
    write_json(folder / "scores.json", result)
    (folder / FILE_NAME).write_text(pretrained.tokenizer.to_json(), encoding="utf-8")
