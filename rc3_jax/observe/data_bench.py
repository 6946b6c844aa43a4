"""Making rows of a batch, to be timed: pictures decoded and augmented, texts encoded and masked."""

from __future__ import annotations

import collections
import concurrent.futures
import copy
import dataclasses
import os
import pathlib
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
from PIL import Image

from rc3_jax.config import validate
from rc3_jax.data.augment import augment
from rc3_jax.data.corpus import open_corpus, run_tokenizer
from rc3_jax.data.example import training_row
from rc3_jax.data.image import Encoded, decode, read_header
from rc3_jax.data.kinds import KINDS, LanguagePair
from rc3_jax.data.record import DataError, Record, Skips
from rc3_jax.observe.chips import CHIPS
from rc3_jax.observe.step_bench import rows_of
from rc3_jax.settings import check_choice
from rc3_jax.training.aot import abstract_run, device_flops, vocabulary_size

UTILISATION = 0.5
"""Share of a chip's operations that a step is taken to use."""
BATCH = 16
"""Pictures of a batch."""
GENERATED = {(500, 375): 90, (1600, 1200): 75}
"""Width and height of generated pictures → JPEG's quality: 4 and 2 bits a pixel."""
_TIMED = [KINDS[kind] for kind in ("strict", "weak", "captioned")]


def write_pictures(
    folder: pathlib.Path, size: tuple[int, int], quality: int, count: int
) -> list[pathlib.Path]:
    """JPEGs of a width and height whose amplitudes fall with frequency, as in photographs."""
    width, height = size
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    amplitude = np.maximum(frequency, 1 / max(size)) ** -1.2
    rng = np.random.default_rng(0)
    paths = [folder / f"{number}.jpg" for number in range(count)]
    for path in paths:
        phases = np.exp(2j * np.pi * rng.random((3, *amplitude.shape)))
        light, *colours = np.fft.irfft2(amplitude * phases, (height, width))
        mixed = np.stack([light + 0.3 * colours[0], light, light + 0.3 * colours[1]], axis=-1)
        pixels = (118 + 55 * mixed / mixed.std()).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(path, quality=quality)
    return paths


class DataBench:
    """Rows of images with texts, made from so many records again and again.

    Attributes:
      config: the valid configuration; one without sources takes generated scenes.
      records: what rows are made of, with the groups and languages of each.
      pictures: what `use_pictures` was given.
    """

    def __init__(self, config: ml_collections.ConfigDict, count: int):
        """Opens the data.

        Raises:
          ConfigError, DataError: invalid settings; sources that cannot be read or hold no images.
        """
        config.evaluation.update(images=0, dependence_rows=0)
        if not config.data.sources:
            config.data.sources = dict(scenes=dict(type="scenes", strict=count))
        self.config = validate(config)
        corpus = open_corpus(self.config, Skips(config.data.skip_limit))
        pools = [pool for kind, pool in corpus.pools.items() if KINDS[kind] in _TIMED]
        if not pools:
            raise DataError("data.sources hold no strict, weak or captioned records; add some")
        self._tokenizer = run_tokenizer(self.config, corpus, None)
        offered = [(pair, number) for pair, of in pools[0].pairs.items() for number in of]
        chosen = np.linspace(0, len(offered) - 1, count).astype(int).tolist()
        self._pool, self._offered = pools[0], [offered[n] for n in chosen]
        self.records = [self._drawn(place) for place in range(count)]
        self.pictures: Sequence[pathlib.Path | None] = ()

    def use_pictures(self, paths: Sequence[pathlib.Path | None]) -> None:
        """Gives the records other pictures, or none. Then they are not drawn anew for each row."""
        self.pictures = paths
        self.records = [
            (dataclasses.replace(record, image=paths[place % len(paths)]), groups, pair)
            for place, (record, groups, pair) in enumerate(self.records)
        ]

    def row(self, place: int) -> dict[str, np.ndarray]:
        """A row of a training batch."""
        known = place % len(self.records)
        record, groups, pair = self.records[known] if self.pictures else self._drawn(known)
        rng = np.random.Generator(np.random.Philox(key=[0, place]))
        return training_row(record, groups, pair, self._tokenizer, self.config, rng)

    def _drawn(self, place: int) -> tuple[Record, np.ndarray, LanguagePair]:
        """A record as training reads it, its line included."""
        pair, number = self._offered[place]
        return *self._pool[number], pair

    def stages(self, peer: bool = False) -> dict[str, Callable[[], object]]:
        """What is timed, each for all records.

        `decode` decodes every pixel, `augment` begins with all pixels, and `picture` does both as
        training does, with no pixel more than the crop needs. `text` is a row without its picture
        from a record that was read before, `row` is all of it, with reading the record where no
        other pictures are used. The peer is PyTorch's DataLoader, with Pillow.
        """
        rng, image = np.random.default_rng(0), self.config.data.image
        options: dict[str, Any] = dict(
            crop_scale=image.crop_scale, jitter=image.jitter, may_flip=image.flip
        )
        size = self.config.model.patch.image_size
        given = [(record.image, record.where) for record, _, _ in self.records]
        decoded = [decode(*one) for one in given]
        texts = copy.copy(self)
        texts.use_pictures([None])
        places = range(len(given))

        def augmented(make: Callable[[int], np.ndarray | Encoded]) -> None:
            for first in places[::BATCH]:
                batch = places[first : first + BATCH]
                np.stack([augment(make(n), None, size, rng, **options)[0] for n in batch])

        found: dict[str, Callable[[], object]] = {
            "decode": lambda: [len(decode(*one)) for one in given],
            "augment": lambda: augmented(decoded.__getitem__),
            "picture": lambda: augmented(lambda place: read_header(*given[place])),
            "text": lambda: [len(texts.row(place)) for place in places],
            "row": lambda: [len(self.row(place)) for place in places],
        }
        if peer:
            from rc3_jax.observe.torch_data_peer import Pictures

            found["torch"] = Pictures(given, self.config, BATCH).load
        return found

    def measure(self, rounds: int, peer: bool = False) -> dict[str, dict[str, float]]:
        """Stage → milliseconds of CPU time for a record: median, least and most of the rounds, in
        which the stages take turns."""
        stages = self.stages(peer)
        taken = collections.defaultdict(list)
        for _ in range(rounds + 1):  # the first does not count
            for name, stage in stages.items():
                begun = time.process_time()
                stage()
                taken[name].append(1e3 * (time.process_time() - begun) / len(self.records))
        middle = {name: statistics.median(times[1:]) for name, times in taken.items()}
        return {
            name: dict(
                milliseconds=middle[name],
                least=min(times[1:]),
                most=max(times[1:]),
                a_second=1e3 / middle[name],
            )
            for name, times in taken.items()
        }

    def threads(self) -> dict[int, float]:
        """Number of threads, powers of 2 up to the cores → rows a second of wall time."""
        found = {}
        for threads in (1 << n for n in range((os.cpu_count() or 1).bit_length())):
            with concurrent.futures.ThreadPoolExecutor(threads) as pool:
                begun = time.perf_counter()
                rows = sum(1 for _ in pool.map(self.row, range(threads * len(self.records))))
                found[threads] = rows / (time.perf_counter() - begun)
        return found

    def cores(self, chip: str, stages: Mapping[str, Mapping[str, float]]) -> float:
        """Cores of the host that feed a chip; `stages` is what `measure` returns.

        Raises:
          ConfigError: an unknown chip.
        """
        check_choice("chip", chip, CHIPS)
        rows = rows_of(self.config)
        run = abstract_run(self.config, jax.devices()[:1], rows, vocabulary_size(self.config))
        stage = {kind: stages["row" if KINDS[kind].image else "text"] for kind in rows}
        busy = sum(count * stage[kind]["milliseconds"] for kind, count in rows.items()) / 1e3
        return busy / (device_flops(run, rows) / (UTILISATION * CHIPS[chip].flops))
