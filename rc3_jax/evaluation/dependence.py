"""What the visio-textual vector z depends on (METHOD.md section 2, "Traps")."""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from rc3_jax.data.tokenizer import PAD_ID
from rc3_jax.models.rc3 import RC3
from rc3_jax.objectives.relevance import debiased


def similarities(model: RC3, rows: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Similarities of each row, float32 `[batch]`.

    They are `proximity`, s(z^a, z^b); `other_text` and `other_image`, the same with another row's
    text or image in z^a. With them come `text_a` and `text_b`, the vectors of the texts.

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
    }
    found = {name: jnp.sum(x * y, axis=-1) for name, (x, y) in pairs.items()}
    return found | {"text_a": text_a, "text_b": text_b}


def text_relevance(
    text_a: Float[np.ndarray, "rows size"], text_b: Float[np.ndarray, "rows size"], debias: bool
) -> Float[np.ndarray, " rows"]:
    """The relevance of the texts of each row, see `objective.debias_relevance`."""
    if debias:
        vectors = debiased(jnp.asarray(text_a), jnp.asarray(text_b))
        text_a, text_b = map(np.asarray, vectors)
    return np.sum(text_a * text_b, axis=1)


def dependence_scores(
    values: Mapping[str, np.ndarray],
    relevance: np.ndarray | None,
    lengths: np.ndarray | None = None,
) -> dict[str, float]:
    """The figures to watch on held-out weak rows, and those that they are judged by.

    `text_dependence`, `image_dependence` and `proximity_relevance` must stay clear of 0. The
    regularizer makes the proximity follow the text relevance rho, here that of the model's own text
    tower, whatever `objective.relevance` is. Where the true relevance is known,
    `relevance_spearman` says what rho is worth: it must be above `length_spearman`, what the length of
    the shorter text alone gives, since short texts state few facts to share.

    Args:
      values: what `similarities` returned for the rows, and their `text_relevance`.
      relevance: true relevance of each row in [0, 1], where it is known.
      lengths: of the shorter text of each row, see `shorter_lengths`.

    Returns:
      `text_dependence`, `image_dependence`, and the Spearman correlation of s(z^a, z^b) with rho,
      `proximity_text_relevance`. Where the true relevance is known, also its Spearman correlation
      with s(z^a, z^b), `proximity_relevance`, with rho, `relevance_spearman`, and with the lengths,
      `length_spearman`; and `unrelated_relevance`, the mean of rho where the true relevance is 0, if
      there are such rows.
    """
    proximity = np.asarray(values["proximity"], np.float64)
    scores = {
        "text_dependence": float(np.mean(proximity - values["other_text"])),
        "image_dependence": float(np.mean(proximity - values["other_image"])),
        "proximity_text_relevance": _spearman(proximity, values["text_relevance"]),
    }
    if relevance is not None:
        rho, unrelated = np.asarray(values["text_relevance"], np.float64), relevance == 0
        scores["proximity_relevance"] = _spearman(proximity, relevance)
        scores["relevance_spearman"] = _spearman(rho, relevance)
        if lengths is not None:
            scores["length_spearman"] = _spearman(lengths, relevance)
        if unrelated.any():
            scores["unrelated_relevance"] = float(rho[unrelated].mean())
    return scores


def shorter_lengths(rows: Sequence[Sequence[tuple[str, str]]]) -> np.ndarray:
    """The length of the shorter text of each row, float64 `[rows]`.

    It is in characters, divided by the mean of the rows' texts in its language: languages write the
    same facts in texts of different lengths.

    Args:
      rows: the (language, text) pairs of each row.
    """
    lengths = collections.defaultdict(list)
    for code, text in (pair for row in rows for pair in row):
        lengths[code].append(len(text))
    means = {code: np.mean(of_language) for code, of_language in lengths.items()}
    return np.array([min(len(text) / means[code] for code, text in row) for row in rows])


def _spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Rank correlation; 0 where one side is constant, since nothing then follows anything."""
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return 0.0
    from scipy import stats  # slow to import

    return float(stats.spearmanr(x, y).statistic)
