"""Vectors and matching logits of many texts and images, without keeping all tokens.

Tokens of 2,000 images of a base model alone take 1.2 GB in float32. Texts are taken in blocks whose
token states stay on the devices; for each block all images go by, a batch at a time, and meet those
of its texts that are asked for. So an image is encoded once for each block, which hundreds of fusion
passes share, and the devices' memory depends on the number of neither.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, Integer

from rc3_jax.data.tokenizer import PAD_ID
from rc3_jax.models.base import PairModel, View
from rc3_jax.parallel.mesh import batch_devices, from_host, from_rows

GROUP = 16
"""Texts that share an image's keys and values."""

Progress = Callable[[str, int, int], None]
"""(`texts`, `images` or `pairs`; batches done; batches in all), after each batch."""
Fields = Callable[[Int[np.ndarray, " chosen"]], Mapping[str, np.ndarray]]
"""Places of images to their visual fields, those that `encode_visual` reads."""


class RetrievalData(NamedTuple):
    """Texts and images of a search, the same in every process.

    Attributes:
      ids: int32 `[texts, length]`, padded with `PAD_ID`.
      image_of_text: identity of the image that each text describes, any whole number.
      image_ids: identity of each image; of images with one identity the first alone counts.
      rows: the visual fields that `encode_visual` reads (see `visual_rows`), of images whose places
        in `image_ids` it gets. Called for a few images at a time, in each process for those of its
        own devices alone, and several times for an image.
    """

    ids: Int[np.ndarray, "texts length"]
    image_of_text: Integer[np.ndarray, " texts"]
    image_ids: Integer[np.ndarray, " images"]
    rows: Fields


class PairEncoder:
    """Compiled towers and fusion encoder of a model, each for one size of batch.

    Args:
      model: reads rows as the data gives them.
      batch_size: texts or images encoded at a time.
      pairs: that go through the fusion encoder at a time; both are rounded up to what the devices
        share evenly.
      memory: bytes on each device for the token states of a block of texts, which are there twice
        while they are put together.
      progress: see `Progress`.

    Raises:
      ValueError: if a number is below 1.
    """

    def __init__(
        self,
        model: PairModel,
        mesh: Mesh,
        batch_size: int = 64,
        pairs: int = 512,
        memory: int = 2**28,
        progress: Progress = lambda stage, done, total: None,
    ):
        if min(batch_size, pairs, memory) < 1:
            raise ValueError(f"{batch_size=}, {pairs=} and {memory=} must be at least 1")
        devices = batch_devices(mesh)
        self._size = math.ceil(batch_size / devices) * devices
        self._groups = math.ceil(pairs / (GROUP * devices)) * devices
        self.mesh, self._memory, self._progress = mesh, memory, progress
        self._whole = whole = NamedSharding(mesh, PartitionSpec())

        def compiled(method: str) -> Callable:
            def call(params, rows):
                return model.apply({"params": params}, rows, method=method)

            return jax.jit(call, out_shardings=whole)

        def match(model, states, known, tokens, mask):
            return model.match(model.fusion(states, known, tokens, mask))[:, 1]

        def score(params, states, ids, view, image_rows, text_rows):
            tokens, mask = view.tokens[image_rows], view.mask[image_rows]
            states, known = states[text_rows], ids[text_rows] != PAD_ID

            def of_one_text_each(states, known):
                return model.apply({"params": params}, states, known, tokens, mask, method=match)

            # Texts are mapped over and images are not: keys and values are made once for a group.
            return jax.vmap(of_one_text_each, in_axes=1, out_axes=1)(states, known)

        self._text, self._visual = compiled("encode_text"), compiled("encode_visual")
        self._score = jax.jit(score, out_shardings=whole)
        self._join = jax.jit(lambda *parts: jnp.concatenate(parts), out_shardings=whole)

    def place(self, params):
        """Parameters on the devices; those that are there already stay as they are."""
        return jax.tree.map(
            lambda x: x if isinstance(x, jax.Array) else self._replicate(np.asarray(x)), params
        )

    def text_vectors(
        self, params, ids: Int[np.ndarray, "texts length"]
    ) -> Float[np.ndarray, "texts size"]:
        """The contrastive vectors of all texts, float32."""
        batches = self._batches(len(ids), "texts")
        vectors = [np.asarray(self._encode_text(params, ids[places])[1]) for places in batches]
        return np.concatenate(vectors)[: len(ids)]

    def image_vectors(
        self, params, count: int, produce: Fields
    ) -> Float[np.ndarray, "images size"]:
        """The contrastive vectors of the first `count` images, float32."""
        batches = self._batches(count, "images")
        vectors = [
            np.asarray(self._encode_images(params, produce, places).embedding) for places in batches
        ]
        return np.concatenate(vectors)[:count]

    def scores(
        self,
        params,
        data: RetrievalData,
        texts: Int[np.ndarray, " pairs"],
        images: Int[np.ndarray, " pairs"],
    ) -> Float[np.ndarray, " pairs"]:
        """Matching logits of class 1, float32, of pairs of a text and an image.

        Args:
          params: see `place`.
          texts, images: places in `data`, pair by pair.
        """
        block = self._block_size(params, data.ids)
        rounds = math.ceil(len(data.ids) / block)
        batches = math.ceil(len(data.image_ids) / self._size)
        cells = texts // block * batches + images // self._size  # (block, batch) of each pair
        order = np.argsort(cells, kind="stable")
        bounds = np.searchsorted(cells, np.arange(rounds * batches + 1), sorter=order)
        scores = np.empty(len(texts), np.float32)
        states = None
        for cell, (start, stop) in enumerate(itertools.pairwise(bounds)):
            first_text, first_image = cell // batches * block, cell % batches * self._size
            if first_image == 0:
                states = None
            if start < stop:
                states = states or self._encode_block(params, data.ids, first_text, block)
                places = self._places(first_image, len(data.image_ids))
                view = self._encode_images(params, data.rows, places)
                chosen = order[start:stop]
                rows = texts[chosen] - first_text, images[chosen] - first_image
                scores[chosen] = self._matched(params, states, view, *rows)
            self._progress("pairs", cell + 1, rounds * batches)
        return scores

    def _batches(self, count: int, stage: str) -> Iterator[Int[np.ndarray, " batch"]]:
        """Places of whole batches, one after the other; calls `progress` after each."""
        total = math.ceil(count / self._size)
        for number in range(total):
            yield self._places(number * self._size, count)
            self._progress(stage, number + 1, total)

    def _places(self, start: int, count: int) -> Int[np.ndarray, " batch"]:
        """A whole batch of places below `count`: the last again where some are lacking."""
        return np.arange(start, start + self._size).clip(max=count - 1)

    def _encode_text(self, params, ids: np.ndarray) -> tuple[jax.Array, jax.Array]:
        return self._text(params, from_host(np.asarray(ids, np.int32), self.mesh))

    def _encode_images(self, params, produce: Fields, places: np.ndarray) -> View:
        return self._visual(params, from_rows(produce, places, self.mesh))

    def _block_size(self, params, ids: np.ndarray) -> int:
        """Texts of a block, whole batches whose states fit into `memory`, or one."""
        batch = jax.ShapeDtypeStruct((self._size, ids.shape[1]), np.int32)
        states, _ = jax.eval_shape(self._text, params, batch)
        most = max(1, self._memory // (states.size * states.dtype.itemsize))
        return self._size * min(most, math.ceil(len(ids) / self._size))

    def _encode_block(
        self, params, ids: np.ndarray, first: int, size: int
    ) -> tuple[Float[Array, "size length width"], Int[Array, "size length"]]:
        """Token states and ids of a block of texts, on every device."""
        starts = range(first, first + size, self._size)
        parts = [np.asarray(ids[self._places(start, len(ids))], np.int32) for start in starts]
        states = self._join(*(self._encode_text(params, part)[0] for part in parts))
        return states, self._replicate(np.concatenate(parts))

    def _replicate(self, array: np.ndarray) -> jax.Array:
        """An array that every process holds, whole on each device."""
        return jax.make_array_from_callback(array.shape, self._whole, lambda part: array[part])

    def _matched(self, params, states, view, texts, images) -> Float[np.ndarray, " pairs"]:
        """Scores of pairs, given as rows of the block and of the batch."""
        order = np.argsort(images, kind="stable")
        _, numbers, counts = np.unique(images[order], return_inverse=True, return_counts=True)
        groups = -(-counts // GROUP)
        first_group, first = (np.cumsum(x) - x for x in (groups, counts))
        slots = np.empty(len(images), np.int64)
        slots[order] = GROUP * first_group[numbers] + np.arange(len(images)) - first[numbers]
        calls = -(-groups.sum() // self._groups)
        text_rows = np.zeros(calls * self._groups * GROUP, np.int32)
        image_rows = np.zeros(calls * self._groups, np.int32)
        text_rows[slots], image_rows[slots // GROUP] = texts, images
        parts = image_rows.reshape(calls, -1), text_rows.reshape(calls, -1, GROUP)
        results = [
            self._score(params, *states, view, *from_host(part, self.mesh))
            for part in zip(*parts, strict=True)
        ]
        return np.concatenate(results).reshape(-1)[slots]
