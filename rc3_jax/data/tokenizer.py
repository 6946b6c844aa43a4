"""Texts to token ids: XLM-R's vocabulary, or a Unigram one trained on the run's captions."""

from __future__ import annotations

import hashlib
import itertools
import json
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import tokenizers
from absl import logging
from huggingface_hub import try_to_load_from_cache
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from rc3_jax.data.record import DataError
from rc3_jax.paths import as_path, cache_folder

SPECIAL_TOKENS = ("<s>", "<pad>", "</s>", "<unk>")
"""XLM-R's special tokens in the order of their ids 0 to 3; `<mask>` is the last id."""
FRAME_IDS = (0, 1, 2)
"""`<s>`, `<pad>`, `</s>`: what frames a text."""
BOS_ID, EOS_ID = 0, 2
PAD_ID = 1
"""Padding; XLM-R counts positions from the next number on."""
FILE_NAME = "tokenizer.json"


class Tokenizer:
    """Encodes texts as XLM-R does: `<s> ... </s>`, padded with id 1.

    Attributes:
      vocab_size: number of ids; the last is `<mask>`.
      max_length: number of ids of a text.
      cleaning: what every text goes through first, or None.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        max_length: int,
        clean: Callable[[str], str] | None = None,
    ):
        """`clean` becomes `cleaning`; it may be `clean_caption`.

        Raises:
          DataError: unless special tokens have XLM-R's ids, and `<s>` and `</s>` frame a text.
        """
        ids = [backend.token_to_id(token) for token in SPECIAL_TOKENS]
        self.vocab_size = backend.get_vocab_size()
        if ids != [0, 1, 2, 3] or backend.token_to_id("<mask>") != self.vocab_size - 1:
            raise DataError(
                f"the tokenizer's special tokens {SPECIAL_TOKENS} have the ids {ids}, and <mask> "
                f"{backend.token_to_id('<mask>')}; XLM-R's are 0 to 3 and the last"
            )
        backend.no_truncation()
        backend.no_padding()
        words = backend.encode("a", add_special_tokens=False).ids
        if (framed := backend.encode("a").ids) != [BOS_ID, *words, EOS_ID]:
            raise DataError(
                f"the tokenizer makes {framed} of the ids {words} of 'a', and XLM-R frames a text "
                f"with {BOS_ID} and {EOS_ID}; set its post_processor to <s> $A </s>"
            )
        backend.enable_truncation(max_length)
        backend.enable_padding(length=max_length, pad_id=PAD_ID, pad_token="<pad>")
        self.max_length = max_length
        self._backend, self.cleaning = backend, clean

    def with_length(self, max_length: int) -> Tokenizer:
        """The same vocabulary for texts of another length."""
        if max_length == self.max_length:
            return self
        return from_json(self.to_json(), max_length, self.cleaning)

    def clean(self, text: str) -> str:
        """The text as it is encoded; may be empty."""
        return self.cleaning(text) if self.cleaning else text

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Token ids, int32 `[len(texts), max_length]`."""
        # One by one: rows are made in threads already, and a batch would start its own.
        ids = [self._backend.encode(self.clean(text)).ids for text in texts]
        return np.array(ids, np.int32)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, without the special tokens."""
        return self._backend.decode([int(i) for i in ids])

    def to_json(self) -> str:
        """The vocabulary and its rules, as `tokenizer.json` holds them."""
        return self._backend.to_str()


def from_json(text: str, max_length: int, clean: Callable[[str], str] | None = None) -> Tokenizer:
    """The tokenizer that `Tokenizer.to_json` wrote; `clean` is not stored with it."""
    return Tokenizer(tokenizers.Tokenizer.from_str(text), max_length, clean)


def load_tokenizer(path: str, max_length: int) -> Tokenizer:
    """A stored vocabulary.

    Args:
      path: a `tokenizer.json`, a SentencePiece `.model`, a folder that holds either, or a
        model's name in the Hugging Face cache such as `FacebookAI/xlm-roberta-base`.

    Raises:
      DataError: if nothing usable is there, with the remedy.
    """
    place = as_path(path, "data.tokenizer.path").expanduser()
    try:
        if place.is_dir() and (place / FILE_NAME).exists():
            place = place / FILE_NAME
        if place.suffix == ".json":
            return from_json(place.read_text(encoding="utf-8"), max_length)
        if place.suffix == ".model":
            with tempfile.TemporaryDirectory() as folder:
                shutil.copy(place, pathlib.Path(folder) / "sentencepiece.bpe.model")
                return _from_hugging_face(folder, max_length)
        if not place.is_dir() and isinstance(file := try_to_load_from_cache(path, FILE_NAME), str):
            return Tokenizer(tokenizers.Tokenizer.from_file(file), max_length)
        return _from_hugging_face(str(place) if place.is_dir() else path, max_length)
    except Exception as error:  # the libraries raise bare Exceptions for unreadable files
        raise DataError(
            f"data.tokenizer.path={path!r} holds no XLM-R vocabulary ({error}); give a "
            "tokenizer.json, a sentencepiece.bpe.model, a folder with one of them, or the name "
            "of a model already in the Hugging Face cache"
        ) from error


def _from_hugging_face(name: str, max_length: int) -> Tokenizer:
    from transformers import XLMRobertaTokenizer

    loaded = XLMRobertaTokenizer.from_pretrained(name, local_files_only=True)
    if len(loaded) <= len(SPECIAL_TOKENS) + 1:
        raise DataError("no model's files are there, or their vocabulary is empty")
    return Tokenizer(loaded.backend_tokenizer, max_length)


_RECIPE = 1
"""Increment whenever `train_tokenizer` produces different vocabularies."""
_TWIN = "\ue000"
"""The trainer takes as pieces only what occurs in two different words, so that the most common
words could not become pieces; each word therefore gets a twin with this private character."""
_SCORE_STEP = 1e-4
"""The trainer gives the lowest scores, this far apart, to characters that it learned none for, in
an order that differs from run to run."""


def _settled(backend: tokenizers.Tokenizer) -> models.Unigram:
    """The trained pieces without twins, with the same scores and ids whenever they are trained."""
    pieces = json.loads(backend.to_str())["model"]["vocab"]
    special, learned = pieces[: len(SPECIAL_TOKENS)], pieces[len(SPECIAL_TOKENS) :]
    lowest = min(score for _, score in learned)
    characters = sum(len(piece) == 1 for piece, _ in learned)
    unlearned = lowest + characters * _SCORE_STEP
    scores = {
        piece: round(lowest if len(piece) == 1 and score < unlearned else score, 6)
        for piece, score in learned
        if _TWIN not in piece
    }
    ordered = sorted(scores.items(), key=lambda item: (-item[1], item[0]))
    return models.Unigram([*map(tuple, special), *ordered], unk_id=3)


def find_or_train_tokenizer(texts: Iterable[str], vocab_size: int, max_length: int) -> Tokenizer:
    """What `train_tokenizer` gives, from the user's cache folder where it was trained before.

    Raises:
      DataError: see `train_tokenizer`.
    """
    texts = list(texts)
    fingerprint = hashlib.sha256(json.dumps([tokenizers.__version__, _RECIPE, vocab_size]).encode())
    for text in texts:
        fingerprint.update(json.dumps(text).encode())
    file = cache_folder("vocabularies") / f"{fingerprint.hexdigest()}.json"
    if file.is_file():
        stored = file.read_text(encoding="utf-8")
        try:
            return from_json(stored, max_length)
        except Exception as error:  # noqa: BLE001 - the library raises nothing more specific
            logging.warning("%s is damaged and made anew: %s", file, error)
    trained = train_tokenizer(texts, vocab_size, max_length)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=file.parent) as folder:
            partial = pathlib.Path(folder) / file.name
            partial.write_text(trained.to_json(), encoding="utf-8")
            partial.replace(file)
    except OSError as error:
        logging.warning("the vocabulary cannot be kept for later runs: %s", error)
    return trained


def train_tokenizer(texts: Iterable[str], vocab_size: int, max_length: int) -> Tokenizer:
    """A Unigram vocabulary of at most `vocab_size` pieces with XLM-R's special-token ids.

    Raises:
      DataError: if there is no text, or `vocab_size` is less than the number of characters.
    """
    texts = list(texts)
    if not any(text.strip() for text in texts):
        raise DataError("there are no captions to train a tokenizer on; check data.sources")
    backend = tokenizers.Tokenizer(models.Unigram())
    backend.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Replace(tokenizers.Regex(r"\s+"), " ")]
    )
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation("isolated")]
    )
    backend.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=vocab_size - 1,
        special_tokens=list(SPECIAL_TOKENS),
        unk_token="<unk>",
        show_progress=False,
    )
    words = dict.fromkeys(
        word
        for text in texts
        for word, _ in backend.pre_tokenizer.pre_tokenize_str(
            backend.normalizer.normalize_str(text)
        )
    )
    twins = (word.replace("▁", " ") + _TWIN for word in words)
    try:
        backend.train_from_iterator(itertools.chain(texts, twins), trainer)
    except Exception as error:  # the trainer raises nothing more specific
        raise DataError(
            f"data.tokenizer.vocab_size={vocab_size} gives no vocabulary ({error}); make it larger"
        ) from error
    backend.model = _settled(backend)
    backend.add_special_tokens(["<mask>"])
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return Tokenizer(backend, max_length)
