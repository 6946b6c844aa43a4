"""Image and text retrieval by the contrastive vectors: recall at 1, 5 and 10 per language."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from rc3_jax.data.example import evaluation_row, stacked
from rc3_jax.data.record import Record
from rc3_jax.data.tokenizer import Tokenizer
from rc3_jax.evaluation.pair_encoder import PairEncoder

MODES = {"both": (True, True), "patches": (True, False), "regions": (False, True)}
"""Which visual parts a mode uses: (patches, regions)."""
CUTOFFS = (1, 5, 10)


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
    return stacked([evaluation_row(record, config) for record in records])


def seen(rows: Mapping[str, np.ndarray], mode: str) -> Callable[[np.ndarray], dict]:
    """Places to the visual fields of those images, of which a mode shows `MODES[mode]`.

    Args:
      rows: `visual_rows` of all images.
    """
    patches, regions = MODES[mode]
    count = len(rows["image"])
    shown = {**rows, "use_patches": np.full(count, patches)}
    if "use_regions" in rows:
        shown["use_regions"] = np.full(count, regions)
    return lambda places: {name: field[places] for name, field in shown.items()}


def evaluate_retrieval(
    encoder: PairEncoder,
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
            texts[code] = encoder.text_vectors(params, tokenizer.encode(spoken)), np.array(owners)
    scores = {}
    for mode in modes:
        images = encoder.image_vectors(params, len(records), seen(rows, mode))
        scores[mode] = {}
        for code, (vectors, owners) in texts.items():
            described = np.unique(owners)  # images without a text in this language do not take part
            image_to_text = recalls(images[described], vectors, described, owners)
            text_to_image = recalls(vectors, images, owners, np.arange(len(images)))
            scores[mode][code] = {f"IR@{k}": v for k, v in text_to_image.items()} | {
                f"TR@{k}": v for k, v in image_to_text.items()
            }
    return scores
