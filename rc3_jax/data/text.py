"""Texts: which are usable, which are drawn, how they are cleaned, and which tokens are masked."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

import numpy as np

from rc3_jax.data.kinds import LanguagePair
from rc3_jax.data.record import Record
from rc3_jax.data.tokenizer import BOS_ID, FRAME_IDS, PAD_ID, SPECIAL_TOKENS

IGNORED = -1
"""Label of a position that pads a row's list of masked positions."""
MAX_CHARACTERS = 2000
"""Longer texts are refused: they are no captions or sentences, and slow to tokenize."""
_INVISIBLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff]")
_BLANK = frozenset("\u115f\u1160\u2800\u3164\uffa0\ufffc\ufffd")
"""Letters and symbols by their category that show nothing, or stand for what is lost."""


def usable_text(text: str) -> str:
    """A text as every reader takes it in: NFC, stripped, without invisible control characters.

    Control characters that are white space become spaces; others, marks and overrides of the
    writing direction and byte order marks are removed.

    Raises:
      ValueError: for a text without a letter, a digit or a picture character, for one longer than
        `MAX_CHARACTERS`, and for half of a surrogate pair.
    """
    is_printable = text.isprintable()  # then nothing is invisible, or half of a surrogate pair
    if not is_printable:
        text.encode()  # raises UnicodeEncodeError, which is a ValueError
    if len(text) > MAX_CHARACTERS:
        raise ValueError(
            f"a text of {len(text)} characters, more than {MAX_CHARACTERS}; shorten or split it"
        )
    if not is_printable:
        text = _INVISIBLE.sub(lambda found: " " if found[0].isspace() else "", text)
    text = unicodedata.normalize("NFC", text).strip()
    if not (text[:1].isalnum() and text[0] not in _BLANK) and not any(map(_is_of_words, text)):
        raise ValueError(f"an empty text ({text[:20]!r} has no words); write it, or remove it")
    return text


def _is_of_words(character: str) -> bool:
    return unicodedata.category(character) in _WORDS and character not in _BLANK


_WORDS = frozenset(("Lu", "Ll", "Lt", "Lm", "Lo", "Nd", "Nl", "No", "So"))


def draw_texts(
    record: Record, pair: LanguagePair, rng: np.random.Generator
) -> tuple[tuple[str, str], ...]:
    """A (language, text) for each language of a pair that the record offers.

    Two are different texts, and in random order.
    """
    if len(pair) == 2 and pair[0] == pair[1]:
        texts = record.texts[pair[0]]
        first, second = rng.choice(len(texts), size=2, replace=False).tolist()
        return (pair[0], texts[first]), (pair[1], texts[second])
    drawn = tuple((code, draw(record.texts[code], rng)) for code in pair)
    return drawn if len(pair) == 1 or rng.random() < 0.5 else drawn[::-1]


def draw(texts: Sequence[str], rng: np.random.Generator) -> str:
    """One of the texts, all equally likely."""
    return texts[int(rng.integers(len(texts)))]


def clean_caption(text: str, max_words: int) -> str:
    """A text in lower case without most punctuation, as CCLM.md section 3.4 has it.

    Chinese and Japanese punctuation stays, and sentences without spaces count as one word.

    Returns:
      At most `max_words` words with single spaces between them; "" if nothing is left.
    """
    bare = _PUNCTUATION.sub(" ", text.lower()).replace("<person>", "person")
    return " ".join(bare.split()[:max_words])


_PUNCTUATION = re.compile(r"[,.'!?\"()*#:;~\-/]")


def mask_tokens(
    ids: np.ndarray,
    vocab_size: int,
    rng: np.random.Generator,
    share: float = 0.4,
    most: int = 12,
    span_chance: float = 0.2,
    mask_eos: bool = False,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Span masking for masked conditional language modelling (METHOD.md section 2, MCLM).

    From a random position on, with `span_chance` a span of 2 or 3 tokens is masked, else one
    token, until `share` of the tokens (at least one, at most `most`) are. Of these 80 % become
    `<mask>` (the last id), 10 % a random word, 10 % stay. `<s>` and `</s>` are never masked.

    Args:
      ids: int32 `[length]`, padded.
      mask_eos: as the published CCLM (CCLM.md section 2.4). `</s>` is masked like a word, the
        share is of the length with `<s>` and `</s>`, a random word is any id, and what is chosen
        beyond the count is dropped at random instead of at the last span's end.

    Returns:
      The masked ids int32 `[length]`; the positions and the original ids of the masked tokens,
      int32 `[most]`, padded with position 0 and `IGNORED`.
    """
    frame = (BOS_ID, PAD_ID) if mask_eos else FRAME_IDS
    inner = [place for place, token in enumerate(ids.tolist()) if token not in frame]
    maskable = set(inner)
    length = len(inner) + mask_eos  # of <s>, which is not maskable
    count = min(most, max(1, round(share * length)), len(inner))
    chosen: dict[int, None] = {}
    for start in rng.permutation(inner).tolist():
        if mask_eos and start in chosen:
            continue
        span = int(rng.integers(2, 4)) if rng.random() < span_chance else 1
        chosen.update((place, None) for place in range(start, start + span) if place in maskable)
        if len(chosen) >= count:
            break
    picked = np.fromiter(chosen, np.int32, len(chosen))
    picked = (rng.permutation(picked) if mask_eos else picked)[:count]
    positions = np.zeros(most, np.int32)
    labels = np.full(most, IGNORED, np.int32)
    positions[:count], labels[:count] = picked, ids[picked]
    masked, mask_id = ids.copy(), vocab_size - 1
    fate = rng.random(count)
    lowest, end = (0, vocab_size) if mask_eos else (len(SPECIAL_TOKENS), mask_id)
    words = rng.integers(lowest, end, count)
    masked[picked] = np.where(fate < 0.8, mask_id, np.where(fate < 0.9, words, ids[picked]))
    return masked, positions, labels
