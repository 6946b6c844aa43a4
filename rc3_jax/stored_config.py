"""Configurations in the folders of runs and models: `config.json`, its former names, `--resume`."""

from __future__ import annotations

import fnmatch
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from flax.traverse_util import flatten_dict

from rc3_jax.data.jsonl import read_json
from rc3_jax.data.record import DataError
from rc3_jax.scenes.detector import DetectorSettings
from rc3_jax.settings import RENAMED, ConfigError, Settings, plain

CONFIG_FILE = "config.json"

REMOVED = ("data.regions.grid",)
"""Former settings that are derived from others now."""

MAY_CHANGE = (
    "name",
    "init",
    "steps",
    "optimizer.lr",
    "optimizer.warmup",
    "optimizer.decay",
    "optimizer.final_lr",
    "optimizer.weight_decay",
    "optimizer.clip",
    "microbatches",
    "mesh.*",
    "data.threads",
    "data.workers",
    "data.prefetch",
    "data.batch_cache",
    "data.skip_limit",
    "data.tokenizer.*",  # the run's folder holds its vocabulary
    "data.sources.*.captions",
    "data.sources.*.root",
    "data.sources.*.path",
    "data.sources.*.heldout_path",
    "data.sources.*.files.*",
    "data.sources.*.data_dir",
    "model.remat",
    "model.unroll",
    "model.attention",
    "objective.pairs.*",
    "evaluation.*",
    "log_every",
    "watchdog_minutes",
    "checkpoint.*",
)
"""Patterns of the settings that `--resume` takes with another value: those of the schedule, and what
changes neither the rows nor what is computed from them. The number of records is compared besides."""


def save_config(config: Settings, path: pathlib.Path) -> None:
    """Writes the settings as JSON."""
    path.write_text(config.model_dump_json(indent=2) + "\n", encoding="utf-8")


def read_config(folder: pathlib.Path) -> dict[str, Any]:
    """Reads `config.json` of a folder; settings with former names get their present ones.

    Raises:
      ConfigError: if it is missing or broken, or it, its `model` or its sources are no objects.
    """
    file = folder / CONFIG_FILE
    try:
        stored = read_json(file)
        for name in ("", "model", "data", "data.sources"):
            group = stored
            for part in filter(None, name.split(".")):
                group = group.get(part, {})
            if not isinstance(group, dict):
                raise ConfigError(f"{file}: {name or 'it'} must be an object")
        return _with_present_names(plain(stored))
    except (DataError, TypeError, RecursionError) as error:
        raise ConfigError(f"{file} cannot be read as settings of a model: {error}") from error


def _with_present_names(stored: dict[str, Any]) -> dict[str, Any]:
    """Stored settings with the names of today, and without settings that are derived today."""
    for old in (*RENAMED, *REMOVED):
        *path, name = old.split(".")
        group: Any = stored
        for part in path:
            group = group.get(part, {}) if isinstance(group, dict) else {}
        if not isinstance(group, dict) or name not in group:
            continue
        value = group.pop(name)
        if new := RENAMED.get(old):
            *path, name = new.split(".")
            target = stored
            for part in path:
                target = target.setdefault(part, {})
            target.setdefault(name, value)
    if isinstance(patch := stored.get("model", {}).get("patch"), dict) and "data" in stored:
        patch.setdefault("type", "vit")  # formerly the only one
    if "objective" in stored and stored.get("system") == "rc3":  # formerly the only relevance
        stored["objective"].setdefault("debias_relevance", False)
    for source in stored.get("data", {}).get("sources", {}).values():
        if (
            isinstance(source, dict) and source.get("type") == "scenes"
        ):  # formerly a detector without errors
            source.setdefault("detector", dict.fromkeys(DetectorSettings.model_fields, 0.0))
    return stored


def stored_max_words(stored: Mapping[str, Any]) -> int | None:
    """The number of words that cleaned captions keep; None where captions stay as they are.

    Args:
      stored: settings of a run, which has `data`, or of converted or fine-tuned parameters.
    """
    if "data" not in stored:
        return stored.get("max_words")
    return stored["data"].get("max_words") if stored["data"].get("clean_captions") else None


def changed_settings(before: Settings, now: Settings) -> dict[str, str]:
    """Compares the settings of a stored run with the present ones, for `--resume`.

    Returns:
      The name of each setting with another value -> a phrase with both values.
    """
    old, new = (
        flatten_dict(plain(settings), sep=".", keep_empty_nodes=True) for settings in (before, now)
    )
    return {
        name: f"{name} was {old.get(name)!r} and is {new.get(name)!r}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    }


def is_among(name: str, patterns: Iterable[str]) -> bool:
    """Whether one of the patterns, such as `objective.*`, stands for a setting."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
