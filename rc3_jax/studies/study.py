"""A study: variants of a configuration, the seeds that they run with, and the claims that are tested."""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import json
import math
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Self

import ml_collections
import pydantic

from rc3_jax.config import settings_class, validate
from rc3_jax.data.record import DataError
from rc3_jax.settings import ConfigError, Settings, change_setting, check_choice, describe, plain
from rc3_jax.stored_config import is_among
from rc3_jax.tasks.config import MINIATURE
from rc3_jax.tasks.plan import Options
from rc3_jax.tasks.results import config_checksum
from rc3_jax.tasks.suite import task_configs

APART = (
    *("name", "mesh.*", "data.threads", "data.workers", "data.prefetch", "data.batch_cache"),
    *("log_every", "watchdog_minutes", "checkpoint.*"),
)
"""Patterns of the settings of pre-training that the checksum leaves out: no result depends on them."""
GROUP = re.compile(r"\{(\w+)\}")
Raw = Mapping[str, float]
"""Name → value of the scores of a run, such as `dependence/text_dependence`."""


class Score(Settings):
    """A figure of a run: the mean of raw scores."""

    of: tuple[str, ...]
    """`retrieval/<mode>/<language>/IR@1`, `matching/<mode>/<language>/IR@1` and
    `dependence/text_dependence` of pre-training, `xvnli/<language>/accuracy` of a task. A group of
    languages in braces, such as `{weak}`, stands for each of them."""
    minus: tuple[str, ...] = ()
    """Raw scores whose mean is subtracted."""
    percent: bool = True
    """Whether it is a share."""


class Claim(Settings):
    """A sentence that holds where variants have a higher, or a lower, score than another one."""

    sentence: str
    score: str
    variants: tuple[str, ...]
    """Each is judged by itself."""
    than: str | float
    """The variant, or the number, that they are compared with."""
    direction: Literal["above", "below"] = "above"


class Outline(Settings):
    """All of a study but its base; what a file of results holds of it."""

    name: str = pydantic.Field(pattern=r"^\w[\w.-]*$")
    about: str
    """What is varied on what, in a few sentences."""
    languages: dict[str, tuple[str, ...]] = pydantic.Field({})
    """Groups of languages, such as `weak`."""
    variants: dict[str, dict[str, Any]]
    """Name → settings by dotted names, such as `{"objective.regularizer": ("soft",)}`."""
    baseline: str
    """The variant that all are compared with."""
    seeds: tuple[int, ...]
    """Seeds on which settings are chosen."""
    fresh_seeds: tuple[int, ...] = ()
    """Seeds for the report, on which nothing was chosen."""
    tasks: tuple[str, ...] = ()
    """Tasks in miniature that each model is fine-tuned on in English and scored on."""
    task_settings: dict[str, Any] = pydantic.Field({})
    """Settings of all tasks by dotted names; `task/name` for those of one."""
    scores: dict[str, Score]
    claims: tuple[Claim, ...] = ()

    @pydantic.model_validator(mode="after")
    def _check(self) -> Self:
        if wrong := [name for name in self.variants if not re.fullmatch(r"\w[\w.-]*", name)]:
            raise ValueError(f"variants: {', '.join(wrong)}: use letters, digits, '_', '.' and '-'")
        check_choice("baseline", self.baseline, self.variants)
        if len({*self.seeds, *self.fresh_seeds}) < len(self.seeds) + len(self.fresh_seeds):
            raise ValueError("seeds, fresh_seeds: name each seed once")
        for claim in self.claims:
            check_choice("claims: score", claim.score, self.scores)
            others = [claim.than] if isinstance(claim.than, str) else []
            for variant in (*claim.variants, *others):
                check_choice("claims: variant", variant, self.variants)
        for score in self.scores.values():
            for group in GROUP.findall(" ".join((*score.of, *score.minus))):
                check_choice(f"scores: {{{group}}}", group, self.languages)
        return self

    def runs(self) -> list[Run]:
        """All variants with the first seed, then with the next one."""
        seeds = *self.seeds, *self.fresh_seeds
        return [Run(variant, seed) for seed in seeds for variant in self.variants]

    def value(self, score: str, raw: Raw, where: object) -> float:
        """A score of a run.

        Args:
          raw: the run's raw scores.
          where: named in messages.

        Raises:
          DataError: one of the raw scores is missing, or no finite number.
        """
        of, minus = (
            list(self._raw(patterns, raw, where).values())
            for patterns in (self.scores[score].of, self.scores[score].minus)
        )
        return math.fsum(of) / len(of) - math.fsum(minus) / max(1, len(minus))

    def chosen(self, raw: Raw, where: object) -> dict[str, float]:
        """The raw scores that all scores are made of; see `value`."""
        patterns = [p for score in self.scores.values() for p in (*score.of, *score.minus)]
        return self._raw(patterns, raw, where)

    def _raw(self, patterns: Iterable[str], raw: Raw, where: object) -> dict[str, float]:
        """The raw scores that patterns stand for."""
        found = {}
        for pattern in patterns:
            group = GROUP.search(pattern)
            for code in self.languages[group[1]] if group else ("",):
                name = pattern.replace(group[0], code) if group else pattern
                if not math.isfinite(value := raw.get(name, math.nan)):
                    near = ", ".join(difflib.get_close_matches(name, raw, cutoff=0))
                    raise DataError(f"{where}: {name} is {raw.get(name, 'missing')}; near: {near}")
                found[name] = value
        return found


class Study(Outline):
    """What `get_study` of a file in configs/studies returns."""

    base: Callable[[int], ml_collections.ConfigDict]
    """Seed → the configuration of pre-training that the variants change."""

    def config(self, run: Run) -> ml_collections.ConfigDict:
        """The configuration of pre-training of a run.

        Raises:
          ConfigError: a variant changes a setting that there is not, or to no valid value.
        """
        config, where = self.base(run.seed), f"{self.name}, {run.variant}"
        schema = settings_class(plain(config))
        for name, value in {**self.variants[run.variant], "seed": run.seed}.items():
            change_setting(config, name, value, schema, where)
        try:
            validate(config)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from error
        return config

    def options(self, run: Run) -> Options:
        """What `run_suite` does for a run."""
        return Options(("zero-shot",), (run.seed,), (), self.task_settings, self.tasks)

    def checksum(self, run: Run) -> str:
        """SHA-256 of the settings of a run that results depend on."""
        settings = {
            name: value
            for name, value, *_ in describe(validate(self.config(run)))
            if not is_among(name, APART)
        }
        tasks = task_configs(MINIATURE, "", self.options(run)) if self.tasks else {}
        content = [settings, {name: config_checksum(config) for name, config in tasks.items()}]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def check_settings(self, run: Run, checksum: str, place: pathlib.Path) -> None:
        """Raises ConfigError unless a checksum, which a place holds of a run, is that of its settings."""
        if checksum != self.checksum(run):
            raise ConfigError(
                f"{place}: {run} is of other settings than the study has now; remove it, or write to "
                "another place"
            )


class Run(NamedTuple):
    """A variant with a seed."""

    variant: str
    seed: int

    def __str__(self) -> str:
        return f"{self.variant}, seed {self.seed}"

    def folder(self, workdir: pathlib.Path) -> pathlib.Path:
        """Where all of it lies."""
        return workdir / self.variant / f"seed_{self.seed}"


def chosen_runs(
    study: Study, variants: Sequence[str], seeds: Sequence[str], fresh: bool
) -> list[Run]:
    """Runs of the seeds that settings are chosen on, or of the fresh ones.

    Args:
      variants, seeds: these alone; empty for all.

    Raises:
      ConfigError: there is no such variant or seed.
    """
    known = [str(seed) for seed in (study.fresh_seeds if fresh else study.seeds)]
    for variant in variants:
        check_choice("--only", variant, study.variants)
    for seed in seeds:
        check_choice("--seeds", seed, known)
    chosen = variants or study.variants, seeds or known
    return [run for run in study.runs() if run.variant in chosen[0] and str(run.seed) in chosen[1]]


def share_of(
    runs: Sequence[Run], index: int | None, shares: int | None, environment: Mapping[str, str]
) -> Sequence[Run]:
    """One of several shares of the runs, by default that of a task in a SLURM job array.

    Raises:
      ConfigError: there is no such share.
    """
    if (index is None) != (shares is None):
        raise ConfigError("name --index and --of together, or neither")
    task, first, step, count = (
        int(environment.get(f"SLURM_ARRAY_TASK_{name}", default))
        for name, default in (("ID", 0), ("MIN", 0), ("STEP", 1), ("COUNT", 1))
    )
    index = (task - first) // step if index is None else index
    shares = shares or count
    if not 0 <= index < shares:
        raise ConfigError(f"share {index} of {shares}: count shares from 0, without gaps")
    return runs[index::shares]


def load_study(path: pathlib.Path) -> Study:
    """The study of a file.

    Raises:
      ConfigError: the file cannot be run, or its study is wrong.
    """
    return _of_file(path, "get_study")()


def load_config(path: pathlib.Path, argument: str = "") -> ml_collections.ConfigDict:
    """The configuration of a file, such as configs/rc3_demo.py, for the base of a study.

    Args:
      argument: what follows the colon of `--config`.

    Raises:
      ConfigError: the file cannot be run, or does not know the argument.
    """
    return _of_file(path, "get_config")(argument)


def _of_file(path: pathlib.Path, name: str) -> Callable[..., Any]:
    """A function of a Python file, whose errors become a ConfigError."""

    def call(*arguments: Any) -> Any:
        spec = importlib.util.spec_from_file_location(path.stem, path)
        try:
            if spec is None or spec.loader is None:
                raise ImportError("it is no Python file")
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            return getattr(module, name)(*arguments)
        except ConfigError:
            raise
        except Exception as error:  # whatever such a file does
            reason = "; ".join(str(error).splitlines()) or type(error).__name__
            raise ConfigError(f"{path}: {reason}") from error

    return call
