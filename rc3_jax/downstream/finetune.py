"""Fine-tuning on a task: train, select on dev, score every language of the test."""

from __future__ import annotations

import json
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import jax
import ml_collections
from jax.experimental.multihost_utils import sync_global_devices
from rich.console import Console

from rc3_jax.config import ConfigError, check_choice
from rc3_jax.convert.output import write_json
from rc3_jax.data.record import DataError
from rc3_jax.data.tokenizer import FILE_NAME
from rc3_jax.downstream.config import TASKS
from rc3_jax.downstream.examples import Example, TaskData, checksum
from rc3_jax.downstream.learner import Learner, Scored
from rc3_jax.downstream.pretrained import Pretrained, load_pretrained, params_checksum
from rc3_jax.downstream.results import (
    APART,
    SCORES,
    Examples,
    result_of,
    score_line,
    write_result,
)
from rc3_jax.downstream.tasks import make_learner
from rc3_jax.downstream.train import train
from rc3_jax.models.layers import REMAT_POLICIES
from rc3_jax.observe.log import Say, speaker
from rc3_jax.parallel.mesh import batch_devices, make_mesh
from rc3_jax.training.checkpoint import PARAMS, save_params
from rc3_jax.training.memory import explain_out_of_memory

OF_OTHERS = ("test", "rerank", "few_shot")
"""Settings that training does not read."""
OF_MODEL = ("head", "mode", "seed")
"""Settings that a fine-tuned model keeps when it is scored."""
SMALLER_BATCH = "batch_size: activations shrink with it"
MEMORY_ADVICE = (
    "change remat=full: one forward pass more, and the least of activations",
    f"or {SMALLER_BATCH}; retrieval has fewer negatives to train on",
    "or mesh.fsdp: spreads parameters and moments over so many devices",
)
UNFINISHED = "unfinished"
"""Folder of what an interrupted fine-tuning needs."""


@explain_out_of_memory(lambda: MEMORY_ADVICE)
def finetune(
    config: ml_collections.ConfigDict,
    data: TaskData,
    source: pathlib.Path,
    folder: pathlib.Path,
    console: Console | None = None,
    keep: bool = True,
) -> dict[str, Any]:
    """Trains from `source`, keeps the epoch that is best on dev, and scores it on the test.

    Writes `params`, `config.json`, the vocabulary, `predictions` and last `scores.json` into
    `folder`, which may be the `source` of another fine-tuning, few-shot for instance. Called again
    for the folder of one that was interrupted, it goes on from the last epoch that ended.

    Args:
      config: see `finetune_config`.
      source: the folder of a run, of converted parameters, or of a fine-tuned model.
      keep: False writes scores and predictions only.

    Raises:
      ConfigError, DataError: for settings or data that cannot be; nothing is written then.
      FloatingPointError: if the loss is no number.
      OutOfMemory: if a device's memory does not suffice.

    Returns:
      What `scores.json` holds; see docs/tasks.md.
    """
    say = speaker(console)
    used = [name for name in (SCORES, "config.json", "checkpoints") if (folder / name).exists()]
    if SCORES in used or (used and not (folder / UNFINISHED).exists()):
        raise ConfigError(f"{folder} holds a model or scores already; choose another --workdir")
    check_settings(config)
    config = config.copy_and_resolve_references()
    mesh = make_mesh(config.mesh)
    pretrained = load_pretrained(source, config.max_length, config.max_words)
    pretrained.model.dropout = config.dropout
    pretrained.model.remat = config.remat or pretrained.model.get("remat", "none")
    chosen = {name: examples_of(data, config[name], name) for name in ("train", "select", "test")}
    usable = [e for of in chosen["train"].values() for e in of if _is_usable(e, config.task)]
    if not usable:
        raise DataError(f"{config.task}: no example of {config.train.split} has a class to learn")
    devices = batch_devices(mesh)
    rows = min(config.batch_size, -(-len(usable) // devices) * devices)
    learner, batches = make_learner(config, data, pretrained, mesh)
    say(
        f"{config.task}: {len(usable):,} examples to train on, "
        + ", ".join(f"{len(of):,} in {code}" for code, of in chosen["test"].items())
        + " to test"
    )
    settings = json.loads(config.to_json_best_effort())
    by_split = {f"{name} {config[name].split}": of for name, of in chosen.items()}
    learned = {name: chosen[name] for name in ("train", "select")}
    origin = {"model_sha256": params_checksum(pretrained.params)}
    identity = {name: settings[name] for name in settings.keys() - {*APART, *OF_OTHERS}}
    identity |= {"seed": config.seed, "data": checksum(learned, data.classes), **origin}
    params, best, history = train(
        config,
        learner,
        batches(usable, batch_size=rows),
        chosen["select"],
        mesh,
        folder / UNFINISHED,
        identity,
        say,
    )
    found = score_languages(config, data, learner, params, chosen["test"], say)
    origin |= {
        "system": pretrained.system,
        "from": str(source),
        "train": dict(settings["train"], examples=len(usable)),
        "dev": history,
        "best": best,
    }
    result = result_of(config, data, by_split, found, **origin)
    if keep:
        _write_model(folder, settings | {"train": origin["train"]}, data, pretrained, params)
    write_result(folder, result, found)
    if jax.process_index() == 0:
        shutil.rmtree(folder / UNFINISHED)
    sync_global_devices("fine-tuned")
    return result


@explain_out_of_memory(lambda: [f"change {SMALLER_BATCH}"])
def evaluate(
    config: ml_collections.ConfigDict,
    data: TaskData,
    source: pathlib.Path,
    folder: pathlib.Path | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Scores of a model on `config.test`, by language.

    Args:
      source: the folder of a fine-tuned model; for retrieval also of a run, zero-shot without any
        fine-tuning.
      folder: for `scores.json` and `predictions`; None writes nothing.

    Raises:
      ConfigError, DataError: for settings or data that cannot be.
      OutOfMemory: if a device's memory does not suffice.

    Returns:
      What `scores.json` holds; see docs/tasks.md.
    """
    say = speaker(console)
    config = config.copy_and_resolve_references()
    if folder is not None and (folder / SCORES).exists():
        raise ConfigError(f"{folder} holds scores already; choose another --output")
    check_settings(config)
    pretrained = load_pretrained(source, config.max_length, config.max_words)
    if pretrained.task is None and not TASKS[config.task].retrieval:
        raise ConfigError(f"{source} was not fine-tuned for {config.task}; use launch/finetune.py")
    tuned = pretrained.finetuning
    if tuned:
        config.train.update(split=tuned["train"]["split"])
        config.train.languages = tuple(tuned["train"]["languages"])
        config.update({name: tuned[name] for name in OF_MODEL})
    chosen = examples_of(data, config.test, "test")
    learner, _ = make_learner(config, data, pretrained, make_mesh(config.mesh))
    found = score_languages(config, data, learner, learner.params, chosen, say)
    origin = {"model_sha256": params_checksum(pretrained.params), "train": tuned.get("train")}
    origin |= {"system": pretrained.system, "from": str(source)}
    result = result_of(config, data, {f"test {config.test.split}": chosen}, found, **origin)
    if folder is not None:
        write_result(folder, result, found)
    sync_global_devices("evaluated")
    return result


def check_settings(config: ml_collections.ConfigDict) -> None:
    """Raises ConfigError for settings that no later part reads by itself."""
    if "task" not in config:
        raise ConfigError("the configuration is of no task; name a file of configs/downstream")
    for name in ("epochs", "threads", "batch_size", "max_length"):
        if config[name] < 1:
            raise ConfigError(f"{name}={config[name]} must be at least 1")
    if (config.max_words or 0) < 0:
        raise ConfigError(f"max_words={config.max_words} must not be negative; 0 cleans no texts")
    if config.remat is not None:
        check_choice("remat", config.remat, REMAT_POLICIES)
    devices = batch_devices(make_mesh(config.mesh))
    if config.batch_size % devices:
        raise ConfigError(f"batch_size={config.batch_size} is no multiple of the {devices} devices")


def score_languages(
    config: ml_collections.ConfigDict,
    data: TaskData,
    learner: Learner,
    params: Any,
    examples: Examples,
    say: Say,
) -> dict[str, Scored]:
    """language → final scores and predictions, told as soon as they are known."""
    left_out, found = data.left_out.get(config.test.split, {}), {}
    for code, of in examples.items():
        found[code] = learner.score(params, of, final=True)
        say(score_line(code, found[code], left_out.get(code, 0)))
    return found


def examples_of(data: TaskData, chosen: Mapping[str, Any], what: str) -> Examples:
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


def _write_model(folder: pathlib.Path, finetuning, data, pretrained: Pretrained, params) -> None:
    if jax.process_index() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(folder / PARAMS, ignore_errors=True)  # of a writing that was cut short
    sync_global_devices("made room")
    save_params(folder, params)
    if jax.process_index():
        return
    settings = {
        "system": pretrained.system,
        "model": json.loads(pretrained.model.to_json()),
        "vocab_size": pretrained.tokenizer.vocab_size,
        "task": finetuning["task"],
        "classes": data.classes,
        "max_words": pretrained.max_words,
        "finetuning": finetuning,
    }
    write_json(folder / "config.json", settings)
    (folder / FILE_NAME).write_text(pretrained.tokenizer.to_json(), encoding="utf-8")
