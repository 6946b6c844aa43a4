"""The examples of a task, from its files or generated."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping, Sequence

import ml_collections

from rc3_jax.config import ConfigError
from rc3_jax.downstream.config import MINIATURE
from rc3_jax.downstream.damaged import without_damaged
from rc3_jax.downstream.examples import TaskData
from rc3_jax.downstream.miniatures import miniature
from rc3_jax.downstream.pictures import ImageFinder
from rc3_jax.downstream.readers import read_task, splits_of
from rc3_jax.observe.log import Say

PARTS = ("train", "select", "test")
"""Uses of the examples."""


def open_task(
    config: ml_collections.ConfigDict, say: Say = print, parts: Sequence[str] = PARTS
) -> TaskData:
    """The splits that `config` trains, selects and tests on; see `finetune_config`.

    Args:
      parts: reads the splits for these uses alone.
      say: is given a line on everything that is left out: files, rows, images.

    Raises:
      ConfigError, DataError: if they are not there or cannot be used.
    """
    if config.annotations == MINIATURE:
        return miniature(config.task, config.generated and config.generated.to_dict())
    if not config.annotations or not config.images:
        raise ConfigError(
            f"{config.task}: name the folders of its files and of its pictures: "
            f"--config=configs/downstream/{config.task}.py:annotations=/data/...,images=/data/..."
        )
    if config.generated:
        named = ("annotations", "images", "english")
        given = ",".join(f"{name}={config[name]}" for name in named if config[name])
        raise ConfigError(
            "the settings are those of the generated task; name the folders after the colon of "
            f"--config: configs/downstream/{config.task}.py:{given}"
        )
    notes: list[str] = []
    data = read_task(
        config.task,
        config.annotations,
        ImageFinder(config.images.split(os.pathsep), regions=config.mode != "patches"),
        splits=sorted({config[part].split for part in parts}),
        english=config.english or None,
        answers=config.answers or None,
        strip_phrase_numbers=config.strip_phrase_numbers,
        allow_missing=config.allow_missing,
        notes=notes,
    )
    for note in notes:
        say(f"note: {note}")
    return without_damaged(data, config.threads, config.allow_missing, say)


def available(config: ml_collections.ConfigDict) -> Mapping[str, list[str]]:
    """split → languages that a task's files have; no picture is looked for.

    Raises:
      DataError: if the files cannot be read.
    """
    if config.annotations == MINIATURE:
        data = miniature(config.task, dict.fromkeys(("train", "dev", "test"), 1))
        return {split: list(languages) for split, languages in data.splits.items()}
    given = config.annotations, config.english, config.answers
    return splits_of(config.task, *(pathlib.Path(path) if path else None for path in given))
