"""XLM-R's vocabulary, and its word table, cut to the pieces that chosen texts need.

A Unigram vocabulary splits a word into the pieces whose scores add up to the most. Where only
pieces are left out that no text of the corpus uses, its texts keep their best split: every other
one lost pieces and can only score less, and the first of equal ones is still the first. An unknown
character scores 10 less than the lowest piece, so a piece of that score stays as well.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
import tokenizers

from rc3_jax.data.record import DataError
from rc3_jax.data.tokenizer import SPECIAL_TOKENS, Tokenizer, from_json

SPACE_PIECE = "▁"
"""What a word begins with, as a piece of its own."""
_BYTE_PIECE = re.compile("<0x[0-9A-F]{2}>")
_BATCH_CHARACTERS = 2**20


class Cut(NamedTuple):
    """A smaller vocabulary.

    Attributes:
      tokenizer: with new ids, and with length and cleaning of the old one.
      kept: int32 `[new_vocab]`, the old id of each new one, ascending; the last is `<mask>`.
      counts: int64 `[new_vocab]`, how often the texts use each piece, without the `<s>` and
        `</s>` that frame them.
      old_size: number of ids of the old vocabulary.
    """

    tokenizer: Tokenizer
    kept: np.ndarray
    counts: np.ndarray
    old_size: int

    @property
    def share(self) -> float:
        """Of the old pieces that are kept, in (0, 1]."""
        return len(self.kept) / self.old_size


def cut_vocabulary(
    tokenizer: Tokenizer,
    texts: Iterable[str],
    min_count: int = 1,
    progress: Callable[[int], None] | None = None,
) -> Cut:
    """Leaves out the pieces that texts do not need.

    Kept are the special and all other added tokens, the pieces that the texts, in full length,
    use at least `min_count` times, and of each character that they hold the piece that is this
    character alone: what is left out is spelled, as are new words, and does not become `<unk>`
    (characters that only longer pieces hold, which SentencePiece does not make, may).

    With `min_count` 1 every one of the texts keeps its pieces exactly, and cutting by the same
    texts again changes nothing. Above 1 neither holds: words of rare pieces are split anew.

    Equal scores are compared as a run does that has stored the vocabulary and read it again:
    reading `tokenizer.json` may change a score's last bit, once.

    Args:
      tokenizer: of type Unigram, such as XLM-R's.
      texts: encoded in batches of about a million characters, so they may be any number.
      min_count: at least 1.
      progress: called after every batch with the number of texts done so far.

    Raises:
      DataError: another type of vocabulary, `min_count` below 1, or texts without any piece.
    """
    if min_count < 1:
        raise DataError(f"min_count={min_count}: pieces that no text uses go; give 1 or more")
    backend = tokenizers.Tokenizer.from_str(tokenizer.to_json())
    backend.no_truncation()
    backend.no_padding()
    layout = json.loads(backend.to_str())
    kind = layout["model"]["type"]
    if kind != "Unigram":
        raise DataError(
            f"the vocabulary is of type {kind}, and only Unigram ones can be cut, such as that of "
            "FacebookAI/xlm-roberta-base; keep this one whole: choose no languages"
        )
    counts = _count(backend, map(tokenizer.clean, texts), tokenizer.vocab_size, progress)
    if not counts.any():
        raise DataError("the vocabulary cannot be cut: the corpus holds no text; name other files")
    kept = np.flatnonzero(_is_kept(layout, counts, min_count)).astype(np.int32)
    _renumber(layout, kept, len(counts))
    smaller = from_json(json.dumps(layout), tokenizer.max_length, tokenizer.cleaning)
    return Cut(smaller, kept, counts[kept], tokenizer.vocab_size)


def cut_rows(table: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """The rows of the kept pieces, bit for bit.

    Args:
      table: `[old_vocab, width]` word embeddings or `[old_vocab]` biases, of any type.
      kept: int32 `[new_vocab]`, as in `Cut`.

    Returns:
      A copy, `[new_vocab, width]` or `[new_vocab]`, of the type of `table`.

    Raises:
      DataError: the table has more or less rows than the old vocabulary has pieces.
    """
    size = int(kept[-1]) + 1  # <mask> is the last piece, and always kept
    if len(table) > size:
        raise DataError(
            f"the word table {table.shape} has {len(table)} rows, {len(table) - size} more than "
            f"the vocabulary has pieces; if these are padding at the end, cut table[:{size}], "
            "else take the vocabulary that the table was trained with"
        )
    if len(table) < size:
        raise DataError(
            f"the word table {table.shape} has {len(table)} rows, {size - len(table)} less than "
            "the vocabulary has pieces; take the vocabulary that the table was trained with"
        )
    return table[kept]


def describe(cut: Cut, width: int) -> str:
    """One line for the report: pieces kept, and sizes of a word table of this width."""
    old, new = (size * width / 1e6 for size in (cut.old_size, len(cut.kept)))
    return (
        f"kept {len(cut.kept):,} of {cut.old_size:,} pieces ({100 * cut.share:.1f} %): "
        f"word table from {old:.1f} to {new:.1f} million parameters"
    )


def _count(
    backend: tokenizers.Tokenizer,
    texts: Iterable[str],
    vocab_size: int,
    progress: Callable[[int], None] | None,
) -> np.ndarray:
    """How often each id occurs, int64 `[vocab_size]`."""
    counts = np.zeros(vocab_size, np.int64)
    done = 0
    for batch in _batches(texts):
        encodings = backend.encode_batch_fast(batch, add_special_tokens=False)
        ids = itertools.chain.from_iterable(encoding.ids for encoding in encodings)
        counts += np.bincount(np.fromiter(ids, np.int64), minlength=vocab_size)
        done += len(batch)
        if progress:
            progress(done)
    return counts


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    """Texts in lists of about equally many characters, as a text may have a million of them."""
    batch, characters = [], 0
    for text in texts:
        batch.append(text)
        characters += len(text) + 1  # empty ones fill a list too
        if characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _is_kept(layout: dict, counts: np.ndarray, min_count: int) -> np.ndarray:
    """Bool `[old_vocab]`; `layout` is the content of `tokenizer.json`."""
    model = layout["model"]
    pieces = [piece for piece, _ in model["vocab"]]
    scores = np.array([score for _, score in model["vocab"]])
    keep = counts >= min_count
    keep[: len(SPECIAL_TOKENS)] = keep[-1] = True  # also where these are no added tokens
    keep[[token["id"] for token in layout["added_tokens"]]] = True
    keep[[holder[i] for holder, i in _places_of_ids(layout)]] = True

    # A character with a piece of its own is never unknown, so it occurs in a piece that is used,
    # and the texts need not be gone through for it.
    is_byte = _BYTE_PIECE.fullmatch if model["byte_fallback"] else lambda piece: False
    used = (pieces[i] for i in np.flatnonzero(counts[: len(pieces)]) if i != model["unk_id"])
    characters = set(SPACE_PIECE).union(*(piece for piece in used if not is_byte(piece)))
    keep[[i for i, piece in enumerate(pieces) if piece in characters or is_byte(piece)]] = True
    lowest = np.flatnonzero(scores == scores.min())
    if not keep[lowest].any():
        keep[lowest[0]] = True
    return keep


def _renumber(layout: dict, kept: np.ndarray, old_size: int) -> None:
    """Leaves out what is not kept, and gives what is its new id."""
    new_ids = np.full(old_size, -1)
    new_ids[kept] = np.arange(len(kept))
    for holder, i in _places_of_ids(layout):
        holder[i] = int(new_ids[holder[i]])
    for token in layout["added_tokens"]:
        token["id"] = int(new_ids[token["id"]])
    pieces = layout["model"]["vocab"]
    layout["model"]["vocab"] = [pieces[i] for i in kept if i < len(pieces)]


def _places_of_ids(layout: dict) -> Iterator[tuple[dict | list, str | int]]:
    """Where ids stand in `tokenizer.json` beside the pieces and added tokens: `holder[i]`."""
    if layout["model"]["unk_id"] is not None:
        yield layout["model"], "unk_id"
    processors = [layout["post_processor"]]
    for processor in processors:
        if processor is None:
            continue
        processors.extend(processor.get("processors", ()))  # of a sequence
        for token in processor.get("special_tokens", {}).values():  # of a template
            for i in range(len(token["ids"])):
                yield token["ids"], i
        for end in ("sep", "cls"):  # of BERT and RoBERTa: [token, id]
            if end in processor:
                yield processor[end], 1
