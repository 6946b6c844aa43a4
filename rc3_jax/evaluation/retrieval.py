"""Image and text retrieval by the contrastive vectors: recall at 1, 5 and 10 per language."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rc3_jax.data.example import evaluation_row
from rc3_jax.data.record import Record
from rc3_jax.data.tokenizer import Tokenizer
from rc3_jax.models.pair import PairModel
from rc3_jax.parallel.mesh import batch_devices, from_host

MODES = {"both": (True, True), "patches": (True, False), "regions": (False, True)}
"""Which visual parts a mode uses: (patches, regions)."""
CUTOFFS = (1, 5, 10)


class Encoder:
    """Compiled encoders that take any number of rows, in batches of one size.

    Args:
      batch_size: rows of one call, rounded up to a multiple of the devices.
      progress: called before each batch.
    """

    def __init__(
        self,
        model: PairModel,
        mesh: Mesh,
        batch_size: int,
        progress: Callable[[], None] = lambda: None,
    ):
        self._mesh, self._progress = mesh, progress
        devices = batch_devices(mesh)
        self._batch_size = math.ceil(batch_size / devices) * devices
        whole = NamedSharding(mesh, PartitionSpec())

        def compiled(method: str, pick: Callable) -> Callable:
            def call(params, rows):
                return pick(model.apply({"params": params}, rows, method=method))

            return jax.jit(call, out_shardings=whole)

        self._text = compiled("encode_text", lambda out: out[1])
        self._visual = compiled("encode_visual", lambda out: out.vector)

    def texts(self, params, ids: np.ndarray) -> np.ndarray:
        """Text vectors, float32 `[texts, size]`, of token ids `[texts, length]`."""
        return self._run(self._text, params, ids)

    def images(self, params, rows: Mapping[str, np.ndarray], mode: str) -> np.ndarray:
        """Image vectors, float32 `[images, size]`, by `patches`, `regions` or `both`."""
        patches, regions = MODES[mode]
        count = len(rows["image"])
        chosen = {**rows, "use_patches": np.full(count, patches)}
        if "use_regions" in rows:
            chosen["use_regions"] = np.full(count, regions)
        return self._run(self._visual, params, chosen)

    def _run(self, function, params, rows) -> np.ndarray:
        count = len(jax.tree.leaves(rows)[0])
        results = []
        for start in range(0, count, self._batch_size):
            self._progress()
            stop = min(start + self._batch_size, count)
            padding = self._batch_size - (stop - start)
            batch = jax.tree.map(
                lambda x, a=start, b=stop, p=padding: np.concatenate(
                    [x[a:b], np.repeat(x[a : a + 1], p, axis=0)]
                ),
                rows,
            )
            output = function(params, from_host(batch, self._mesh))
            results.append(np.asarray(output)[: stop - start])
        return np.concatenate(results)


def recalls(
    queries: np.ndarray,
    gallery: np.ndarray,
    query_groups: np.ndarray,
    gallery_groups: np.ndarray,
    cutoffs: Sequence[int] = CUTOFFS,
    chunk: int = 1024,
) -> dict[int, float]:
    """Share of queries with a right answer among the `k` most similar gallery items.

    A gallery item is right if it is of the query's group. Items that tie with the best right
    one count as ranked before it, and so does what is not a number: neither a collapsed nor a
    diverged model scores.

    Args:
      queries: `[queries, size]`; gallery: `[items, size]`; unit vectors.
      chunk: queries compared at a time, which bounds memory.
    """
    ranks = []
    for start in range(0, len(queries), chunk):
        similarity = queries[start : start + chunk] @ gallery.T
        right = query_groups[start : start + chunk, None] == gallery_groups[None, :]
        ranks.append(ranks_of_right(similarity, right))
    return recalls_of_ranks(np.concatenate(ranks), cutoffs)


def ranks_of_right(scores: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Wrong items ranked before each query's best right one, infinite where none is right.

    Items that tie with it count as ranked before it, and so does what is not a number.

    Args:
      scores: float `[queries, items]`; right: bool of that shape.
    """
    best = np.where(right, scores, -np.inf).max(axis=1, keepdims=True)
    before = np.sum(~(scores < best) & ~right, axis=1)
    return np.where(right.any(axis=1), before, np.inf)


def recalls_of_ranks(ranks: np.ndarray, cutoffs: Sequence[int]) -> dict[int, float]:
    """Share of queries with a right item among the first k."""
    return {k: float(np.mean(ranks < k)) for k in cutoffs}


def visual_rows(records: Sequence[Record], config) -> dict[str, np.ndarray]:
    """The visual fields of all records, stacked."""
    rows = [evaluation_row(record, config) for record in records]
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def evaluate_retrieval(
    encoder: Encoder,
    params,
    records: Sequence[Record],
    rows: Mapping[str, np.ndarray],
    tokenizer: Tokenizer,
    config,
) -> dict[str, dict[str, dict[str, float]]]:
    """mode → language → `IR@1` ... `TR@10` over held-out images.

    IR ranks all images for a text, TR all texts of the language for an image. Modes that the
    records cannot serve are left out: `both` where none has regions, `regions` where not all do.

    Args:
      rows: `visual_rows` of the records.
    """
    has_regions = rows["region_mask"].any(axis=1) if "region_mask" in rows else np.zeros(1, bool)
    serves = {"patches": True, "both": has_regions.any(), "regions": has_regions.all()}
    modes = [mode for mode in config.evaluation.modes if serves[mode]]
    found = sorted({code for record in records for code in record.texts})
    texts = {}
    for code in config.evaluation.languages or found:
        owners = [i for i, record in enumerate(records) for _ in record.texts.get(code, ())]
        spoken = [text for record in records for text in record.texts.get(code, ())]
        if spoken:
            texts[code] = encoder.texts(params, tokenizer.encode(spoken)), np.array(owners)
    scores = {}
    for mode in modes:
        images = encoder.images(params, rows, mode)
        scores[mode] = {}
        for code, (vectors, owners) in texts.items():
            described = np.unique(owners)  # images without a text in this language do not take part
            image_to_text = recalls(images[described], vectors, described, owners)
            text_to_image = recalls(vectors, images, owners, np.arange(len(images)))
            scores[mode][code] = {f"IR@{k}": v for k, v in text_to_image.items()} | {
                f"TR@{k}": v for k, v in image_to_text.items()
            }
    return scores
