"""Matching logits of pairs of texts and images by the block, without keeping all tokens.

Tokens are not kept for all images: those of 2,000 images of a base model alone take 1.2 GB in
float32. Texts are taken in blocks whose token states stay on the devices, in the model's type of
computation; for each block all images go by, a batch at a time, and meet those of its texts that
are asked for. So an image is encoded once for each block, which hundreds of fusion passes share,
and the devices' memory depends neither on the number of images nor on that of texts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, Integer

from rc3_jax.data.tokenizer import PAD_ID
from rc3_jax.evaluation.streaming import everywhere
from rc3_jax.models.pair import PairModel, View
from rc3_jax.parallel.mesh import batch_devices, from_host, from_rows

GROUP = 16
"""Texts that share an image's keys and values."""

Progress = Callable[[str, int, int], None]
"""(what is done, batches done, batches in all), after each batch; tells of `texts`, `images`,
`right pairs` and `candidates`."""


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


Select = Callable[[range, range], tuple[Int[np.ndarray, " pairs"], ...]]
"""Rows of texts and rows of images to pairs of them: texts, images and what else is known of each."""


class PairEncoder:
    """Compiled towers and fusion encoder of a model, each for one size of batch.

    Args:
      model: reads rows as the data gives them.
      batch_size: texts or images encoded at a time.
      pairs: that go through the fusion encoder at a time; both are rounded up to what the devices
        share evenly.
      memory: bytes on each device for the token states of a block of texts.
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
        self._put = jax.jit(
            lambda block, rows, start: jax.lax.dynamic_update_slice_in_dim(block, rows, start, 0),
            donate_argnums=0,
            out_shardings=whole,
        )

    def text_vectors(
        self, params, ids: Int[np.ndarray, "texts length"]
    ) -> Float[np.ndarray, "texts size"]:
        """Of all texts, float32."""
        count = len(ids)
        batches = self._batches(range(count), "texts")
        vectors = [np.asarray(self._encode_text(params, ids, rows)[1]) for rows in batches]
        return np.concatenate(vectors)[:count]

    def image_vectors(
        self, params, count: int, produce: Fields
    ) -> Float[np.ndarray, "images size"]:
        """Of the first `count` images, float32."""
        batches = self._batches(range(count), "images")
        vectors = [np.asarray(self._encode_images(params, produce, r).vector) for r in batches]
        return np.concatenate(vectors)[:count]

    def scores(
        self, params, data: RetrievalData, select: Select, stage: str
    ) -> Iterator[tuple[np.ndarray, ...]]:
        """Matching logits of class 1, float32, of the pairs that `select` names in each block.

        Args:
          params: see `place`.
          stage: what `progress` is told.

        Yields:
          what `select` gave, and the scores.
        """
        texts, images = range(len(data.ids)), range(len(data.image_ids))
        size = self._block_size(params, data)
        blocks = [texts[i : i + size] for i in texts[::size]]
        for number, block in enumerate(blocks):
            states = None
            for rows in self._batches(images, stage, number, len(blocks)):
                chosen = select(block, rows)
                if len(chosen[0]):
                    states = states or self._encode_block(params, data, block, size)
                    view = self._encode_images(params, data.rows, rows)
                    local = chosen[0] - block.start, chosen[1] - rows.start
                    yield *chosen, self._matched(params, states, view, *local)

    def place(self, params):
        """Parameters on the devices; those that are there already stay as they are."""
        return jax.tree.map(
            lambda x: x if isinstance(x, Array) else everywhere(np.asarray(x), self.mesh), params
        )

    def _batches(self, rows: range, stage: str, number: int = 0, rounds: int = 1):
        """Batches of rows, one after the other; tells `progress` of each that is done."""
        batches = [rows[i : i + self._size] for i in rows[:: self._size]]
        for done, batch in enumerate(batches, number * len(batches) + 1):
            yield batch
            self._progress(stage, done, rounds * len(batches))

    def _encode_text(self, params, ids: np.ndarray, rows: range) -> tuple[Array, Array]:
        ids = np.asarray(ids[rows.start : rows.stop], np.int32)
        return self._text(params, from_host(self._padded(ids), self.mesh))

    def _encode_images(self, params, produce: Fields, rows: range) -> View:
        rows = self._padded(np.arange(rows.start, rows.stop))
        return self._visual(params, from_rows(produce, rows, self.mesh))

    def _padded(self, rows: np.ndarray) -> np.ndarray:
        """A whole batch: the first row again where rows are lacking."""
        return np.concatenate([rows, np.repeat(rows[:1], self._size - len(rows), axis=0)])

    def _block_size(self, params, data: RetrievalData) -> int:
        """Texts of a block, whole batches whose states fit into `memory`, or one."""
        ids = jax.ShapeDtypeStruct((self._size, data.ids.shape[1]), np.int32)
        states, _ = jax.eval_shape(self._text, params, ids)
        most = max(1, self._memory // (states.size * states.dtype.itemsize))
        return self._size * min(most, math.ceil(len(data.ids) / self._size))

    def _encode_block(
        self, params, data: RetrievalData, block: range, size: int
    ) -> tuple[Float[Array, "size length width"], Int[Array, "size length"]]:
        """Token states and ids of a block of texts."""
        ids = np.full((size, data.ids.shape[1]), PAD_ID, np.int32)
        ids[: len(block)] = data.ids[block.start : block.stop]
        states = None
        for start in range(0, len(block), self._size):
            rows, _ = self._encode_text(params, data.ids, block[start : start + self._size])
            if states is None:
                states = jnp.zeros((size, *rows.shape[1:]), rows.dtype, device=self._whole)
            states = self._put(states, rows, start)
        return states, everywhere(ids, self.mesh)

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
