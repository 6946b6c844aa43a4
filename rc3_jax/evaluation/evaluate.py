"""Scores of a run on held-out data, during and after training."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from rich.table import Table

from rc3_jax.data.coverage import check_languages
from rc3_jax.data.example import evaluation_row, stacked
from rc3_jax.data.kinds import language_pairs
from rc3_jax.data.text import draw_texts
from rc3_jax.evaluation.dependence import dependence_scores, shorter_lengths, similarities
from rc3_jax.evaluation.pair_encoder import PairEncoder
from rc3_jax.evaluation.ranking import CUTOFFS
from rc3_jax.evaluation.retrieval import evaluate_retrieval, visual_rows
from rc3_jax.parallel.mesh import batch_devices, from_host

if TYPE_CHECKING:
    from rc3_jax.training.run import Run

Scores = dict[str, Any]


class Evaluator:
    """Compiles its functions once and scores any parameters of a model.

    Raises:
      DataError: `evaluation.languages` names one that no held-out image has a text in.
    """

    def __init__(self, run: Run, progress: Callable[[], None] = lambda: None):
        self._corpus, self._tokenizer, self._config = run.corpus, run.tokenizer, run.config
        self._heldout, self._parts = run.corpus.heldout, run.corpus.heldout_parts
        if self._heldout:
            there = sorted({code for record in self._heldout for code in record.texts})
            check_languages("evaluation.languages", run.config.evaluation.languages, there)
        size = run.config.evaluation.batch_size
        self._encoder = PairEncoder(
            run.model, run.mesh, size, progress=lambda stage, done, total: progress()
        )
        whole = NamedSharding(run.mesh, PartitionSpec())  # each process reads all of the results
        self._dependence = jax.jit(
            lambda params, rows: run.model.apply({"params": params}, rows, method=similarities),
            out_shardings=whole,
        )
        self._mesh, self._progress = run.mesh, progress
        self._weak = run.corpus.heldout_weak

    def scores(self, params) -> Scores:
        """`retrieval` (mode → language → recall) and `dependence`, where there is data for it.

        With held-out images of several sources there is also `retrieval_by_source`, in which those
        of each are searched alone.
        """
        scores: Scores = {}
        self._progress()
        if self._heldout:
            found = evaluate_retrieval(
                self._encoder,
                params,
                self._heldout,
                self._heldout_rows,
                self._tokenizer,
                self._config,
                self._parts if len(self._parts) > 1 else None,
            )
            scores["retrieval"] = found.pop("")
            if found:
                scores["retrieval_by_source"] = found
        if len(self._weak) > 1:
            self._progress()
            values = self._dependence(params, from_host(self._weak_rows, self._mesh))
            values = {name: np.asarray(v)[: len(self._weak)] for name, v in values.items()}
            known = [record.relevance for record in self._weak]
            relevance = None if None in known else np.array(known)
            lengths = shorter_lengths(self._weak_texts)
            scores["dependence"] = dependence_scores(values, relevance, lengths)
        return scores

    @functools.cached_property
    def _heldout_rows(self) -> dict[str, np.ndarray]:
        return visual_rows(self._heldout, self._config)

    @functools.cached_property
    def _weak_texts(self) -> list[tuple[tuple[str, str], ...]]:
        """Two (language, text) of each held-out weak record, always the same."""
        drawn = []
        for number, record in enumerate(self._weak):
            rng = np.random.Generator(np.random.Philox(key=[self._config.seed, number]))
            pairs = language_pairs(record.texts)
            drawn.append(draw_texts(record, pairs[rng.integers(len(pairs))], rng))
        return drawn

    @functools.cached_property
    def _weak_rows(self) -> dict[str, np.ndarray]:
        rows = []
        for number, (record, drawn) in enumerate(zip(self._weak, self._weak_texts, strict=True)):
            ids_a, ids_b = self._tokenizer.encode([text for _, text in drawn])
            rows.append(evaluation_row(record, self._config) | {"ids_a": ids_a, "ids_b": ids_b})
            rows[-1]["other"] = np.int32((number - 1) % len(self._weak))
        rows += [rows[0]] * (-len(rows) % batch_devices(self._mesh))
        return stacked(rows)


def summary(scores: Scores) -> str:
    """The scores in one line: mean recall of each mode, and the dependence figures."""
    parts = []
    for mode, languages in scores.get("retrieval", {}).items():
        means = _means(languages)
        shown = (f"{cut} {means[cut]:.1%}" for cut in ("IR@1", "IR@10", "TR@1"))
        parts.append(f"{mode}: {' '.join(shown)}")
    parts += [f"{name} {value:.3f}" for name, value in scores.get("dependence", {}).items()]
    return "  ".join(parts)


def score_tables(scores: Scores) -> list[Table]:
    """The scores as tables for the console; recalls in percent."""
    tables = []
    cuts = [f"{direction}@{k}" for direction in ("IR", "TR") for k in CUTOFFS]
    searches = {"held-out images": scores.get("retrieval", {})}
    for name, found in scores.get("retrieval_by_source", {}).items():
        searches[f"held-out images of {name}"] = found
    for what, mode, languages in ((w, m, ls) for w, of in searches.items() for m, ls in of.items()):
        table = Table("language", title=f"retrieval, {what}, {mode} (%)")
        for cut in cuts:
            table.add_column(cut, justify="right")
        for code, recalls in (languages | {"mean": _means(languages)}).items():
            if code == "mean":
                table.add_section()
            table.add_row(code, *(f"{100 * recalls[cut]:.1f}" for cut in cuts))
        tables.append(table)
    if "dependence" in scores:
        table = Table("what z depends on", "value")
        for name, value in scores["dependence"].items():
            table.add_row(name, f"{value:.3f}")
        tables.append(table)
    return tables


def _means(languages: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """The mean of each recall over the languages."""
    cuts = next(iter(languages.values()))
    return {cut: float(np.mean([recalls[cut] for recalls in languages.values()])) for cut in cuts}
