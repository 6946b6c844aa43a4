"""One report of many fine-tunings and evaluations: over tasks, languages, protocols and seeds."""

from __future__ import annotations

import math
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from rich.table import Table

from rc3_jax.convert.output import write_json
from rc3_jax.downstream.config import ENGLISH
from rc3_jax.downstream.report_numbers import (
    FEW_SHOT,
    ZERO_SHOT,
    Cell,
    Numbers,
    Result,
    Setting,
)
from rc3_jax.downstream.report_tables import FEW_SHOT_PLOT, LANGUAGES_PLOT, report_text

REPORT, DATA = "report.md", "report.json"
PANEL, COLUMNS, DPI = (4.0, 3.2), 3, 150
"""Inches of a panel; panels beside one another; dots per inch."""
LEGEND, LEGEND_ENTRY = 0.5, 2.4
"""Inches that a legend adds to the height, and width of one of its entries."""
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Those of Okabe and Ito that stand out from white; also without colour, marks tell lines apart."""
MARKS = "osD^vPX<>h*"


def write_report(
    folder: pathlib.Path, results: Sequence[Result], not_run: Mapping[str, str]
) -> pathlib.Path:
    """Writes `report.md`, `report.json` and the plots `few_shot.png` and `languages.png`.

    `report.json` has `aggregated`: task → protocol → shots ("null" but for few-shot) → score →
    language → `mean`, `error` (null of one seed), `n`; `without_english`: the same, of the mean over
    languages; `not_run` and `results` as given. Shares, not percent. Without few-shot results there
    is no `few_shot.png`.

    Args:
      results: contents of `scores.json` files of one system.
      not_run: a task, or "task, protocol" → why there is no result of it.

    Raises:
      ValueError: for results that do not go together, see `Numbers`; nothing is written then.

    Returns:
      The path of `report.md`.
    """
    numbers = Numbers(results)
    text = report_text(numbers, not_run)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FEW_SHOT_PLOT).unlink(missing_ok=True)  # of an earlier report
    plot_languages(folder / LANGUAGES_PLOT, numbers)
    if numbers.has_few_shot:
        plot_few_shot(folder / FEW_SHOT_PLOT, numbers)
    content = {
        "system": numbers.system,
        "aggregated": numbers.aggregated(),
        "without_english": numbers.averages(),
        "not_run": dict(not_run),
        "results": list(results),
    }
    write_json(folder / DATA, content)
    (folder / REPORT).write_text(text, encoding="utf-8")
    return folder / REPORT


def summary_table(results: Sequence[Result]) -> Table:
    """Zero-shot scores for the terminal, in percent: task × language, and the gap to English.

    Raises:
      ValueError: as `write_report`.
    """
    numbers, setting = Numbers(results), Setting(ZERO_SHOT)
    table = Table("zero-shot", title=f"{numbers.system_name}, means over seeds (%)")
    for name in (ENGLISH, "mean of the others"):
        table.add_column(name, justify="right")
    table.add_column("others (below English)")
    for task in numbers.tasks:
        for column, metric in numbers.headline(task).items():
            english = numbers.cell(task, setting, metric, ENGLISH)
            others = []
            for code in numbers.others(task, setting):
                gap = numbers.gap(task, metric, code)
                score = _short(numbers.cell(task, setting, metric, code))
                others.append(f"{code} {score}" + (f" ({_short(gap)})" if gap else ""))
            if english or others:
                mean = numbers.average(task, setting, metric)
                table.add_row(column, _short(english), _short(mean), "  ".join(others))
    return table


def plot_languages(path: pathlib.Path, numbers: Numbers) -> None:
    """Scores by language and protocol, a panel for each headline score; lines lead to English."""
    panels = [(t, *item) for t in numbers.tasks for item in numbers.headline(t).items()]
    figure, all_axes = _panels(len(panels))
    for axes, (task, column, metric) in zip(all_axes, panels, strict=True):
        languages = numbers.languages(task)
        english = numbers.cell(task, Setting(ZERO_SHOT), metric, ENGLISH)
        if english is not None:
            level = 100 * english.mean
            axes.axhline(
                level, color="black", linestyle="--", linewidth=1, label="English, zero-shot"
            )
        partial = set()
        for number, protocol in enumerate(numbers.protocols):
            setting = numbers.most_shots(task) if protocol == FEW_SHOT else Setting(protocol)
            cells = [setting and numbers.cell(task, setting, metric, code) for code in languages]
            partial |= {place for place, cell in enumerate(cells) if cell and cell.partial}
            shift = 0.16 * (number - (len(numbers.protocols) - 1) / 2)
            style = dict(
                color=COLOURS[number % len(COLOURS)],
                marker=MARKS[number % len(MARKS)],
                linestyle="",
            )
            label = f"{protocol}, most shots" if protocol == FEW_SHOT else protocol
            _draw(axes, np.arange(len(languages)) + shift, cells, label=label, **style)
            if protocol == ZERO_SHOT and english is not None:
                known = [(place, 100 * cell.mean) for place, cell in enumerate(cells) if cell]
                places, means = np.array(known).T
                axes.vlines(places + shift, means, level, color="0.7", linewidth=1, zorder=0)
        names = [f"{code}*" if place in partial else code for place, code in enumerate(languages)]
        axes.set_xticks(range(len(languages)), names)
        axes.set_xlim(-0.6, len(languages) - 0.4)
        _name(axes, column, metric)
    _save(figure, all_axes, path)


def plot_few_shot(path: pathlib.Path, numbers: Numbers) -> None:
    """Scores by shots, a panel for each headline score and a line for each language."""
    tasks = [task for task in numbers.tasks if numbers.shots(task)]
    panels = [(t, *item) for t in tasks for item in numbers.headline(t).items()]
    languages = list(dict.fromkeys(code for task in tasks for code in numbers.languages(task)))
    figure, all_axes = _panels(len(panels))
    for axes, (task, column, metric) in zip(all_axes, panels, strict=True):
        shots = numbers.shots(task)
        settings = [Setting(ZERO_SHOT), *(Setting(FEW_SHOT, number) for number in shots)]
        ends = {}
        for code in languages:
            cells = [numbers.cell(task, setting, metric, code) for setting in settings]
            if any(cells[1:]):
                style = _line_style(languages.index(code))
                _draw(axes, np.arange(len(settings)), cells, **style)
                ends[code] = 100 * next(cell.mean for cell in reversed(cells) if cell)
        axes.set_xticks(range(len(settings)), ["0", *shots])
        axes.set_xlabel("shots", fontsize=12)
        _name(axes, column, metric)
        for code, height in _apart(ends, 0.065 * np.ptp(axes.get_ylim())).items():
            colour = _line_style(languages.index(code))["color"]
            place = (len(settings) - 0.75, height)
            axes.annotate(
                code, place, color=colour, fontsize=12, va="center", annotation_clip=False
            )
    _save(figure, all_axes, path)


def _line_style(number: int) -> dict[str, str]:
    return dict(
        color=COLOURS[number % len(COLOURS)],
        marker=MARKS[number % len(MARKS)],
        linestyle="-" if number // len(COLOURS) % 2 == 0 else "--",
    )


def _apart(heights: Mapping[str, float], least: float) -> dict[str, float]:
    """Heights in the same order from below, each at least `least` above the one before."""
    placed: dict[str, float] = {}
    for name in sorted(heights, key=heights.__getitem__):
        below = max(placed.values(), default=-math.inf)
        placed[name] = max(heights[name], below + least)
    return placed


def _panels(count: int) -> tuple[Figure, list[Axes]]:
    wide = min(count, COLUMNS)
    high = math.ceil(count / wide)
    # A panel alone is as wide as two, which leaves room for the legend.
    size = (max(wide, 2) * PANEL[0], high * PANEL[1] + LEGEND)
    figure = Figure(figsize=size, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.12)
    FigureCanvasAgg(figure)
    return figure, [figure.add_subplot(high, wide, place + 1) for place in range(count)]


def _draw(axes: Axes, places: np.ndarray, cells: Sequence[Cell | None], **style) -> None:
    """Percent, with bars of the standard error where there are several seeds."""
    known = [(place, cell) for place, cell in zip(places, cells, strict=True) if cell]
    if known:
        axes.errorbar(
            [place for place, _ in known],
            [100 * cell.mean for _, cell in known],
            yerr=[0 if math.isnan(cell.error) else 100 * cell.error for _, cell in known],
            markersize=7,
            capsize=3,
            **style,
        )


def _name(axes: Axes, column: str, metric: str) -> None:
    axes.set_title(column, fontsize=13)
    axes.set_ylabel(f"{metric} (%)", fontsize=12)
    axes.tick_params(labelsize=11)
    axes.yaxis.set_major_locator(MaxNLocator(6))
    axes.grid(axis="y", color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _save(figure: Figure, all_axes: Sequence[Axes], path: pathlib.Path) -> None:
    """With one legend for all panels, and no mark of when or by what it was made."""
    lines = {}
    for axes in all_axes:
        for line, label in zip(*axes.get_legend_handles_labels(), strict=True):
            lines.setdefault(label, line)
    if lines:
        beside = int(figure.get_figwidth() / LEGEND_ENTRY)
        style = dict(loc="outside upper center", ncols=beside, fontsize=12, frameon=False)
        figure.legend(lines.values(), lines.keys(), **style)
    figure.savefig(path, dpi=DPI, metadata={"Software": None})


def _short(cell: Cell | None) -> str:
    return "" if cell is None else f"{100 * cell.mean:z.1f}" + "*" * cell.partial
