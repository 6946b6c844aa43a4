"""Settings of a run's data, `config.data`."""

from __future__ import annotations

from typing import Annotated, Literal

import pydantic
from pydantic import Field

from rc3_jax.data.sources import SourceSettings
from rc3_jax.settings import PositiveFraction, Settings


class ImageSettings(Settings):
    """How training changes images."""

    crop_scale: tuple[PositiveFraction, PositiveFraction] = (0.5, 1.0)
    """Least and largest share of an image's area that a random crop keeps."""
    jitter: float = Field(0.2, ge=0, le=1)
    """Brightness, contrast and saturation are multiplied by factors within 1 ± jitter."""
    flip: bool = True
    """Mirrors half of the images, except where a text speaks of left or right."""
    rand_augment: tuple[pydantic.NonNegativeInt, Annotated[float, Field(ge=0, le=10)]] = (0, 0)
    """Number of further changes to an image, and their strength up to 10."""

    @pydantic.model_validator(mode="after")
    def _check(self):
        if not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise ValueError(f"crop_scale={self.crop_scale}: give 0 < least <= largest <= 1")
        return self


class RegionSettings(Settings):
    """Rows of kind region."""

    per_image: int = Field(5, gt=0)
    """Texts of each image."""


class TokenizerSettings(Settings):
    """The vocabulary: a stored one, or one trained on the run's texts."""

    path: str | None = None
    """File, folder or name of a cached model; None trains a vocabulary."""
    vocab_size: int = Field(8000, gt=0)
    """Pieces of a trained vocabulary, at most."""
    texts: int = Field(200_000, gt=0)
    """Texts that it is trained on, at most."""


class DataSettings(Settings):
    """A run's data: sources, and how their records become rows."""

    sources: dict[str, SourceSettings] = Field({})
    """Name → source; docs/data.md describes each type."""
    max_length: int = Field(40, ge=3)
    """Tokens of a text, with `<s>` and `</s>`."""
    mask_ratio: float = Field(0.4, gt=0, le=1)
    """Share of a text's tokens that are masked."""
    max_masked: int = Field(12, gt=0)
    """Tokens of a text that are masked, at most."""
    mask_eos: bool = False
    """Masks as published for CCLM, see `mask_tokens`."""
    parallel_max_length: int | None = Field(None, ge=3)
    """Tokens of a text in parallel rows; None: as max_length."""
    parallel_max_masked: int | None = Field(None, gt=0)
    """Masked tokens of a text in parallel rows, at most; None: as max_masked."""
    clean_captions: bool = False
    """Texts in lower case, without punctuation, of at most max_words words."""
    max_words: int = Field(40, gt=0)
    """Words that a cleaned text keeps, at most."""
    modality_dropout: float = Field(0.15, ge=0, le=0.5)
    """Chance of dropping all patches of an image, and of dropping all its regions."""
    visual_forms: Literal["both", "patches", "regions"] = "both"
    """What training shows of an image that has regions; with one form alone `modality_dropout` has no
    effect."""
    language_exponent: float = Field(0.7, ge=0, le=1)
    """Smooths the frequencies of language pairs."""
    image: ImageSettings = ImageSettings()
    regions: RegionSettings = RegionSettings()
    tokenizer: TokenizerSettings = TokenizerSettings()
    skip_limit: float = Field(0.01, ge=0, le=1)
    """Share of unusable records above which a run stops."""
    threads: int = Field(8, gt=0)
    """Threads that read rows, in each process."""
    prefetch: int = Field(8, gt=0)
    """Batches read ahead."""
    workers: int = Field(0, ge=0)
    """Reading processes; 0 reads with threads of this process."""
    batch_cache: str | None = None
    """Folder that keeps the batches, for later runs that read the same rows; remove it when the data
    changes."""
