"""Plots of a report: scores by language and protocol, scores by shots."""

from __future__ import annotations

import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from rc3_jax.tasks.base import ENGLISH
from rc3_jax.tasks.score_table import FEW_SHOT, ZERO_SHOT, Cell, ScoreTable, shots_of

WIDTH, HEIGHT, LEGEND, COLUMNS = 4.0, 3.2, 0.5, 3
"""Inches of a panel and of the legend; panels beside one another."""
STYLES = list(
    zip(("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9") * 2, "osD^vPX<>h*")
)
"""The colours of Okabe and Ito that stand out from white; marks tell lines apart without colour."""


class Panel(NamedTuple):
    """One plot of a figure: for each series a cell at each tick, None where there is none.

    Attributes:
      level: a dashed line at the English zero-shot score, or what `level_name` says.
      percent: whether cells are shares.
    """

    title: str
    metric: str
    ticks: Sequence[str]
    series: Mapping[str, Sequence[Cell | None]]
    level: Cell | None = None
    level_name: str = "English, zero-shot"
    percent: bool = True


def language_panels(table: ScoreTable) -> list[Panel]:
    """Scores by language, a series for each protocol; * marks scores of less than all rows."""
    panels = []
    names = dict.fromkeys(protocol.partition(", ")[0] for protocol in table.protocols())
    for task, metric in table.headlines():
        codes, series, marked = table.distinct("language", task), {}, set()
        for name in names:
            protocol = table.most_shots(task) if name == FEW_SHOT else name
            cells = [table.cell(task, protocol, metric, code) for code in codes]
            marked |= {code for code, cell in zip(codes, cells) if cell and cell.partial}
            series[name if name != FEW_SHOT else f"{name}, most shots"] = cells
        ticks = [f"{code}*" if code in marked else code for code in codes]
        level = table.cell(task, ZERO_SHOT, metric, ENGLISH)
        panels.append(Panel(task, metric, ticks, series, level))
    return panels


def few_shot_panels(table: ScoreTable) -> list[Panel]:
    """Scores by shots, a series for each language; empty without few-shot results."""
    panels = []
    every = table.distinct("language")
    for task, metric in table.headlines():
        if few := table.few_shot(task):
            series = {
                code: [table.cell(task, protocol, metric, code) for protocol in (ZERO_SHOT, *few)]
                for code in every
            }
            series = {c: cells if any(cells[1:]) else [] for c, cells in series.items()}
            panels.append(Panel(task, metric, ["0", *map(shots_of, few)], series))
    return panels


def plot(path: pathlib.Path, panels: Sequence[Panel], lines: bool) -> None:
    """Draws panels, shares in percent, with one legend and no mark of when it was made.

    Args:
      lines: whether the cells of a series are joined; otherwise series stand side by side.
    """
    wide, high = min(len(panels), COLUMNS), math.ceil(len(panels) / COLUMNS)
    width = max(wide, 2) * WIDTH  # a single panel leaves room for the legend
    figure = Figure(figsize=(width, high * HEIGHT + LEGEND), layout="constrained")
    entries: dict[str, Artist] = {}
    for place, panel in enumerate(panels):
        axes = figure.add_subplot(high, wide, place + 1)
        _draw(axes, panel, lines)
        handles, labels = axes.get_legend_handles_labels()
        entries |= dict(zip(labels, handles, strict=True))
    beside = int(width / (0.8 + 0.1 * max(map(len, entries))))
    figure.legend(
        entries.values(),
        entries.keys(),
        loc="outside upper center",
        ncols=beside,
        fontsize=12,
        frameon=False,
    )
    figure.savefig(path, dpi=150, metadata={"Software": None})


def _draw(axes: Axes, panel: Panel, lines: bool) -> None:
    scale = 100 if panel.percent else 1
    if panel.level:
        level = scale * panel.level.mean
        axes.axhline(level, color="black", ls="--", lw=1, label=panel.level_name)
    for number, (label, cells) in enumerate(panel.series.items()):
        known = [(place, *cell[:2]) for place, cell in enumerate(cells) if cell]
        if known:
            places, means, errors = np.array(known).T
            shift = 0 if lines else 0.16 * (number - (len(panel.series) - 1) / 2)
            colour, mark = STYLES[number % len(STYLES)]
            axes.errorbar(
                places + shift,
                scale * means,
                yerr=scale * np.nan_to_num(errors),
                label=label,
                color=colour,
                marker=mark,
                ls="-" if lines else "",
                ms=7,
                capsize=3,
            )
    axes.set_xticks(range(len(panel.ticks)), panel.ticks)
    axes.set_xlim(-0.6, len(panel.ticks) - 0.4)
    axes.set_xlabel("shots" if lines else "", fontsize=12)
    axes.set_title(panel.title, fontsize=13)
    axes.set_ylabel(panel.metric + " (%)" * panel.percent, fontsize=12)
    axes.tick_params(labelsize=11)
    axes.yaxis.set_major_locator(MaxNLocator(6))
    axes.grid(axis="y", color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
