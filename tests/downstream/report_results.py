"""Made-up results of tasks, and reports of them read back."""

from __future__ import annotations

import math

import numpy as np
from markdown_it import MarkdownIt

from rc3_jax.downstream.report_numbers import Numbers
from rc3_jax.downstream.report_tables import report_text

ZERO, FEW = "zero-shot", "few-shot"


def result(task, scores, protocol=ZERO, seed=0, shots=None, left_out=None, **more):
    """One `scores.json`; a bare number is an accuracy."""
    scores = {
        code: of if isinstance(of, dict) else {"accuracy": of, "ECE": of / 10}
        for code, of in scores.items()
    }
    split = "train" if shots is None else f"train_{shots}"
    return {
        "task": task,
        "system": "rc3",
        "protocol": protocol,
        "seed": seed,
        "shots": shots,
        "from": "runs/base",
        "data": "/data/iglue",
        "train": {"split": split, "languages": ["en"], "examples": 3000},
        "test": {"split": "test", "examples": dict.fromkeys(scores, 300)}
        | ({} if left_out is None else {"left_out": left_out}),
        "scores": scores,
        "config_sha256": "c" * 11 + "0123456789",
        "data_sha256": "d" * 11 + "9876543210",
    } | more


def recalls(first, **more):
    """Of retrieval, by vectors; texts are found worse by 0.1."""
    return {"IR@1": first, "TR@1": first - 0.1, "mean": first + 0.2} | more


def tables_of(text):
    """Header and rows of every table, by what precedes it: the last heading, then a number."""
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    heading, found, row = "", {}, []
    for before, token in zip([None, *tokens], tokens, strict=False):
        if token.type == "inline" and before.type == "heading_open":
            heading = token.content
        elif token.type == "table_open":
            place = sum(name[0] == heading for name in found)
            rows = found[heading, place] = []
        elif token.type == "tr_open":
            row = []
            rows.append(row)
        elif token.type == "inline" and before.type in ("th_open", "td_open"):
            row.append(token.content)
    return found


def rows_by_name(table, names=1):
    header, *rows = table
    return {
        tuple(row[:names]) if names > 1 else row[0]: dict(
            zip(header[names:], row[names:], strict=True)
        )
        for row in rows
    }


def read(results, not_run=None):
    """The text of a report and its tables, without plots."""
    text = report_text(Numbers(results), not_run or {})
    return text, tables_of(text)


def seeds_of_xvnli():
    english, german, french = [0.70, 0.73, 0.74], [0.60, 0.64, 0.61], [0.55, 0.50, 0.54]
    results = [
        result("xvnli", {"en": en, "de": de, "fr": fr}, seed=seed)
        for seed, (en, de, fr) in enumerate(zip(english, german, french, strict=True))
    ]
    return results, np.array(english), np.array(german), np.array(french)


def percent(values, digits=1):
    """Mean ± standard error, by hand."""
    values = 100 * np.asarray(values)
    error = math.sqrt(sum((values - values.mean()) ** 2) / (len(values) - 1)) / len(values) ** 0.5
    return f"{values.mean():.{digits}f} ± {error:.{digits}f}"
