"""What fine-tuning and evaluation leave behind: scores with their origin, and predictions."""

from __future__ import annotations

import hashlib
import json
import pathlib
import re
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import ml_collections

from rc3_jax.convert.output import write_json
from rc3_jax.tasks.base import ENGLISH, Example, TaskData, checksum
from rc3_jax.tasks.benchmarks import TASKS
from rc3_jax.tasks.head import Scored
from rc3_jax.tasks.scoring import rank_variance

SCORES, PREDICTIONS = "scores.json", "predictions"
APART = (
    *("name", "annotations", "images", "english", "answers", "threads", "mesh", "seed"),
    *("few_shot", "save_minutes", "remat", "log_every", "watchdog_minutes"),
)
"""Settings that the checksum leaves out: no result depends on them, or it states them itself."""

Examples = Mapping[str, Sequence[Example]]
"""language → examples."""


def config_checksum(config: ml_collections.ConfigDict) -> str:
    """SHA-256 of the settings but `APART`: folders, devices, the seed and the like."""
    chosen = {name: value for name, value in config.to_dict().items() if name not in APART}
    return hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()


def shots_of_split(split: str) -> str | None:
    """The shots of a few-shot split: "10x2" for "train_10x2"; None for other splits."""
    found = re.fullmatch(r"train_(\d+(?:x\d+)?)", split)
    return found[1] if found else None


def protocol(config: ml_collections.ConfigDict) -> str:
    """The name of what `config.train` and `config.test` do."""
    languages, split = tuple(config.train.languages), config.train.split
    if config.test.split.endswith("_mt"):
        return "translate-test"
    if shots_of_split(split):
        return "few-shot"
    if split.endswith("_mt"):
        return "translate-train"
    if languages == (ENGLISH,):
        return "zero-shot"
    return "single language" if len(languages) == 1 else "all languages"


def result_of(
    config: ml_collections.ConfigDict,
    data: TaskData,
    read: Mapping[str, Examples],
    found: Mapping[str, Scored],
    **more: Any,
) -> dict[str, Any]:
    """What `scores.json` holds; see docs/tasks.md.

    Args:
      read: use and split → the examples: to train on, dev and test.
      found: language of the test → scores and predictions. Of a task with classes, the examples whose
        label is none of them, which no prediction gets right, are counted as `no_class`.
      more: further fields, of which `train` is None for a model that was not fine-tuned.
    """
    test, chosen = config.test.split, config.test.languages
    lost = {c: n for c, n in data.left_out.get(test, {}).items() if not chosen or c in chosen}
    tested = {code: len(scored.predictions) for code, scored in found.items()}
    test_examples = read.get(f"test {test}", {}) if data.classes else {}
    none = {code: sum(e.label is None for e in of) for code, of in test_examples.items()}
    return {
        "task": config.task,
        "protocol": protocol(config) if more["train"] else "no fine-tuning",
        "shots": shots_of_split(config.train.split) if more["train"] else None,
        "seed": config.seed,
        "data": config.annotations,
        "test": {"split": test, "examples": tested, "left_out": lost},
        "no_class": {code: count for code, count in none.items() if count},
        "scores": {code: scored.scores for code, scored in found.items()},
        "across": across_languages(found),
        "config_sha256": config_checksum(config),
        "data_sha256": checksum(read, data.classes),
        **more,
    }


def across_languages(found: Mapping[str, Scored]) -> dict[str, float]:
    """`IR rank variance` and `TR rank variance` of retrieval, where there are; see `rank_variance`.

    An image with several texts has the mean of their ranks. Texts whose image was not found take no
    part.
    """
    variances = {}
    for name in ("IR", "TR"):
        means = {}
        for code, scored in found.items():
            ranks: dict[str, list[int]] = {}
            for row in scored.predictions:
                if row.get(f"{name} rank") is not None:
                    ranks.setdefault(row["picture"], []).append(row[f"{name} rank"])
            means[code] = {picture: sum(own) / len(own) for picture, own in ranks.items()}
        variances[f"{name} rank variance"] = rank_variance(means)
    return {name: variance for name, variance in variances.items() if variance is not None}


def write_result(folder: pathlib.Path, result: Mapping[str, Any], found: Mapping[str, Scored]):
    """Writes predictions, and when they are complete `scores.json`; the first process alone does.

    `predictions/<language>.jsonl` has a row for each example; `predictions/<language>.json` is what
    the benchmark's own script reads, for tasks that have one (`Task.submission`).
    """
    if jax.process_index():
        return
    shutil.rmtree(folder / PREDICTIONS, ignore_errors=True)
    (folder / PREDICTIONS).mkdir(parents=True)
    for code, scored in found.items():
        file = folder / PREDICTIONS / f"{code}.jsonl"
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in scored.predictions)
        file.write_text("".join(lines), encoding="utf-8")
        if names := TASKS[result["task"]].submission:
            answers = [
                dict(zip(names, (row["id"], row["prediction"]), strict=True))
                for row in scored.predictions
            ]
            file.with_suffix(".json").write_text(json.dumps(answers), encoding="utf-8")
    write_json(folder / SCORES, result)
