"""One row's texts: which two are drawn, and which of their tokens are masked."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np

from rc3_jax.data.record import BadRecord, Record, Source
from rc3_jax.data.tokenizer import FRAME_IDS, SPECIAL_TOKENS

LanguagePair = tuple[str, str]

IGNORED = -1
"""Label of a position that pads a row's list of masked positions."""


def pair_weights(source: Source, exponent: float) -> dict[LanguagePair, float]:
    """Weight of each language pair among those that a record offers (METHOD.md section 4).

    A pair that n records offer has weight n^(exponent - 1), so that rare ones are preferred. Every
    record comes once an epoch, so a record that offers a single pair gives it, common or not.
    """
    return {pair: count ** (exponent - 1) for pair, count in source.pair_counts.items()}


def draw_texts(
    record: Record, weights: Mapping[LanguagePair, float], rng: np.random.Generator
) -> tuple[tuple[str, str], tuple[str, str]]:
    """Two (language, text) of a record in random order.

    Of different languages where the record has several, else two texts of its one language.

    Raises:
      BadRecord: if the record has no two texts.
    """
    languages = sorted(record.texts)
    pairs = list(itertools.combinations(languages, 2))
    if not pairs:
        texts = record.texts[languages[0]] if languages else ()
        if len(texts) < 2:
            raise BadRecord(f"{record.where}: a row needs two texts; add one")
        first, second = rng.choice(len(texts), size=2, replace=False)
        return (languages[0], texts[first]), (languages[0], texts[second])
    chances = np.array([weights.get(pair, 1.0) for pair in pairs])
    pair = pairs[rng.choice(len(pairs), p=chances / chances.sum())]
    drawn = [(code, record.texts[code][rng.integers(len(record.texts[code]))]) for code in pair]
    return (drawn[0], drawn[1]) if rng.random() < 0.5 else (drawn[1], drawn[0])


def mask_tokens(
    ids: np.ndarray,
    vocab_size: int,
    rng: np.random.Generator,
    share: float = 0.4,
    most: int = 12,
    span_chance: float = 0.2,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Span masking for masked conditional language modelling (METHOD.md section 2, MCLM).

    From a random position on, with `span_chance` a span of 2 or 3 tokens is masked, else one
    token, until `share` of the tokens (at least one, at most `most`) are. Of these 80 % become
    `<mask>` (the last id), 10 % a random word, 10 % stay. `<s>` and `</s>` are never masked.

    Args:
      ids: int32 `[length]`, padded.

    Returns:
      The masked ids int32 `[length]`; the positions and the original ids of the masked tokens,
      int32 `[most]`, padded with position 0 and `IGNORED`.
    """
    inner = np.flatnonzero(~np.isin(ids, FRAME_IDS))
    maskable = set(inner.tolist())
    count = min(most, max(1, round(share * len(inner))), len(inner))
    chosen: dict[int, None] = {}
    for start in rng.permutation(inner):
        span = rng.integers(2, 4) if rng.random() < span_chance else 1
        chosen.update(dict.fromkeys(p for p in range(start, start + span) if p in maskable))
        if len(chosen) >= count:
            break
    picked = np.fromiter(chosen, np.int32, len(chosen))[:count]
    positions = np.zeros(most, np.int32)
    labels = np.full(most, IGNORED, np.int32)
    positions[:count], labels[:count] = picked, ids[picked]
    masked, mask_id = ids.copy(), vocab_size - 1
    fate = rng.random(count)
    words = rng.integers(len(SPECIAL_TOKENS), mask_id, count)
    masked[picked] = np.where(fate < 0.8, mask_id, np.where(fate < 0.9, words, ids[picked]))
    return masked, positions, labels
