"""Scores a model on the test of a task, in every language."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections
from jax.experimental.multihost_utils import sync_global_devices
from rich.console import Console

from rc3_jax.data.coverage import check_languages, coverage_lines, text_coverage
from rc3_jax.data.record import DataError
from rc3_jax.observe.log import Say, speaker
from rc3_jax.parallel.mesh import batch_devices, make_mesh
from rc3_jax.paths import check_local_paths
from rc3_jax.settings import ConfigError
from rc3_jax.tasks.base import TaskData, checksum
from rc3_jax.tasks.benchmarks import TASKS
from rc3_jax.tasks.config import FinetuneSettings
from rc3_jax.tasks.head import Scored, TaskHead
from rc3_jax.tasks.make_head import make_head
from rc3_jax.tasks.results import SCORES, Examples, result_of, write_result
from rc3_jax.training.load import LoadedModel, load_model, params_checksum
from rc3_jax.training.memory import explain_out_of_memory

OF_MODEL = ("head", "mode", "seed")
"""Settings that a fine-tuned model keeps when it is scored."""
SMALLER_BATCH = "batch_size: activations shrink with it"


@explain_out_of_memory(lambda: [f"change {SMALLER_BATCH}"])
def evaluate(
    config: ml_collections.ConfigDict,
    data: TaskData,
    source: pathlib.Path,
    folder: pathlib.Path | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Scores a model on `config.test`, by language.

    Args:
      source: the folder of a fine-tuned model; for retrieval also of a run, zero-shot without any
        fine-tuning.
      folder: for `scores.json` and `predictions`; None writes nothing.

    Raises:
      ConfigError, DataError: for invalid settings or data.
      OutOfMemory: if a device's memory does not suffice.

    Returns:
      What `scores.json` holds; see docs/tasks.md.
    """
    config = config.copy_and_resolve_references()
    if folder is not None and (folder / SCORES).exists():
        raise ConfigError(f"{folder} holds scores already; choose another --output")
    check_settings(config)
    pretrained = load_model(source, config.max_length, config.max_words)
    if pretrained.task is None and not TASKS[config.task].retrieval:
        raise ConfigError(f"{source} was not fine-tuned for {config.task}; use launch/finetune.py")
    if tuned := pretrained.finetuning:
        config.train.update(split=tuned["train"]["split"])
        config.train.languages = tuple(tuned["train"]["languages"])
        config.update({name: tuned[name] for name in OF_MODEL})
    examples, say = examples_of(data, config.test, "test"), speaker(console)
    read = {f"test {config.test.split}": examples}
    coverage = tell_coverage(pretrained, read, say)
    head = make_head(config, data, pretrained, make_mesh(config.mesh))
    found = score_languages(config, data, head, head.params, examples, say)
    origin = {"system": pretrained.system, "from": str(source), "train": tuned.get("train")}
    origin |= {"model_sha256": params_checksum(pretrained.params)}
    result = result_of(config, data, read, found, texts=coverage, **origin)
    if folder is not None:
        write_result(folder, result, found)
    sync_global_devices("evaluated")
    return result


def check_settings(config: ml_collections.ConfigDict) -> None:
    """Raises ConfigError for invalid settings."""
    if "task" not in config:
        raise ConfigError("the configuration is of no task; name a file of configs/downstream")
    check_local_paths(FinetuneSettings.parse(config))
    devices = batch_devices(make_mesh(config.mesh))
    if config.batch_size % devices:
        raise ConfigError(f"batch_size={config.batch_size} is no multiple of the {devices} devices")


def score_languages(
    config: ml_collections.ConfigDict,
    data: TaskData,
    head: TaskHead,
    params: Any,
    examples: Examples,
    say: Say,
) -> dict[str, Scored]:
    """Returns language → final scores and predictions; prints each as soon as it is known."""
    left_out, found = data.left_out.get(config.test.split, {}), {}
    for code, of_language in examples.items():
        found[code] = head.score(params, of_language, final=True)
        scores = "  ".join(f"{name} {value:.1%}" for name, value in found[code].scores.items())
        lost = left_out.get(code, 0)
        of = f"  (of {len(of_language):,} rows; {lost:,} more could not be used)" if lost else ""
        say(f"{code}: {scores}{of}")
    return found


def tell_coverage(
    pretrained: LoadedModel, read: Mapping[str, Examples], say: Say
) -> dict[str, dict[str, float]]:
    """Says how many texts are cut and how many pieces are unknown, with warnings of too many.

    Args:
      read: use and split → the examples, as `result_of` takes them.

    Returns:
      "split language" → the figures of a `Coverage`.
    """
    texts = {
        f"{name.split()[-1]} {code}": [example.text for example in examples]
        for name, languages in read.items()
        for code, examples in languages.items()
    }
    tokenizer, room = pretrained.tokenizer, pretrained.settings.text.room
    coverage = text_coverage(tokenizer, texts)
    for line in coverage_lines(coverage, tokenizer.max_length, "max_length", room):
        say(line)
    return {name: figures._asdict() for name, figures in coverage.items()}


def data_checksum(config: ml_collections.ConfigDict, data: TaskData, parts: Sequence[str]) -> str:
    """SHA-256 of the examples for some uses, `train`, `select` and `test`: see `checksum`."""
    read = {f"{part} {config[part].split}": examples_of(data, config[part], part) for part in parts}
    return checksum(read, data.classes)


def examples_of(data: TaskData, chosen: Mapping[str, Any], what: str) -> Examples:
    """The examples of a split in some languages, by default all.

    Args:
      chosen: `split` and `languages`.
      what: use of the split, for messages.

    Raises:
      DataError: if the task has no such split, or not in such a language.
    """
    languages = data.splits.get(chosen["split"])
    if languages is None:
        known = ", ".join(data.splits)
        raise DataError(f"{what}.split={chosen['split']!r}: the data have {known}")
    check_languages(f"{what}.languages", chosen["languages"], languages)
    return {code: languages[code] for code in chosen["languages"] or languages}
