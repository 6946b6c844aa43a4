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
from rc3_jax.evaluation.dependence import (
    dependence_scores,
    shorter_lengths,
    similarities,
    text_relevance,
)
from rc3_jax.evaluation.matching import evaluate_matching
from rc3_jax.evaluation.pair_encoder import PairEncoder
from rc3_jax.evaluation.retrieval import evaluate_retrieval, shown, visual_rows
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
        self._debias = getattr(run.config.objective, "debias_relevance", False)

    def scores(self, params) -> Scores:
        """`retrieval` (mode → language → recall) and `dependence`, where there is data for it.

        With `evaluation.rerank` and two held-out images there is also `matching` (mode → language →
        score), for all sources together.

        With held-out images of several sources there is also `retrieval_by_source`, in which those
        of each are searched alone.
        """
        scores: Scores = {}
        self._progress()
        if self._heldout:
            heldout = self._heldout, self._heldout_rows, self._tokenizer, self._config
            parts = self._parts if len(self._parts) > 1 else None
            found = evaluate_retrieval(self._encoder, params, *heldout, parts)
            scores["retrieval"] = found.pop("")
            if found:
                scores["retrieval_by_source"] = found
            if self._config.evaluation.rerank and len(self._heldout) > 1:
                self._progress()
                if matching := evaluate_matching(self._encoder, params, *heldout):
                    scores["matching"] = matching
        if len(self._weak) > 1:
            self._progress()
            values = self._dependence(params, from_host(self._weak_rows, self._mesh))
            values = {name: np.asarray(v)[: len(self._weak)] for name, v in values.items()}
            texts = values.pop("text_a"), values.pop("text_b")
            values["text_relevance"] = text_relevance(*texts, self._debias)
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
            row = evaluation_row(record, self._config)
            if "region_mask" in row and row["region_mask"].any():  # else there are patches alone
                row = shown(row, self._config.data.visual_forms)
            other = np.int32((number - 1) % len(self._weak))
            rows.append(row | {"ids_a": ids_a, "ids_b": ids_b, "other": other})
        rows += [rows[0]] * (-len(rows) % batch_devices(self._mesh))
        return stacked(rows)


def summary(scores: Scores) -> str:
    """The scores in one line: means over languages in each mode, and the dependence figures."""
    parts = []
    for mode, languages in scores.get("retrieval", {}).items():
        means = _means(languages)
        recalls = (f"{cut} {means[cut]:.1%}" for cut in ("IR@1", "IR@10", "TR@1"))
        parts.append(f"{mode}: {' '.join(recalls)}")
    for mode, languages in scores.get("matching", {}).items():
        means = _means(languages)
        told = f"{means['pairwise_accuracy']:.1%} of pairs, re-ranked IR@1 {means['IR@1']:.1%}"
        parts.append(f"matching, {mode}: {told}")
    parts += [f"{name} {value:.3f}" for name, value in scores.get("dependence", {}).items()]
    return "  ".join(parts)


def score_tables(scores: Scores) -> list[Table]:
    """The scores as tables for the console; accuracies and recalls in percent."""
    searches = {"held-out images": scores.get("retrieval", {})}
    for name, found in scores.get("retrieval_by_source", {}).items():
        searches[f"held-out images of {name}"] = found
    tables = [
        _by_language(f"retrieval, {what}, {mode} (%)", languages)
        for what, of in searches.items()
        for mode, languages in of.items()
    ]
    for mode, languages in scores.get("matching", {}).items():
        title = f"matching, and retrieval re-ranked by it, {mode} (%)"
        tables.append(_by_language(title, languages))
    if "dependence" in scores:
        table = Table("what z depends on", "value")
        for name, value in scores["dependence"].items():
            table.add_row(name, f"{value:.3f}")
        tables.append(table)
    return tables


def _by_language(title: str, languages: Mapping[str, Mapping[str, float]]) -> Table:
    """A row for each language, and their mean."""
    means = _means(languages)
    table = Table("language", title=title)
    for name in means:
        table.add_column(name, justify="right")
    for code, values in languages.items():
        table.add_row(code, *(f"{100 * values[name]:.1f}" for name in means))
    table.add_section()
    table.add_row("mean", *(f"{100 * value:.1f}" for value in means.values()))
    return table


def _means(languages: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """The mean of each score over the languages."""
    names = next(iter(languages.values()))
    return {name: float(np.mean([of[name] for of in languages.values()])) for name in names}
