"""What the visio-textual vector z depends on (METHOD.md section 2, "Traps")."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from rc3_jax.data.tokenizer import PAD_ID
from rc3_jax.models.rc3 import RC3


def similarities(model: RC3, rows: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Similarities of each row, float32 `[batch]`.

    They are `proximity`, s(z^a, z^b); `other_text` and `other_image`, the same with another row's
    text or image in z^a; and `text_relevance`, s(t^a, t^b).

    Args:
      model: bound to its parameters.
      rows: those of `RC3.encode_visual` with `ids_a`, `ids_b` and `other`, for each row the
        number of the one whose text and image it is compared with.
    """
    visual, other = model.encode_visual(rows), rows["other"]
    ids_a, ids_b = rows["ids_a"], rows["ids_b"]

    def z(ids, tokens, view_mask):
        states, vector = model.encode_text(ids)
        mask = ids != PAD_ID
        return model.fused_vector(model.fusion(states, mask, tokens, view_mask), mask), vector

    z_a, text_a = z(ids_a, visual.tokens, visual.mask)
    z_b, text_b = z(ids_b, visual.tokens, visual.mask)
    other_text, _ = z(ids_a[other], visual.tokens, visual.mask)
    other_image, _ = z(ids_a, visual.tokens[other], visual.mask[other])
    pairs = {
        "proximity": (z_a, z_b),
        "other_text": (other_text, z_b),
        "other_image": (other_image, z_b),
        "text_relevance": (text_a, text_b),
    }
    return {name: jnp.sum(x * y, axis=-1) for name, (x, y) in pairs.items()}


def dependence_scores(
    values: Mapping[str, np.ndarray], relevance: np.ndarray | None
) -> dict[str, float]:
    """The three figures to watch, all of which must stay clear of 0.

    Args:
      values: what `similarities` returned for held-out weak rows.
      relevance: true relevance of each row, where it is known.

    Returns:
      `text_dependence`, `image_dependence`; `proximity_relevance`, the Spearman correlation
      of s(z^a, z^b) with the true relevance, and `proximity_text_relevance` with s(t^a, t^b).
    """
    proximity = np.asarray(values["proximity"], np.float64)
    scores = {
        "text_dependence": float(np.mean(proximity - values["other_text"])),
        "image_dependence": float(np.mean(proximity - values["other_image"])),
        "proximity_text_relevance": _spearman(proximity, values["text_relevance"]),
    }
    if relevance is not None:
        scores["proximity_relevance"] = _spearman(proximity, relevance)
    return scores


def _spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Rank correlation; 0 where one side is constant, since nothing then follows anything."""
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return 0.0
    return float(stats.spearmanr(x, y).statistic)
