"""Texts, images and regions to the inputs of an RC³ model."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from transformers import BatchFeature, PreTrainedTokenizerBase, ProcessorMixin

from .image_processing_rc3 import RC3ImageProcessor

PUNCTUATION = re.compile(r"[,.'!?\"()*#:;~\-/]")
INVISIBLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff]")
BLANK = frozenset("\u115f\u1160\u2800\u3164\uffa0\ufffc\ufffd")
"""Letters and symbols by their category that show nothing, or stand for what is lost."""
WORDS = frozenset(("Lu", "Ll", "Lt", "Lm", "Lo", "Nd", "Nl", "No", "So"))
MAX_CHARACTERS = 2000


class RC3Processor(ProcessorMixin):
    """The tokenizer of a model, and what is done to images and regions before it reads them.

    Attributes:
      image_size: side of the square that images are squashed to.
      image_mean, image_std: of each colour channel, 0 to 1.
      max_length: token ids of a text; longer texts are cut, shorter ones padded.
      regions, feature_size: places for regions, and numbers of a region's feature.
      max_words: if set, texts lose their case and most punctuation, and all further words.

    Raises:
      ValueError: for a tokenizer that does not frame a text with `<s>` and `</s>`.
    """

    attributes: ClassVar[list[str]] = ["tokenizer"]
    tokenizer_class = "AutoTokenizer"

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        image_size: int = 224,
        image_mean: Sequence[float] = (0.5, 0.5, 0.5),
        image_std: Sequence[float] = (0.5, 0.5, 0.5),
        max_length: int = 40,
        regions: int = 0,
        feature_size: int = 2048,
        max_words: int | None = None,
    ):
        super().__init__(tokenizer)
        words = tokenizer("a", add_special_tokens=False)["input_ids"]
        frame = [tokenizer.bos_token_id, *words, tokenizer.eos_token_id]
        if (found := tokenizer("a")["input_ids"]) != frame:
            raise ValueError(
                f"the tokenizer makes {found} of 'a', and the model reads {frame}; set the "
                "post_processor of tokenizer.json to <s> $A </s>"
            )
        self.image_size = image_size
        self.image_mean, self.image_std = list(image_mean), list(image_std)
        self.max_length, self.max_words = max_length, max_words
        self.regions, self.feature_size = regions, feature_size

    def __call__(
        self,
        text: str | Sequence[str] | None = None,
        images: Any = None,
        regions: Mapping[str, Any] | Sequence[Mapping[str, Any] | None] | None = None,
        return_tensors: str | None = "pt",
    ) -> BatchFeature:
        """The inputs of `RC3Model`; each kind may be left out, and there may be any number of texts.

        Args:
          text: one or several.
          images: one or several, see `RC3ImageProcessor`.
          regions: of one image or of several: `boxes` `[n, 4]`, x1, y1, x2, y2 as fractions of
            the upright image, and optionally `features` `[n, feature_size]`, the best regions
            first. None for an image without regions.
          return_tensors: "pt" for PyTorch tensors, "np" for arrays.

        Returns:
          Of what was given: `input_ids` int64 `[batch, max_length]`; `pixel_values` float32
          `[batch, 3, image_size, image_size]`; `region_features` float32
          `[batch, regions, feature_size]`, `region_boxes` float32 `[batch, regions, 4]`,
          `region_mask` bool `[batch, regions]` and `has_features` bool `[batch]`.

        Raises:
          ValueError: for texts without a word or of more than 2,000 characters, damaged images,
            arrays of other types or sizes, and other numbers of regions than of images.
        """
        inputs: dict[str, np.ndarray] = {}
        if text is not None:
            inputs["input_ids"] = self._encode([text] if isinstance(text, str) else list(text))
        if images is not None:
            prepare = RC3ImageProcessor(self.image_size, self.image_mean, self.image_std)
            inputs |= prepare(images, return_tensors="np")
        if regions is not None:
            rows = [regions] if isinstance(regions, Mapping) else list(regions)
            if not rows:
                raise ValueError("regions is empty; give those of each image, or leave it out")
            padded = [self._pad_regions(row or {}) for row in rows]
            inputs |= {name: np.stack([row[name] for row in padded]) for name in padded[0]}
        counts = {name: len(rows) for name, rows in inputs.items() if name != "input_ids"}
        if len(set(counts.values())) > 1:
            numbers = ", ".join(f"{count} {name}" for name, count in counts.items())
            raise ValueError(f"{numbers}: give regions of each image, None where it has none")
        return BatchFeature(inputs, tensor_type=return_tensors)

    def decode(self, ids: Any) -> str:
        """The text of the token ids of one text, without the special tokens."""
        return self.tokenizer.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )

    def batch_decode(self, ids: Any) -> list[str]:
        """The texts of rows of token ids, see `decode`."""
        return [self.decode(row) for row in ids]

    def _encode(self, texts: list[str]) -> np.ndarray:
        texts = [usable_text(text) for text in texts]
        if self.max_words is not None:
            texts = [clean_caption(text, self.max_words) for text in texts]
        ids = self.tokenizer(
            texts, padding="max_length", truncation=True, max_length=self.max_length
        )
        return np.array(ids["input_ids"], np.int64)

    def _pad_regions(self, row: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Keeps the first `regions` regions and fills up with zeros."""
        if not self.regions:
            raise ValueError("this model has no ROI tower; leave the regions out")
        boxes = np.asarray(row.get("boxes", ()), np.float32).reshape(-1, 4)
        inside = boxes.size == 0 or (0 <= boxes.min() and boxes.max() <= 1)
        if not inside or (boxes[:, 2:] <= boxes[:, :2]).any():
            raise ValueError(
                "boxes are x1, y1, x2, y2 as fractions of their image, 0 to 1, and have an area"
            )
        features, count = row.get("features"), min(len(boxes), self.regions)
        padded = {
            "region_features": np.zeros((self.regions, self.feature_size), np.float32),
            "region_boxes": np.zeros((self.regions, 4), np.float32),
            "region_mask": np.arange(self.regions) < count,
            "has_features": np.asarray(features is not None),
        }
        padded["region_boxes"][:count] = boxes[:count]
        if features is not None:
            with np.errstate(over="ignore"):
                features = np.asarray(features).astype(np.float32)
            if not np.isfinite(features).all():
                raise ValueError("features hold NaN, infinity or numbers that float32 lacks")
            if features.shape != (len(boxes), self.feature_size):
                raise ValueError(
                    f"features are {list(features.shape)}; for {len(boxes)} boxes they must be "
                    f"{[len(boxes), self.feature_size]}"
                )
            padded["region_features"][:count] = features[:count]
        return padded


def usable_text(text: str) -> str:
    """A text as training takes it in: NFC, stripped, without invisible control characters.

    Raises:
      ValueError: for a text without a letter, a digit or a picture character, for one longer than
        `MAX_CHARACTERS`, and for half of a surrogate pair.
    """
    text.encode()  # raises UnicodeEncodeError, which is a ValueError
    if len(text) > MAX_CHARACTERS:
        raise ValueError(
            f"a text of {len(text)} characters, more than {MAX_CHARACTERS}; shorten or split it"
        )
    text = INVISIBLE.sub(lambda found: " " if found[0].isspace() else "", text)
    text = unicodedata.normalize("NFC", text).strip()
    if not any(unicodedata.category(c) in WORDS and c not in BLANK for c in text):
        raise ValueError(f"an empty text ({text[:20]!r} has no words); write it, or leave it out")
    return text


def clean_caption(text: str, max_words: int) -> str:
    """A text in lower case without most punctuation, of at most `max_words` words."""
    bare = PUNCTUATION.sub(" ", text.lower()).replace("<person>", "person")
    return " ".join(bare.split()[:max_words])
