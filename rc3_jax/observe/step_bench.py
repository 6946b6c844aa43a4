"""A training step on random rows, to be timed: no data is read."""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TextIO

import jax
import ml_collections
import numpy as np

from rc3_jax.config import PretrainSettings
from rc3_jax.data.kinds import KINDS, wanted
from rc3_jax.data.shapes import abstract_batch
from rc3_jax.data.stream import batch_rows
from rc3_jax.data.text import IGNORED
from rc3_jax.data.tokenizer import BOS_ID, EOS_ID, PAD_ID
from rc3_jax.observe.log import Say
from rc3_jax.parallel.mesh import from_host
from rc3_jax.training.aot import abstract_run, step_flops
from rc3_jax.training.run import RunModel
from rc3_jax.training.state import TrainState

WORDS_OF_A_TEXT = 18
"""Median number of tokens of a random text; their logarithm has a standard deviation of 0.35."""
LEAST_STEPS = 3
"""Steps of a chunk, at least."""


class Timed:
    """Steps to be timed; subclasses take them.

    Attributes:
      about: `name`, `parameters`, `batch`, `rows` by kind, and `flops` of a step (matrix products,
        padding included).
    """

    about: dict[str, Any]

    def step(self) -> float:
        """Takes a step to its end, and returns its loss."""
        raise NotImplementedError

    def run(self, seconds: float) -> dict[str, float]:
        """Steps for so long; their number, median, least and most milliseconds, and the last loss."""
        taken: list[float] = []
        loss = 0.0
        end = time.perf_counter() + seconds
        while time.perf_counter() < end or len(taken) < LEAST_STEPS:
            begun = time.perf_counter()
            loss = self.step()
            taken.append(1e3 * (time.perf_counter() - begun))
        return dict(
            n=len(taken), median=statistics.median(taken), min=min(taken), max=max(taken), loss=loss
        )

    def work(self, requests: Iterable[str], answers: TextIO) -> None:
        """Serves a program that alternates several: a line of JSON about the step when it is ready,
        then for each line with a number of seconds what `run` returns."""
        self.run(0.0)
        print(json.dumps(self.about), file=answers, flush=True)
        for line in requests:
            print(json.dumps(self.run(float(line))), file=answers, flush=True)


class StepBench(Timed):
    """The compiled step of a configuration with rows to run it on."""

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        vocab_size: int,
        say: Say = lambda line: None,
    ):
        """Compiles the step; `about` tells also `temporaries_mib` of the compiled program.

        Raises:
          ConfigError: for invalid settings.
        """
        rows = rows_of(config)
        run = abstract_run(config, jax.devices(), rows, vocab_size)
        self._batch = from_host(random_batch(run.config, rows, vocab_size), run.mesh)
        self._state = drawn_state(run)
        self._step = run.train_step()
        memory = self._step.compile(self._batch, say).memory_analysis()
        self.about = dict(
            name=config.name,
            parameters=sum(leaf.size for leaf in jax.tree.leaves(self._state.params)),
            batch=config.batch_size,
            rows=rows,
            flops=sum(step for _, step in step_flops(run, rows).values()),
            temporaries_mib=round(memory.temp_size_in_bytes / 2**20, 1) if memory else None,
        )

    def step(self) -> float:
        self._state, metrics = self._step(self._state, self._batch)
        return float(metrics["loss"])  # waits for the step


def drawn_state(run: RunModel) -> TrainState:
    """A first state with random parameters, in its places on the devices."""
    places = jax.tree.map(lambda leaf: leaf.sharding, run.abstract_state)
    return jax.jit(run.initial_state, out_shardings=places)()


def rows_of(config: ml_collections.ConfigDict | PretrainSettings) -> dict[str, int]:
    """Rows of each kind that has a share of the batch."""
    return batch_rows(config.batch_size, config.batch_mix, wanted(KINDS, config.batch_mix))


def random_batch(
    config: PretrainSettings, rows: Mapping[str, int], vocab_size: int, seed: int = 0
) -> dict[str, dict[str, np.ndarray]]:
    """A global batch with the shapes of `abstract_batch`, and what matters for the time of a step:
    texts of varying length, parts of images that are dropped, masked tokens."""
    rng = np.random.default_rng(seed)

    def values(name: str, shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
        if name in ("ids_a", "ids_b", "masked_ids"):
            return _texts(rng, shape, vocab_size)
        if name == "masked_positions":
            return rng.integers(1, 5, shape).astype(dtype)
        if name == "masked_labels":
            words = rng.integers(EOS_ID + 1, vocab_size, shape)
            return np.where(rng.random(shape) < 0.6, words, IGNORED).astype(dtype)
        if name == "groups":
            return rng.permutation(np.prod(shape, dtype=int)).reshape(shape).astype(dtype)
        if name in ("use_patches", "use_regions"):  # never both are dropped
            count = math.prod(shape)
            dropped = np.arange(count) < count * config.data.modality_dropout
            return ~(dropped if name == "use_patches" else dropped[::-1]).reshape(shape)
        if name.endswith("boxes"):
            low, high = rng.random((2, *shape[:-1], 2)) / 2
            return np.concatenate([low, high + 0.5], axis=-1).astype(dtype)
        if dtype == np.uint8:
            return rng.integers(0, 256, shape, np.uint8)
        return np.ones(shape, bool) if dtype == bool else rng.standard_normal(shape).astype(dtype)

    batch: dict[str, dict[str, np.ndarray]] = {}
    for kind, fields in abstract_batch(config, rows).items():
        is_sentence = fields.pop("sentences", None) is not None
        of = {name: values(name, leaf.shape, leaf.dtype) for name, leaf in fields.items()}
        batch[kind] = of | ({"sentences": of["groups"]} if is_sentence else {})
    return batch


def _texts(rng: np.random.Generator, shape: Sequence[int], vocab_size: int) -> np.ndarray:
    """Ids of texts between `<s>` and `</s>`, padded."""
    places, length = np.arange(shape[-1]), shape[-1]
    sizes = np.exp(rng.normal(np.log(WORDS_OF_A_TEXT), 0.35, (*shape[:-1], 1)))
    last = np.clip(np.round(sizes), 3, length) - 1
    words = rng.integers(EOS_ID + 1, vocab_size, shape)
    ids = np.where(places < last, words, np.where(places == last, EOS_ID, PAD_ID))
    ids[..., 0] = BOS_ID
    return ids.astype(np.int32)
