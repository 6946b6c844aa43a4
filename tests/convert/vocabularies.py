"""What must hold of a vocabulary that was cut, for the tests of it."""

from __future__ import annotations

import numpy as np
import tokenizers

from rc3_jax.convert.vocabulary import Cut
from rc3_jax.data.tokenizer import PAD_ID, Tokenizer, from_json

LENGTH = 8  # of the vocabularies that are cut: shorter than the texts
_LONG = 512


def ids_of(tokenizer: Tokenizer, texts) -> np.ndarray:
    """Of whole texts, with the vocabulary as a run stores it."""
    ids = from_json(tokenizer.to_json(), _LONG, tokenizer.clean).encode(texts)
    assert (ids[:, -1] == PAD_ID).all()
    return ids


def pieces_of(tokenizer: Tokenizer) -> list[str]:
    """By id, added tokens included."""
    backend = tokenizers.Tokenizer.from_str(tokenizer.to_json())
    return [backend.id_to_token(i) for i in range(tokenizer.vocab_size)]


def check(old: Tokenizer, cut: Cut) -> None:
    """What holds for every cut."""
    old_pieces = pieces_of(old)
    assert cut.kept.dtype == np.int32 and cut.counts.dtype == np.int64
    assert len(cut.kept) == len(cut.counts) == cut.tokenizer.vocab_size
    assert cut.old_size == old.vocab_size and cut.share == len(cut.kept) / old.vocab_size
    assert (np.diff(cut.kept) > 0).all()
    assert cut.kept[:4].tolist() == [0, 1, 2, 3] and cut.kept[-1] == old.vocab_size - 1
    assert pieces_of(cut.tokenizer) == [old_pieces[i] for i in cut.kept]
    assert cut.tokenizer.max_length == old.max_length


def check_exact(old: Tokenizer, cut: Cut, texts) -> None:
    """What holds where every piece that the texts use is kept."""
    check(old, cut)
    ids = ids_of(old, texts)
    assert np.array_equal(cut.kept[ids_of(cut.tokenizer, texts)], ids)
    counts = np.bincount(ids.ravel(), minlength=old.vocab_size)
    counts[[0, 1, 2]] = 0
    assert np.array_equal(counts[cut.kept], cut.counts) and counts.sum() == cut.counts.sum()
