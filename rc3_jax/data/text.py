"""One row's texts: which two are drawn, and which of their tokens are masked."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from rc3_jax.data.record import LanguagePair, Record
from rc3_jax.data.tokenizer import FRAME_IDS, SPECIAL_TOKENS

IGNORED = -1
"""Label of a position that pads a row's list of masked positions."""


def language_pairs(texts: Mapping[str, Sequence[str]]) -> list[LanguagePair]:
    """The pairs that a record's texts offer; that of a single language takes two texts in it."""
    if len(texts) == 1:
        return [(code, code) for code, in_language in texts.items() if len(in_language) > 1]
    return list(itertools.combinations(sorted(texts), 2))


def draw_texts(
    record: Record, pair: LanguagePair, rng: np.random.Generator
) -> tuple[tuple[str, str], tuple[str, str]]:
    """Two different (language, text) of a pair that the record offers, in random order."""
    if pair[0] == pair[1]:
        texts = record.texts[pair[0]]
        first, second = rng.choice(len(texts), size=2, replace=False)
        return (pair[0], texts[first]), (pair[1], texts[second])
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
