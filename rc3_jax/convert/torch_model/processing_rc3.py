"""Texts, images and regions to the inputs of an RC³ model."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from PIL import Image, ImageOps
from transformers import BatchFeature, PreTrainedTokenizerBase, ProcessorMixin

# Pillow can open more, but some of it (EPS) runs other programs.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
PUNCTUATION = re.compile(r"[,.'!?\"()*#:;~\-/]")


class RC3Processor(ProcessorMixin):
    """The tokenizer of a model, and what is done to images and regions before it reads them.

    Attributes:
      image_size: side of the square that images are squashed to.
      image_mean, image_std: of each colour channel, 0 to 1.
      max_length: token ids of a text; longer texts are cut, shorter ones padded.
      regions, feature_size: places for regions, and numbers of a region's feature.
      max_words: if set, texts lose their case and most punctuation, and all further words.
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
        """The inputs of `RC3Model`; each kind may be left out.

        Args:
          text: one or several.
          images: one or several: Pillow images, paths, or uint8 arrays `[height, width, 3]`.
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
          ValueError: for arrays of other types or sizes, or numbers of inputs that differ.
        """
        inputs: dict[str, np.ndarray] = {}
        if text is not None:
            inputs["input_ids"] = self._encode([text] if isinstance(text, str) else list(text))
        if images is not None:
            several = isinstance(images, list | tuple) or getattr(images, "ndim", 3) == 4
            pixels = [self._pixels(image) for image in (images if several else [images])]
            inputs["pixel_values"] = np.stack(pixels)
        if regions is not None:
            rows = [regions] if isinstance(regions, Mapping) else list(regions)
            padded = [self._pad_regions(row or {}) for row in rows]
            inputs |= {name: np.stack([row[name] for row in padded]) for name in padded[0]}
        if len({len(rows) for rows in inputs.values()}) > 1:
            numbers = ", ".join(f"{len(rows)} {name}" for name, rows in inputs.items())
            raise ValueError(f"{numbers}: give as many texts, images and regions as one another")
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
        if self.max_words is not None:
            cleaned = [clean_caption(text, self.max_words) for text in texts]
            if "" in cleaned:
                raise ValueError(
                    f"text {texts[cleaned.index('')]!r} has no word once it is cleaned"
                )
            texts = cleaned
        ids = self.tokenizer(
            texts, padding="max_length", truncation=True, max_length=self.max_length
        )
        return np.array(ids["input_ids"], np.int64)

    def _pixels(self, image: Image.Image | str | os.PathLike | np.ndarray) -> np.ndarray:
        """Normalised colours, float32 `[3, image_size, image_size]`."""
        if isinstance(image, str | os.PathLike):
            with Image.open(image, formats=FORMATS) as opened:
                rgb = to_upright_rgb(opened)
        elif isinstance(image, Image.Image):
            rgb = to_upright_rgb(image)
        else:
            image = np.asarray(image)
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
                raise ValueError(
                    f"an image is {image.dtype} {list(image.shape)}; give a Pillow image, a path, "
                    "or uint8 [height, width, 3]"
                )
            rgb = Image.fromarray(image)
        rgb = rgb.resize((self.image_size, self.image_size), Image.Resampling.BICUBIC)
        colours = np.asarray(rgb).astype(np.float32) / np.float32(255)
        mean, std = np.array(self.image_mean, np.float32), np.array(self.image_std, np.float32)
        return ((colours - mean) / std).transpose(2, 0, 1)

    def _pad_regions(self, row: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Keeps the first `regions` regions and fills up with zeros."""
        if not self.regions:
            raise ValueError("this model has no ROI tower; leave the regions out")
        boxes = np.asarray(row.get("boxes", ()), np.float32).reshape(-1, 4)
        if boxes.size and not (0 <= boxes.min() and boxes.max() <= 1):
            raise ValueError("boxes are x1, y1, x2, y2 as fractions of their image, 0 to 1")
        features, count = row.get("features"), min(len(boxes), self.regions)
        padded = {
            "region_features": np.zeros((self.regions, self.feature_size), np.float32),
            "region_boxes": np.zeros((self.regions, 4), np.float32),
            "region_mask": np.arange(self.regions) < count,
            "has_features": np.asarray(features is not None),
        }
        padded["region_boxes"][:count] = boxes[:count]
        if features is not None:
            features = np.asarray(features, np.float32)
            if features.shape != (len(boxes), self.feature_size):
                raise ValueError(
                    f"features are {list(features.shape)}; for {len(boxes)} boxes they must be "
                    f"{[len(boxes), self.feature_size]}"
                )
            padded["region_features"][:count] = features[:count]
        return padded


def clean_caption(text: str, max_words: int) -> str:
    """A text in lower case without most punctuation, of at most `max_words` words."""
    bare = PUNCTUATION.sub(" ", text.lower()).replace("<person>", "person")
    return " ".join(bare.split()[:max_words])


def to_upright_rgb(image: Image.Image) -> Image.Image:
    """Converts images of any mode, turned as their EXIF data say, transparent parts on white."""
    with contextlib.suppress(Exception):  # damaged EXIF data around a sound picture
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits a pixel: convert() would clip, not scale
        grey = np.clip(np.asarray(image).astype(np.int64) >> 8, 0, 255)
        image = Image.fromarray(grey.astype(np.uint8))
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert("RGB")
