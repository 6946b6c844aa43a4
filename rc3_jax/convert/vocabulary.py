"""XLM-R's vocabulary, and its word table, cut to the pieces that chosen texts need.

A Unigram vocabulary splits a word into the pieces with the highest sum of scores. If only pieces go
that no text of the corpus uses, the best split of every text stays the best and stays the first
among equals. An unknown character scores 10 less than the lowest piece, so one piece of that score
must stay as well.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import tokenizers

from rc3_jax.data.record import DataError
from rc3_jax.data.tokenizer import SPECIAL_TOKENS, Tokenizer, from_json

SPACE_PIECE = "▁"
"""What a word begins with, as a piece of its own."""
BATCH = 1000
"""Texts that are encoded at once."""


class Cut(NamedTuple):
    """A smaller vocabulary.

    Attributes:
      tokenizer: with new ids, and with the length and cleaning of the old one.
      kept: int32 `[new_vocab]`, the old id of each new one, ascending; the last is `<mask>`.
      old_size: number of ids of the old vocabulary.
    """

    tokenizer: Tokenizer
    kept: np.ndarray
    old_size: int


def cut_vocabulary(tokenizer: Tokenizer, texts: Iterable[str], min_count: int = 1) -> Cut:
    """Leaves out the pieces that texts do not need.

    Kept are all special and added tokens, the pieces that the texts, in full length, use at least
    `min_count` times, and each of their characters as a piece of its own, so that rare and new
    words are spelled and do not become `<unk>`. With `min_count=1` every one of the texts keeps its
    pieces exactly, and cutting by the same texts again changes nothing.

    Reading `tokenizer.json` may change a score's last bit, once; scores are therefore compared as a
    run does that has stored the vocabulary and read it again.

    Args:
      tokenizer: of type Unigram, such as XLM-R's.
      texts: any number of them.

    Raises:
      DataError: for another type of vocabulary, for `min_count` below 1, and if the texts use no
        piece.
    """
    if min_count < 1:
        raise DataError(f"min_count={min_count} must be at least 1")
    backend = tokenizers.Tokenizer.from_str(tokenizer.to_json())
    backend.no_truncation()
    backend.no_padding()
    layout = json.loads(backend.to_str())
    if (kind := layout["model"]["type"]) != "Unigram":
        raise DataError(
            f"the vocabulary is of type {kind}, and only Unigram ones such as XLM-R's can be cut; "
            "keep this one whole: leave out --corpus and --languages"
        )
    counts = np.zeros(tokenizer.vocab_size, np.int64)
    cleaned = map(tokenizer.clean, texts)
    while batch := list(itertools.islice(cleaned, BATCH)):
        for encoding in backend.encode_batch_fast(batch, add_special_tokens=False):
            np.add.at(counts, encoding.ids, 1)
    if not counts.any():
        raise DataError("the vocabulary cannot be cut: the corpus holds no text; name other files")
    kept = np.flatnonzero(_is_kept(layout, counts, min_count)).astype(np.int32)
    _renumber(layout, kept)
    smaller = from_json(json.dumps(layout), tokenizer.max_length, tokenizer.cleaning)
    return Cut(smaller, kept, tokenizer.vocab_size)


def cut_rows(table: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """The rows of the kept pieces, bit for bit.

    Args:
      table: `[old_vocab, width]` word embeddings or `[old_vocab]` biases, of any type.
      kept: int32 `[new_vocab]`, as in `Cut`.

    Returns:
      A copy, `[new_vocab, width]` or `[new_vocab]`, of the table's type.

    Raises:
      DataError: if the table does not have one row for each piece of the old vocabulary.
    """
    size = int(kept[-1]) + 1  # <mask> is the last piece, and always kept
    if len(table) != size:
        raise DataError(
            f"the word table has {len(table)} rows and the vocabulary {size} pieces; take the "
            "vocabulary that the table was trained with"
        )
    return table[kept]


def describe(cut: Cut, width: int) -> str:
    """One line about the pieces kept, and the sizes of a word table of this width."""
    old, new = cut.old_size, len(cut.kept)
    return (
        f"kept {new:,} of {old:,} pieces ({100 * new / old:.1f} %): word table from "
        f"{old * width / 1e6:.1f} to {new * width / 1e6:.1f} million parameters"
    )


def _is_kept(layout: dict[str, Any], counts: np.ndarray, min_count: int) -> np.ndarray:
    """Bool `[old_vocab]`; `layout` is the content of `tokenizer.json`."""
    model = layout["model"]
    pieces = [piece for piece, _ in model["vocab"]]
    scores = np.array([score for _, score in model["vocab"]])
    keep = counts >= min_count
    keep[: len(SPECIAL_TOKENS)] = keep[-1] = True
    keep[[token["id"] for token in layout["added_tokens"]]] = True
    if model["unk_id"] is not None:
        keep[model["unk_id"]] = True
    # A character with a piece of its own is never unknown, so it occurs in a piece that is used.
    used = (pieces[i] for i in np.flatnonzero(counts[: len(pieces)]))
    characters = set(SPACE_PIECE).union(*used)
    for i, piece in enumerate(pieces):
        if piece in characters or (model["byte_fallback"] and piece.startswith("<0x")):
            keep[i] = True
    lowest = np.flatnonzero(scores == scores.min())
    if not keep[lowest].any():
        keep[lowest[0]] = True
    return keep


def _renumber(layout: dict[str, Any], kept: np.ndarray) -> None:
    """Leaves out other pieces. The special tokens, which frame a text, keep their ids 0 to 3."""
    new_ids = {int(old): new for new, old in enumerate(kept)}
    layout["model"]["unk_id"] = new_ids.get(layout["model"]["unk_id"])
    for token in layout["added_tokens"]:
        token["id"] = new_ids[token["id"]]
    pieces = layout["model"]["vocab"]
    layout["model"]["vocab"] = [pieces[i] for i in kept if i < len(pieces)]
