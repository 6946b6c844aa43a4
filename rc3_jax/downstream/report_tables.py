"""The tables of a report, in Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from rc3_jax.downstream import published
from rc3_jax.downstream.config import ENGLISH, MINIATURE, TASKS
from rc3_jax.downstream.report_numbers import (
    FEW_SHOT,
    TRANSLATE_TEST,
    ZERO_SHOT,
    Cell,
    Numbers,
    Setting,
    columns,
    setting_of,
)

FEW_SHOT_PLOT, LANGUAGES_PLOT = "few_shot.png", "languages.png"
BENCHMARK = ("xvnli", "xgqa", "marvl", "xflickrco", "wit")
"""Tasks of IGLUE, which the summary shows whether they were run or not."""
NOTHING = "–"
GAPS = (
    "Gap to English: by how many points zero-shot is below English. ECE: expected calibration error, "
    "the mean distance of confidence and accuracy over bins."
)
RANK_VARIANCE = (
    "Rank variance: over languages, of the rank of the same image, mean over images; 0 where all "
    "languages find an image equally well (CCRK, Nie et al., KDD 2024)."
)
ENGLISH_ROW, OTHERS_ROW = "zero-shot, English", "zero-shot, mean of the other languages"
TEST_ROW, FEW_ROW = "translate-test, mean", "few-shot with the most shots, mean"
PUBLISHED = {
    ENGLISH_ROW: published.ENGLISH,
    OTHERS_ROW: published.ZERO_SHOT,
    TEST_ROW: published.TRANSLATE_TEST,
    FEW_ROW: published.FEW_SHOT,
}


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of GitHub's Markdown; what its cells hold cannot end a cell or a row."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(map(_escaped, cells)) + " |"

    return "\n".join([line(header), "|" + "---|" * len(header), *map(line, rows)])


def show(cell: Cell | None, seeds: int, scale: float = 100) -> str:
    """A cell as text, such as "61.3 ± 0.4* (n = 2)".

    Args:
      seeds: how many there are as a rule; other numbers are said.
      scale: 100 for percent.
    """
    if cell is None:
        return NOTHING
    error = scale * cell.error
    digits = 2 if 0.005 <= error < 0.05 else 1  # not 0.0 for an error that is there
    text = f"{scale * cell.mean:z.{digits}f}"
    text += "" if math.isnan(error) else f" ± {error:.{digits}f}"
    text += "*" if cell.partial else ""
    return text if cell.n == seeds else f"{text} (n = {cell.n})"


def report_text(numbers: Numbers, not_run: Mapping[str, str]) -> str:
    """The whole report."""
    parts = [
        f"# Tasks: {numbers.system_name}",
        *_reading(numbers),
        "## Summary",
        *_summary(numbers),
    ]
    parts += ["## By language", f"![Scores by language]({LANGUAGES_PLOT})", GAPS]
    for task in numbers.tasks:
        parts += [f"### {task}", *_of_task(numbers, task)]
    if numbers.has_few_shot:
        parts += ["## Few-shot", f"![Scores by shots]({FEW_SHOT_PLOT})", *_few_shot(numbers)]
    parts += ["## Provenance", _provenance(numbers)]
    if left_out := _left_out(numbers):
        parts += ["### Left out", "Rows of the test files that could not be scored.", left_out]
    if not_run:
        parts += ["### Not run", markdown_table(("what", "why"), not_run.items())]
    return "\n\n".join(parts) + "\n"


def _reading(numbers: Numbers) -> list[str]:
    """How the numbers are to be read."""
    seeds, count = ", ".join(map(str, numbers.seeds)), len(numbers.seeds)
    over = (
        f"Means and standard errors are over {count} seeds ({seeds}); a number of fewer says so, "
        "and that of one seed has no error."
        if count > 1
        else f"One seed ({seeds}), so there are no standard errors."
    )
    averages = "Means over languages leave English out and take the seeds that have all of them."
    parts = [f"Scores are in percent. {over} {averages}"]
    retrieval = [task for task in numbers.tasks if TASKS[task].retrieval]
    again = [task for task in retrieval if numbers.is_reranked(task)]
    first = [task for task in retrieval if task not in again]
    said = [f"re-ranked for {', '.join(again)}"] * bool(again)
    said += [f"by vectors alone for {', '.join(first)}"] * bool(first)
    if said:
        parts.append(
            f"Retrieval (IR: the image of a text, TR: a text of an image) is {' and '.join(said)}."
        )
    if _left_out(numbers):
        parts.append("Scores marked * are of less than all rows; see [Left out](#left-out).")
    return parts


def _summary(numbers: Numbers) -> list[str]:
    tasks = [task for task in TASKS if task in BENCHMARK or task in numbers.tasks]
    header = [column for task in tasks for column in columns(task)]
    rows, fewer = {}, []
    for label in PUBLISHED:
        cells = []
        for task in tasks:
            setting = _setting_of_row(numbers, task, label)
            for metric in numbers.headline(task).values():
                cells.append(_summary_cell(numbers, task, setting, metric, label))
            over, most = numbers.others(task, setting), numbers.others(task, Setting(ZERO_SHOT))
            if over and most and set(over) != set(most):
                fewer.append(f"{task} {setting} ({', '.join(over)})")
        if set(cells) != {NOTHING}:
            rows[label] = cells
    parts = [markdown_table(("", *header), ([f"ours: {row}", *of] for row, of in rows.items()))]
    if fewer:
        parts.append(f"Not over the languages that zero-shot has: {'; '.join(fewer)}.")
    return parts + _published(numbers, list(rows))


def _setting_of_row(numbers: Numbers, task: str, label: str) -> Setting | None:
    if label == FEW_ROW:
        return numbers.most_shots(task)
    return Setting(TRANSLATE_TEST if label == TEST_ROW else ZERO_SHOT)


def _summary_cell(numbers: Numbers, task, setting: Setting | None, metric, label: str) -> str:
    if setting is None:
        return NOTHING
    if label == ENGLISH_ROW:
        return show(numbers.cell(task, setting, metric, ENGLISH), len(numbers.seeds))
    cell = numbers.average(task, setting, metric)
    text = show(cell, len(numbers.seeds))
    return text if cell is None or label != FEW_ROW else _with_shots(text, setting.shots)


def _published(numbers: Numbers, labels: Sequence[str]) -> list[str]:
    """The published rows for ours, of the tasks that were run on the published data."""
    generated = [task for task in numbers.tasks if numbers.is_generated(task)]
    real = [task for task in numbers.tasks if task not in generated]
    shown = [column for column in published.COLUMNS if column.split()[0] in real]
    parts = []
    if generated:
        parts.append(
            f"No published scores stand beside {', '.join(generated)}: the examples were generated "
            f"(`{MINIATURE}`), and scores on them do not compare with those on photographs."
        )
    rows = [
        [f"published: {model}, {label}", *cells, published.source(model)]
        for label in labels
        for model, scores in PUBLISHED[label].items()
        if set(cells := _published_cells(scores, shown, label)) - {NOTHING}
    ]
    if rows:
        parts += [
            "Scores that others published, for comparison, as printed there:",
            markdown_table(("", *shown, "source"), rows),
        ]
    return parts


def _published_cells(scores: Sequence[float | None], shown: Sequence[str], label: str) -> list[str]:
    cells = []
    for column, score in zip(published.COLUMNS, scores, strict=True):
        if column in shown:
            text = NOTHING if score is None else f"{score:.2f}"
            few = label == FEW_ROW and score is not None
            shots = published.FEW_SHOT_SHOTS.get(column.split()[0])
            cells.append(_with_shots(text, shots) if few else text)
    return cells


def _of_task(numbers: Numbers, task: str) -> list[str]:
    """Every score by protocol and language, the gap to English, calibration, rank variances."""
    seeds, most = len(numbers.seeds), numbers.most_shots(task)
    languages, headline = numbers.languages(task), numbers.headline(task).values()
    settings = [s for s in numbers.settings(task) if s.protocol != FEW_SHOT or s == most]
    rows = []
    for metric in dict.fromkeys((*headline, *numbers.metrics(task))):
        for setting in settings:
            cells = [numbers.cell(task, setting, metric, code) for code in languages]
            if any(cells):
                cells.append(numbers.average(task, setting, metric))
                rows.append([str(setting), metric, *(show(cell, seeds) for cell in cells)])
        gaps = [numbers.gap(task, metric, code) for code in languages]
        if metric in headline and any(gaps):
            cells = [show(gap, seeds) for gap in gaps]
            rows.append([ZERO_SHOT, f"{metric}: gap to English", *cells, NOTHING])
    rows.sort(key=lambda row: row[1] == "ECE")  # below the others
    parts = [
        markdown_table(("protocol", "score", *languages, f"mean without {ENGLISH}"), rows),
        *_variances(numbers, task),
    ]
    if not numbers.is_generated(task):
        parts += _published_languages(task)
    return parts


def _variances(numbers: Numbers, task: str) -> list[str]:
    found = numbers.variances(task)
    if not found:
        return []
    names = sorted({name for variance in found for name in variance.cells})
    rows = [
        [str(setting), " ".join(languages)]
        + [show(cells.get(name), len(numbers.seeds), scale=1) for name in names]
        for setting, languages, cells in found
    ]
    return [RANK_VARIANCE, markdown_table(("protocol", "languages", *names), rows)]


def _published_languages(task: str) -> list[str]:
    rows = [
        (model, column, scores)
        for model, by_column in published.ZERO_SHOT_LANGUAGES.items()
        for column, scores in by_column.items()
        if column in columns(task)
    ]
    return [
        markdown_table(
            ("", *scores, "source"),
            [
                [
                    f"published: {model}, {column}, zero-shot",
                    *(f"{score:.2f}" for score in scores.values()),
                    published.source(model),
                ]
            ],
        )
        for model, column, scores in rows
    ]


def _few_shot(numbers: Numbers) -> list[str]:
    parts, seeds = ["0 shots are zero-shot."], len(numbers.seeds)
    for task in filter(numbers.shots, numbers.tasks):
        settings = [Setting(FEW_SHOT, shots) for shots in numbers.shots(task)]
        rows = []
        for code in numbers.languages(task):
            for metric in numbers.headline(task).values():
                cells = [numbers.cell(task, setting, metric, code) for setting in settings]
                if any(cells):
                    cells.insert(0, numbers.cell(task, Setting(ZERO_SHOT), metric, code))
                    rows.append([code, metric, *(show(cell, seeds) for cell in cells)])
        header = ("language", "score", "0", *numbers.shots(task))
        parts += [f"### {task}, by shots", markdown_table(header, rows)]
    return parts


def _provenance(numbers: Numbers) -> str:
    """A row for results that differ in nothing but the seed."""
    rows: dict[tuple[str, ...], list[int]] = {}
    for result in numbers.results:
        train, test = result.get("train"), result["test"]
        row = (
            result["task"],
            str(setting_of(result)),
            f"{train['split']}, {' '.join(train['languages'])}: {train['examples']:,}"
            if train
            else NOTHING,
            f"{test['split']}: {' '.join(result['scores'])}",
            result["from"],
            result.get("data", NOTHING),
            result["config_sha256"][:12],
            result["data_sha256"][:12],
        )
        rows.setdefault(row, []).append(result["seed"])
    header = ("task", "protocol", "trained on: examples", "tested on", "model", "data")
    return markdown_table(
        (*header, "SHA-256 of the settings", "of the data", "seeds"),
        ([*row, ", ".join(map(str, sorted(seeds)))] for row, seeds in rows.items()),
    )


def _left_out(numbers: Numbers) -> str:
    rows: dict[tuple[str, ...], list[int]] = {}
    for result in numbers.results:
        examples = result["test"]["examples"]
        for language, count in (result["test"].get("left_out") or {}).items():
            if not count:
                continue
            row = (result["task"], str(setting_of(result)), language)
            row += (f"{count:,}", f"{examples.get(language, 0):,}")
            rows.setdefault(row, []).append(result["seed"])
    header = ("task", "protocol", "language", "left out", "scored", "seeds")
    lines = [[*row, ", ".join(map(str, sorted(seeds)))] for row, seeds in rows.items()]
    return markdown_table(header, lines) if lines else ""


def _with_shots(text: str, shots: str | None) -> str:
    return f"{text}, {shots} shots"


def _escaped(text: str) -> str:
    text = " ".join(text.split())
    for character in "\\|<":
        text = text.replace(character, f"\\{character}")
    return text
