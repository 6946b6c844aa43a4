"""Image and text retrieval by the contrastive vectors: recall at 1, 5 and 10 per language."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Int

from rc3_jax.data.example import evaluation_row, stacked
from rc3_jax.data.record import Record
from rc3_jax.data.tokenizer import Tokenizer
from rc3_jax.evaluation.pair_encoder import PairEncoder
from rc3_jax.evaluation.ranking import rank_recalls, ranks_both_ways

MODES = {"both": (True, True), "patches": (True, False), "regions": (False, True)}
"""Which visual parts a mode uses: (patches, regions)."""


def visual_rows(records: Sequence[Record], config) -> dict[str, np.ndarray]:
    """The visual fields of all records, stacked."""
    return stacked([evaluation_row(record, config) for record in records])


def shown(rows: Mapping[str, np.ndarray], mode: str) -> dict[str, np.ndarray]:
    """Visual fields, of one image or stacked, as `mode` shows them."""
    found = dict(rows)
    for name, used in zip(("use_patches", "use_regions"), MODES[mode], strict=True):
        if name in rows:
            found[name] = np.full_like(rows[name], used)
    return found


def seen(rows: Mapping[str, np.ndarray], mode: str) -> Callable[[np.ndarray], dict]:
    """A function from places to the visual fields of those images, as `mode` shows them.

    Args:
      rows: `visual_rows` of all images.
    """
    fields = shown(rows, mode)
    return lambda places: {name: field[places] for name, field in fields.items()}


def served_modes(rows: Mapping[str, np.ndarray], config) -> list[str]:
    """Those of `config.evaluation.modes` that images can serve.

    Left out are `both` where none has regions, and `regions` where not all do.

    Args:
      rows: `visual_rows` of the images.
    """
    has_regions = rows["region_mask"].any(axis=1) if "region_mask" in rows else np.zeros(1, bool)
    serves = {"patches": True, "both": has_regions.any(), "regions": has_regions.all()}
    return [mode for mode in config.evaluation.modes if serves[mode]]


def spoken_texts(
    records: Sequence[Record], config
) -> dict[str, tuple[list[str], Int[np.ndarray, " texts"]]]:
    """Language → its texts, and the place of the record that each is about.

    Languages are those of `config.evaluation.languages`, or all, as far as there are texts.
    """
    found = {}
    languages = sorted({code for record in records for code in record.texts})
    for code in config.evaluation.languages or languages:
        owners = [i for i, record in enumerate(records) for _ in record.texts.get(code, ())]
        if owners:
            spoken = [text for record in records for text in record.texts.get(code, ())]
            found[code] = spoken, np.array(owners)
    return found


Retrieval = dict[str, dict[str, dict[str, float]]]
"""Mode → language → name of a score → its value, such as `IR@1` ... `TR@10`."""


def evaluate_retrieval(
    encoder: PairEncoder,
    params,
    records: Sequence[Record],
    rows: Mapping[str, np.ndarray],
    tokenizer: Tokenizer,
    config,
    parts: Mapping[str, range] | None = None,
) -> dict[str, Retrieval]:
    """Recall on held-out images, of all and of some of them alone.

    IR ranks all images for a text, TR all texts of the language for an image that has one.

    Args:
      rows: `visual_rows` of the records.
      parts: name → consecutive records that are searched alone too.

    Returns:
      `""` for all records, and the names of the parts → recalls in the `served_modes`.
    """
    texts = {
        code: (encoder.text_vectors(params, tokenizer.encode(spoken)), owners)
        for code, (spoken, owners) in spoken_texts(records, config).items()
    }
    every = {"": range(len(records)), **(parts or {})}
    scores: dict[str, Retrieval] = {name: {} for name in every}
    for mode in served_modes(rows, config):
        images = encoder.image_vectors(params, len(records), seen(rows, mode))
        for name, part in every.items():
            found = {
                code: _recalls(images, vectors, owners, part)
                for code, (vectors, owners) in texts.items()
                if np.isin(owners, part).any()
            }
            scores[name][mode] = found
    return scores


def _recalls(
    images: np.ndarray, vectors: np.ndarray, owners: np.ndarray, part: range
) -> dict[str, float]:
    """The recalls of consecutive images and of the texts about them, of one language."""
    chosen = (owners >= part.start) & (owners < part.stop)
    described_by = owners[chosen] - part.start
    found = ranks_both_ways(images[part.start : part.stop], vectors[chosen], described_by)
    described = found.image_to_text[np.unique(described_by)]
    return rank_recalls(found._replace(image_to_text=described))
