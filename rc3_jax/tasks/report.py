"""One report of many fine-tunings and evaluations: over tasks, languages, protocols and seeds."""

from __future__ import annotations

import math
import pathlib
from collections.abc import Iterable, Mapping, Sequence

from rich.table import Table

from rc3_jax.convert.output import write_json
from rc3_jax.data.coverage import TOO_MUCH
from rc3_jax.tasks import score_table
from rc3_jax.tasks.base import ENGLISH
from rc3_jax.tasks.benchmarks import TASKS
from rc3_jax.tasks.config import MINIATURE
from rc3_jax.tasks.report_plots import few_shot_panels, language_panels, plot
from rc3_jax.tasks.score_table import (
    FEW_SHOT,
    GAP,
    MEAN,
    OURS,
    RANK_VARIANCE,
    ZERO_SHOT,
    Cell,
    Result,
    Row,
    ScoreTable,
    protocol_order,
    shots_of,
)

FEW_SHOT_PLOT, LANGUAGES_PLOT = "few_shot.png", "languages.png"
SYSTEM_NAMES = {"rc3": "RC³", "cclm": "CCLM"}
SUMMARY = {
    "zero-shot, English": (ZERO_SHOT, ENGLISH),
    f"zero-shot, {MEAN}": (ZERO_SHOT, MEAN),
    f"translate-test, {MEAN}": (score_table.TRANSLATE_TEST, MEAN),
    f"few-shot with the most shots, {MEAN}": (FEW_SHOT, MEAN),
}
"""Rows of the summary: protocol and language."""
NOTHING = "–"
HOW_TO_READ = """\
Scores are in percent, means ± standard errors over {seeds}; n is given where it differs, and one seed \
has no error. IR: retrieval of the image of a text, TR: of a text of an image, by vectors alone unless \
it says re-ranked. Means over languages are of the seeds that have all of them. * marks scores of less \
than all rows, see [Provenance](#provenance)."""
LEGEND = """\
Gap to English: by how many points zero-shot is below English. ECE: expected calibration error, the \
mean distance between confidence and accuracy over bins. Rank variance: variance across languages of \
the rank of the same image, mean over images; 0 where all languages find an image equally well (CCRK, \
Nie et al., KDD 2024)."""


def write_report(
    folder: pathlib.Path, results: Sequence[Result], not_run: Mapping[str, str]
) -> pathlib.Path:
    """Writes `report.md`, `report.json` and the plots `few_shot.png` and `languages.png`.

    `report.json` has `system`, `not_run`, `results` as given, and `cells`: a list of `model`
    ("ours", or one that was published), `task`, `protocol`, `metric`, `language`, `mean`, `error`
    (null for one seed), `n` (seeds), `partial`; shares, not percent. Without few-shot results there is no `few_shot.png`.

    Args:
      results: contents of `scores.json` files of one system.
      not_run: a task, or "task, protocol" → why there is no result of it.

    Raises:
      ValueError: for results that do not go together, see `ScoreTable`; nothing is written then.

    Returns:
      The path of `report.md`.
    """
    table = ScoreTable(results)
    text = report_text(table, not_run)
    folder.mkdir(parents=True, exist_ok=True)
    plot(folder / LANGUAGES_PLOT, language_panels(table), lines=False)
    (folder / FEW_SHOT_PLOT).unlink(missing_ok=True)  # of an earlier report
    if panels := few_shot_panels(table):
        plot(folder / FEW_SHOT_PLOT, panels, lines=True)
    cells = [
        dict(zip(Row._fields, key, strict=False))
        | cell._asdict()
        | {"error": None if math.isnan(cell.error) else cell.error}
        for key, cell in table.cells.items()
    ]
    content = dict(system=table.system, cells=cells, not_run=dict(not_run), results=list(results))
    write_json(folder / "report.json", content)
    (folder / "report.md").write_text(text, encoding="utf-8")
    return folder / "report.md"


def summary_table(results: Sequence[Result]) -> Table:
    """Zero-shot scores for the terminal, in percent.

    Raises:
      ValueError: as `write_report`.
    """
    table = ScoreTable(results)
    shown = Table("zero-shot (%)", ENGLISH, MEAN, "others", title=_system_name(table))
    for task, metric in table.headlines():
        codes = dict.fromkeys((ENGLISH, MEAN, *table.distinct("language", task, ZERO_SHOT)))
        cells = {code: _show(table, task, ZERO_SHOT, metric, code) for code in codes}
        english, mean = cells.pop(ENGLISH), cells.pop(MEAN)
        if cells or english != NOTHING:
            others = "  ".join(f"{code} {cell}" for code, cell in cells.items())
            shown.add_row(_column(task, metric), english, mean, others)
    return shown


def report_text(table: ScoreTable, not_run: Mapping[str, str]) -> str:
    """The whole report in Markdown."""
    seeds = sorted(table.distinct("seed"))
    over = f"{len(seeds)} seed{'s' * (len(seeds) > 1)} ({', '.join(map(str, seeds))})"
    parts = [f"# Tasks: {_system_name(table)}", HOW_TO_READ.format(seeds=over)]
    parts += ["## Summary", *_summary(table)]
    parts += ["## By language", f"![Scores by language]({LANGUAGES_PLOT})", LEGEND]
    for task in table.tasks:
        parts += [f"### {task}", *_by_language(table, task)]
    if table.few_shot():
        parts += ["## Few-shot", f"![Scores by shots]({FEW_SHOT_PLOT})", "0 shots are zero-shot."]
    for task in filter(table.few_shot, table.tasks):
        parts += [f"### {task}, by shots", _by_shots(table, task)]
    parts += ["## Provenance", _provenance(table.results)]
    if badly_read := _badly_read(table.results):
        header = ("task", "texts", "number", "cut", "unknown pieces")
        parts += ["## Texts that are not read well", markdown_table(header, badly_read)]
    if not_run:
        parts += ["## Not run", markdown_table(("what", "why"), not_run.items())]
    return "\n\n".join(parts) + "\n"


def _summary(table: ScoreTable) -> list[str]:
    """Our scores, and below each row those that others published for tasks that were run."""
    columns = table.headlines()
    rows = []
    for label, (protocol, code) in SUMMARY.items():
        for model in table.models:
            cells = [_summary_cell(table, model, *at, protocol, code) for at in columns]
            if set(cells) != {NOTHING}:
                rows.append([f"{model}: {label}", *cells])
            elif model == OURS:
                break
    parts = [markdown_table(("", *(_column(*at) for at in columns)), rows)]
    sources: dict[str, dict[str, None]] = {}
    for baseline in (found for task in table.tasks for found in TASKS[task].baselines):
        sources.setdefault(baseline.source, {})[baseline.model] = None
    if len(table.models) > 1:
        of = (f"{', '.join(models)}: {source}" for source, models in sources.items())
        parts.append(f"Scores of others are as printed there. {'; '.join(of)}.")
    if table.generated:
        parts.append(
            f"{', '.join(sorted(table.generated))}: the examples were generated (`{MINIATURE}`), "
            "and scores on them do not compare with published ones on photographs."
        )
    return parts


def _summary_cell(table: ScoreTable, model, task, metric, protocol, code) -> str:
    """A score with its shots, and with its languages where zero-shot has others."""
    protocol = table.most_shots(task, model) if protocol == FEW_SHOT else protocol
    text = _show(table, task, protocol, metric, code, model)
    if text == NOTHING or protocol == ZERO_SHOT:
        return text
    text += f", {shots_of(protocol)} shots" if shots_of(protocol) else ""
    protocols = ZERO_SHOT, protocol
    usual, over = (set(table.distinct("language", task, p, model)) - {ENGLISH} for p in protocols)
    return text + (f", {' '.join(sorted(over))}" if usual and over not in (usual, {MEAN}) else "")


def _by_language(table: ScoreTable, task: str) -> list[str]:
    """All scores by protocol and language, the gap to English, calibration, rank variances."""
    headline, most = table.headline(task), table.most_shots(task)
    scores = dict.fromkeys((*headline, *table.distinct("metric", task)))
    metrics = [
        name
        for metric in sorted(scores, key="ECE".__eq__)  # calibration last
        for name in ((metric, metric + GAP) if metric in headline else (metric,))
    ]
    protocols = [p for p in table.protocols(task) if not shots_of(p) or p == most]
    lines = [(OURS, metric, protocol) for metric in metrics for protocol in protocols]
    codes = table.distinct("language", task)
    for model in table.models[1:]:
        languages = table.distinct("language", task, ZERO_SHOT, model)
        if set(languages) - {ENGLISH, MEAN}:
            codes += [code for code in languages if code not in (*codes, MEAN)]
            lines += [(model, metric, ZERO_SHOT) for metric in headline]
    rows = []
    for model, metric, protocol in lines:
        cells = [_show(table, task, protocol, metric, code, model) for code in (*codes, MEAN)]
        if set(cells) != {NOTHING}:
            rows.append([f"{model}: {protocol}", metric, *cells])
    parts = [markdown_table(("protocol", "score", *codes, MEAN), rows)]
    if keys := [key[2:] for key in table.cells if key[1] == task and RANK_VARIANCE in key[3]]:
        keys.sort(key=lambda key: (protocol_order(key[0]), key[2], key[1]))
        rows = [
            [protocol, metric, codes, _show(table, task, protocol, metric, codes, scale=1)]
            for protocol, metric, codes in keys
        ]
        parts.append(markdown_table(("protocol", "score", "languages", "variance"), rows))
    return parts


def _by_shots(table: ScoreTable, task: str) -> str:
    few = table.few_shot(task)
    rows = []
    for code in table.distinct("language", task):
        for metric in table.headline(task):
            cells = [_show(table, task, protocol, metric, code) for protocol in (ZERO_SHOT, *few)]
            if set(cells[1:]) != {NOTHING}:
                rows.append([code, metric, *cells])
    return markdown_table(("language", "score", "0", *map(shots_of, few)), rows)


def _provenance(results: Sequence[Result]) -> str:
    """A row for results that differ in nothing but the seed."""
    seeds: dict[tuple[str, ...], list[int]] = {}
    for result in results:
        trained, test = NOTHING, result["test"]
        if train := result.get("train"):
            trained = f"{train['split']}, {' '.join(train['languages'])}: {train['examples']:,}"
        tested = {code: f"{code} {test['examples'][code]:,}" for code in result["scores"]}
        for code, count in score_table.left_out(result).items():
            tested[code] += f" ({count:,} left out)"
        for code, count in (result.get("no_class") or {}).items():
            tested[code] += f" ({count:,} of no class)"
        row = (
            *(result["task"], score_table.protocol_of(result), trained),
            *(f"{test['split']}: {', '.join(tested.values())}", result["from"]),
            *(
                result.get("data", NOTHING),
                result["config_sha256"][:12],
                result["data_sha256"][:12],
            ),
        )
        seeds.setdefault(row, []).append(result["seed"])
    header = (
        *("task", "protocol", "trained on: examples", "tested on: examples", "model", "data"),
        *("SHA-256 of the settings", "of the data", "seeds"),
    )
    rows = [[*row, ", ".join(map(str, sorted(of_row)))] for row, of_row in seeds.items()]
    return markdown_table(header, rows)


def _badly_read(results: Sequence[Result]) -> list[list[str]]:
    """A row for the texts of each split and language of which too much is cut or unknown."""
    rows = {
        (result["task"], name): [f"{of['texts']:,}", f"{of['cut']:.1%}", f"{of['unknown']:.1%}"]
        for result in results
        for name, of in (result.get("texts") or {}).items()
        if max(of["cut"], of["unknown"]) > TOO_MUCH
    }
    return [[*name, *figures] for name, figures in rows.items()]


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in GitHub's Markdown; no content can end a cell or a row."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(map(_escaped, cells)) + " |"

    return "\n".join([line(header), "|" + "---|" * len(header), *map(line, rows)])


def show(cell: Cell | None, seeds: int, scale: float = 100) -> str:
    """A cell as text, such as "61.3 ± 0.4* (n = 2)".

    Args:
      seeds: the usual number of seeds; another number is written out.
      scale: 100 for percent.
    """
    if cell is None:
        return NOTHING
    error = scale * cell.error
    # A small error does not become 0.0, and published scores stay as they are.
    digits = 2 if 0.005 <= error < 0.05 or cell.n == 0 else 1
    text = f"{scale * cell.mean:z.{digits}f}"
    text += "" if math.isnan(error) else f" ± {error:.{digits}f}"
    text += "*" * cell.partial
    return text if cell.n in (0, seeds) else f"{text} (n = {cell.n})"


def _show(table: ScoreTable, task, protocol, metric, code, model=OURS, scale: float = 100) -> str:
    published = metric.removeprefix(score_table.RE_RANKED)
    cell = table.cell(task, protocol, metric if model == OURS else published, code, model)
    return show(cell, len(table.distinct("seed")), scale)


def _column(task: str, metric: str) -> str:
    return task if metric == "accuracy" else f"{task} {metric}"


def _system_name(table: ScoreTable) -> str:
    return SYSTEM_NAMES.get(table.system, table.system)


def _escaped(text: str) -> str:
    text = " ".join(text.split())
    for character in "\\|<":
        text = text.replace(character, f"\\{character}")
    return text
