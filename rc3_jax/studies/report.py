"""One report of several studies: tables, plots and verdicts, all from their files of results."""

from __future__ import annotations

import math
import pathlib
from collections.abc import Iterator, Sequence

from rc3_jax.studies.results import FAILS, HOLDS, OPEN, Interval, Results, verdict
from rc3_jax.studies.study import Claim
from rc3_jax.tasks.report import NOTHING, markdown_table
from rc3_jax.tasks.report_plots import Panel, plot
from rc3_jax.tasks.score_table import Cell
from rc3_jax.tasks.scoring import mean_and_error

HOW_TO_READ = """\
Written by `python launch/ablate.py report` from files of results alone; changes are lost. Scores are \
means ± standard errors over seeds, in percent where they are shares. A difference is the mean over \
the seeds that both variants have, with its 95 % interval (Student's t, paired by seed) and the number of these \
seeds. A claim holds for a variant if the whole interval lies on its side of 0, does not hold if the whole \
interval lies on the other side, and cannot be told otherwise. Intervals are not corrected for their \
number: of twenty differences that are 0, one is expected to be told from 0."""
CHOSEN_ON = " Settings were chosen on these seeds, so that verdicts are preliminary."


def write_report(path: pathlib.Path, studies: Sequence[Results]) -> None:
    """Writes the report, and beside it a folder of its name with a plot for each claim."""
    folder = path.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    for results in studies:
        for number, claim in enumerate(results.study.claims, 1):
            if panel := claim_panel(results, claim):
                plot(folder / plot_name(results, number), [panel], lines=False)
    path.write_text(report_text(studies, folder.name), encoding="utf-8")


def report_text(studies: Sequence[Results], folder: str) -> str:
    """The report in Markdown.

    Args:
      folder: of the plots, relative to the report.
    """
    parts = ["# Evidence", HOW_TO_READ, *_overview(studies)]
    for results in studies:
        parts += _study(results, folder)
    return "\n\n".join(parts) + "\n"


def plot_name(results: Results, number: int) -> str:
    """The file of the plot of a claim, counted from 1."""
    return f"{results.study.name}_{number}.png"


def claim_panel(results: Results, claim: Claim) -> Panel | None:
    """The difference of each variant of a claim with its interval; None where there is none."""
    found = {v: results.difference(claim.score, v, claim.than) for v in claim.variants}
    known = {variant: interval for variant, interval in found.items() if interval}
    if not known:
        return None
    cells = [
        Cell(i.mean, (i.high - i.low) / 2 if i.n > 1 else math.nan, i.n) for i in known.values()
    ]
    return Panel(
        results.study.name,
        f"{claim.score}, difference",
        [variant.replace("_", "\n") for variant in known],
        {"mean and 95 % interval": cells},
        Cell(0.0, 0.0, 1),
        f"{claim.than}",
        results.study.scores[claim.score].percent,
    )


def _overview(studies: Sequence[Results]) -> list[str]:
    """Every claim of every study, with the variants that it holds for."""
    rows = []
    for results in studies:
        for number, claim in enumerate(results.study.claims, 1):
            variants: dict[str, list[str]] = {HOLDS: [], FAILS: [], OPEN: []}
            for variant, *_, said in _verdicts(results, claim):
                variants[said].append(variant)
            cells = [", ".join(names) or NOTHING for names in variants.values()]
            rows.append([f"{results.study.name} {number}", claim.sentence, *cells])
    header = ("claim", "sentence", HOLDS, FAILS, OPEN)
    return [markdown_table(header, rows)] if rows else []


def _study(results: Results, folder: str) -> Iterator[str]:
    study, seeds = results.study, results.reported_seeds()
    chosen_on = CHOSEN_ON if seeds == study.seeds else ""
    yield f"## {study.name}"
    yield study.about
    yield f"Seeds {', '.join(map(str, seeds))}.{chosen_on}" + "".join(
        f" Languages {name}: {', '.join(codes)}." for name, codes in study.languages.items()
    )
    settings = [
        [name, ", ".join(f"{key} = {value!r}" for key, value in changes.items()) or "as the base"]
        for name, changes in study.variants.items()
    ]
    yield markdown_table(("variant", "settings"), settings)
    scores = [
        [name, ", ".join(score.of), ", ".join(score.minus) or NOTHING]
        for name, score in study.scores.items()
    ]
    yield markdown_table(("score", "mean of", "less the mean of"), scores)
    header = ("variant", *study.scores, "seeds")
    rows, compared = [], []
    for variant in study.variants:
        values = {name: results.values(name, variant) for name in study.scores}
        number = len(next(iter(values.values())))
        rows.append([variant, *(_mean(results, *item) for item in values.items()), str(number)])
        if variant != study.baseline:
            found = [
                (name, results.difference(name, variant, study.baseline)) for name in study.scores
            ]
            n = max((interval.n for _, interval in found if interval), default=0)
            compared.append([variant, *(_difference(results, *item) for item in found), str(n)])
    yield markdown_table(header, rows)
    yield f"Differences from `{study.baseline}`:"
    yield markdown_table(header, compared)
    for number, claim in enumerate(study.claims, 1):
        yield f"### {study.name} {number}: {claim.sentence}"
        if claim_panel(results, claim):
            yield f"![Differences with their intervals]({folder}/{plot_name(results, number)})"
        yield f"{claim.score}, {claim.direction} {claim.than}:"
        header = ("variant", "difference", "seeds", "verdict")
        yield markdown_table(header, _verdicts(results, claim))
    yield from _provenance(results)


def _verdicts(results: Results, claim: Claim) -> list[list[str]]:
    """A row for each variant of a claim: its name, the difference, the seeds, the verdict."""
    rows = []
    for variant in claim.variants:
        found = results.difference(claim.score, variant, claim.than)
        shown = _difference(results, claim.score, found), str(found.n if found else 0)
        rows.append([variant, *shown, verdict(claim, found)])
    return rows


def _provenance(results: Results) -> Iterator[str]:
    """What is missing, and with what the rest was made."""
    done = {run.run for run in results.runs}
    seeds = results.reported_seeds()
    if missing := [
        str(run) for run in results.study.runs() if run.seed in seeds and run not in done
    ]:
        yield f"Not run: {'; '.join(missing)}."
    versions = {", ".join(f"{k} {v}" for k, v in run.versions.items()) for run in results.runs}
    hours = sum(run.seconds for run in results.runs) / 3600
    yield f"{len(done)} runs of {hours:.1f} hours in all, with {'; or '.join(sorted(versions))}."


def _mean(results: Results, score: str, values: dict[int, float]) -> str:
    if not values:
        return NOTHING
    mean, error = mean_and_error(list(values.values()))
    return _number(results, score, mean) + (
        "" if math.isnan(error) else f" ± {_number(results, score, error)}"
    )


def _difference(results: Results, score: str, found: Interval | None) -> str:
    if found is None:
        return NOTHING
    shown = _number(results, score, found.mean, "+")
    if found.n < 2:
        return shown
    return f"{shown} [{', '.join(_number(results, score, end, '+') for end in found[1:3])}]"


def _number(results: Results, score: str, value: float, sign: str = "") -> str:
    """In percent with a digit, or as it is with three."""
    percent = results.study.scores[score].percent
    return f"{100 * value if percent else value:{sign}z.{1 if percent else 3}f}"
