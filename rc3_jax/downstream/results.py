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
from rc3_jax.downstream.config import ENGLISH
from rc3_jax.downstream.examples import Example, TaskData, checksum
from rc3_jax.downstream.learner import Scored
from rc3_jax.downstream.scoring import rank_variance

SCORES = "scores.json"
PREDICTIONS = "predictions"
APART = (
    *("name", "annotations", "images", "english", "answers", "threads", "mesh", "seed"),
    *("few_shot", "save_minutes", "remat"),
)
"""Settings that the checksum leaves out: a result does not depend on them, or tells them itself."""

Examples = Mapping[str, Sequence[Example]]


def config_checksum(config: ml_collections.ConfigDict) -> str:
    """SHA-256 of the settings, but for `APART`: folders, devices, the seed and the like."""
    chosen = {name: value for name, value in config.to_dict().items() if name not in APART}
    return hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()


def protocol(config: ml_collections.ConfigDict) -> tuple[str, str | None]:
    """The name of what `config.train` and `config.test` do, and of few-shot the shots as a text."""
    languages, split = tuple(config.train.languages), config.train.split
    if config.test.split.endswith("_mt"):
        return "translate-test", None
    if shots := re.fullmatch(r"train_(\d+(?:x\d+)?)", split):
        return "few-shot", shots[1]
    if split.endswith("_mt"):
        return "translate-train", None
    if languages == (ENGLISH,):
        return "zero-shot", None
    return ("single language" if len(languages) == 1 else "all languages"), None


def result_of(
    config: ml_collections.ConfigDict,
    data: TaskData,
    read: Mapping[str, Examples],
    found: Mapping[str, Scored],
    **more: Any,
) -> dict[str, Any]:
    """What `scores.json` holds; see docs/tasks.md.

    Args:
      read: use and split → language → the examples: to train on, dev and test.
      found: language of the test → what the model made of it.
      more: further fields, of which `train` is None for a model that was not fine-tuned.
    """
    name, shots = protocol(config) if more["train"] else ("no fine-tuning", None)
    test, left_out = config.test.split, data.left_out.get(config.test.split, {})
    left_out = {
        code: count
        for code, count in left_out.items()
        if code in (tuple(config.test.languages) or left_out)
    }
    return {
        "task": config.task,
        "protocol": name,
        "shots": shots,
        "seed": config.seed,
        "data": config.annotations,
        "test": {
            "split": test,
            "examples": {code: len(scored.predictions) for code, scored in found.items()},
            "left_out": left_out,
        },
        "scores": {code: scored.scores for code, scored in found.items()},
        "across": across_languages(found),
        "config_sha256": config_checksum(config),
        "data_sha256": checksum(read, data.classes),
        **more,
    }


def across_languages(found: Mapping[str, Scored]) -> dict[str, float]:
    """Of retrieval, `IR rank variance` and `TR rank variance` (CCRK, see `scoring.rank_variance`).

    Of a picture with several texts, the mean of their ranks. Texts whose picture was not found take
    no part. Nothing where there is one language, or no picture that all have.
    """
    variances = {}
    for name in ("IR", "TR"):
        ranks = {code: _mean_ranks(scored, f"{name} rank") for code, scored in found.items()}
        shared = set.intersection(*(set(of_pictures) for of_pictures in ranks.values()))
        if len(ranks) > 1 and shared:
            variances[f"{name} rank variance"] = rank_variance(ranks)
    return variances


def _mean_ranks(scored: Scored, name: str) -> dict[str, float]:
    ranks: dict[str, list[int]] = {}
    for row in scored.predictions:
        if row.get(name) is not None:
            ranks.setdefault(row["picture"], []).append(row[name])
    return {picture: sum(of_texts) / len(of_texts) for picture, of_texts in ranks.items()}


def write_result(folder: pathlib.Path, result: Mapping[str, Any], found: Mapping[str, Scored]):
    """Writes predictions, and when they are complete `scores.json`; the first process alone does.

    `predictions/<language>.jsonl` has a row for each example. Of xGQA there is
    `predictions/<language>.json` too, as the benchmark's own script reads it.
    """
    if jax.process_index():
        return
    shutil.rmtree(folder / PREDICTIONS, ignore_errors=True)
    (folder / PREDICTIONS).mkdir(parents=True)
    for code, scored in found.items():
        file = folder / PREDICTIONS / f"{code}.jsonl"
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in scored.predictions)
        file.write_text("".join(lines), encoding="utf-8")
        if result["task"] == "xgqa":
            answers = [
                {"questionId": row["id"], "prediction": row["prediction"]}
                for row in scored.predictions
            ]
            file.with_suffix(".json").write_text(json.dumps(answers), encoding="utf-8")
    write_json(folder / SCORES, result)


def score_line(code: str, scored: Scored, left_out: int) -> str:
    """The scores of a language in one line, with what they leave out."""
    line = f"{code}: " + "  ".join(f"{name} {value:.1%}" for name, value in scored.scores.items())
    if left_out:
        line += f"  (of {len(scored.predictions):,} rows; {left_out:,} more could not be used)"
    return line
