"""What RC³ and CCLM have in common."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple, Self

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt8
from pydantic import Field, model_validator

from rc3_jax.data.tokenizer import PAD_ID
from rc3_jax.models.compute import Compute, ComputeSettings
from rc3_jax.models.heads import MaskedLMHead, MLPHead, Projection, word_logits
from rc3_jax.models.layers import TOKEN_INIT, Stack
from rc3_jax.models.roi import RoiSettings
from rc3_jax.models.text import TextSettings, TextTower
from rc3_jax.models.towers import VisualSettings
from rc3_jax.models.vit import ViTSettings
from rc3_jax.settings import Fraction, PositiveFraction, Settings

TEMPERATURE_INIT = 0.07
TEMPERATURE_RANGE = (0.001, 0.5)
"""The training step keeps the learned temperatures within it (METHOD.md section 1.7)."""
BIAS_INIT = -10.0
"""Initial bias of a sigmoid contrast (Zhai et al., arXiv 2303.15343, section 3.2)."""
VISUAL_FIELDS = (
    *("image", "use_patches", "use_regions", "has_features"),
    *("region_features", "region_boxes", "region_mask"),
)
"""The fields of a row that `encode_visual` reads, as far as the model has their parts."""


class FusionSettings(Settings):
    """`config.model.fusion`: the encoder in which texts read images or other texts."""

    depth: int = Field(6, gt=0, le=1000)
    """Number of layers."""
    epsilon: float = Field(1e-5, ge=0)
    """Epsilon of the norms."""


class PairModelSettings(ComputeSettings):
    """The settings of `config.model` that RC³ and CCLM have in common."""

    text: TextSettings = TextSettings()
    patch: VisualSettings = ViTSettings()
    roi: RoiSettings = RoiSettings()
    fusion: FusionSettings = FusionSettings()
    projection_size: int = Field(256, gt=0)
    """Length of the vectors that are contrasted."""
    image_mean: tuple[Fraction, Fraction, Fraction] = (0.5, 0.5, 0.5)
    """Mean of each colour channel, 0 to 1, that pixels are normalised with."""
    image_std: tuple[PositiveFraction, PositiveFraction, PositiveFraction] = (0.5, 0.5, 0.5)
    """Standard deviation of each colour channel."""

    @model_validator(mode="after")
    def _check_widths(self) -> Self:
        if self.patch.output_width != self.text.width:
            raise ValueError(
                f"patch gives tokens of width {self.patch.output_width} and text.width="
                f"{self.text.width}; they must be equal: the fusion encoder reads images and "
                "parallel text alike"
            )
        return self

    def parts(self, vocab_size: int, compute: Compute) -> dict[str, Any]:
        """The attributes of a `PairModel` that follow from these settings.

        Raises:
          ConfigError: if the devices cannot share the heads of a tower.
        """
        fusion = compute.stack(
            self.fusion.depth,
            self.text.heads,
            self.text.mlp_width,
            pre_norm=False,
            epsilon=self.fusion.epsilon,
            cross_attention=True,
        )
        return dict(
            text=self.text.build(vocab_size, compute),
            fusion=fusion,
            projection_size=self.projection_size,
            image_mean=self.image_mean,
            image_std=self.image_std,
        )


class View(NamedTuple):
    """Images or texts after their tower: tokens with their mask, and contrastive embeddings."""

    tokens: Float[Array, "batch tokens width"]
    mask: Bool[Array, "batch tokens"]
    embedding: Float[Array, "batch size"] | None


class PairModel(nn.Module, kw_only=True):
    """Towers of images and texts, and an encoder that fuses a text with another view.

    Used through `init` and `apply` with one of the methods below.

    Attributes:
      fusion: text layers that attend to a second view, an image or another text (METHOD.md 1.5).
      temperatures: the learned scalars that similarities are divided by, by their parameters.
      has_bias: each contrast has a learned bias too, for its sigmoid form.
      tied_decoder: words are predicted with the word embeddings; False: with a table of their own.
      image_mean, image_std: of each colour channel, 0 to 1.
    """

    text: TextTower
    fusion: Stack
    temperatures: tuple[str, ...]
    has_bias: bool = False
    projection_size: int = 256
    tied_decoder: bool = True
    image_mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    image_std: tuple[float, ...] = (0.5, 0.5, 0.5)

    def setup(self):
        dtype, words = self.fusion.dtype, self.text.vocab_size
        self.image_projection = Projection(self.projection_size)
        self.text_projection = Projection(self.projection_size)
        self.matching_head = MLPHead(2, dtype)
        self.masked_lm_head = MaskedLMHead(dtype)
        self.word_bias = self.param("word_bias", nn.initializers.zeros, (words,))
        if not self.tied_decoder:
            self.decoder = self.param("decoder", TOKEN_INIT, (words, self.text.width))

        def scalars(suffix, value):
            init = nn.initializers.constant(value)
            return {name: self.param(name + suffix, init, ()) for name in self.temperatures}

        self.temperature = scalars("", TEMPERATURE_INIT)
        self.bias = scalars("_bias", BIAS_INIT) if self.has_bias else {}

    def temperature_and_bias(self, name: str) -> tuple[Float[Array, ""], Float[Array, ""] | None]:
        """The learned scalars of a contrast, float32: its temperature, and its bias if it has one."""
        return self.temperature[name], self.bias.get(name)

    def encode_visual(self, rows: Mapping[str, Array], deterministic: bool = True) -> View:
        """Encodes the images of rows with some of the `VISUAL_FIELDS`."""
        raise NotImplementedError

    def output_embedding(self) -> tuple[Float[Array, "vocab width"], Float[Array, " vocab"]]:
        """The table that `mlm_hidden` is multiplied by, in the type of computation, and its bias."""
        words = self.text.word_embedding.embedding if self.tied_decoder else self.decoder
        return words.astype(self.fusion.dtype), self.word_bias

    def encode_text(
        self,
        ids: Int[Array, "batch length"],
        deterministic: bool = True,
        mask: Bool[Array, "batch length"] | None = None,
    ) -> tuple[Float[Array, "batch length width"], Float[Array, "batch size"]]:
        """Token states and the embedding, projected from the first token; see `TextTower`."""
        states = self.text(ids, deterministic, mask)
        return states, self.text_projection(states[:, 0])

    def match(self, fused: Float[Array, "batch length width"]) -> Float[Array, "batch 2"]:
        """Matching logits from the first fused token."""
        return self.matching_head(fused[:, 0])

    def predict_tokens(
        self,
        fused: Float[Array, "batch length width"],
        positions: Int[Array, "batch masked"],
    ) -> Float[Array, "batch masked vocab"]:
        """Vocabulary logits, float32, at the given positions of each row."""
        return word_logits(self.mlm_hidden(fused, positions), *self.output_embedding())

    def mlm_hidden(
        self,
        fused: Float[Array, "batch length width"],
        positions: Int[Array, "batch masked"],
    ) -> Float[Array, "batch masked width"]:
        """States at the given positions, which are multiplied by `output_embedding`."""
        return self.masked_lm_head(jnp.take_along_axis(fused, positions[..., None], axis=1))

    def __call__(self, rows: Mapping[str, Array], ids: Int[Array, "batch length"]) -> Any:
        """Runs every part once; for `init`. See `encode_visual` for `rows`."""
        visual, (states, embedding), mask = (
            self.encode_visual(rows),
            self.encode_text(ids),
            ids != PAD_ID,
        )
        fused = self.fusion(states, mask, visual.tokens, visual.mask)
        return visual.embedding, embedding, *self.heads(fused, mask)

    def heads(
        self, fused: Float[Array, "batch length width"], mask: Bool[Array, "batch length"]
    ) -> tuple[Array, ...]:
        """The outputs of all heads on fused tokens; for `init`."""
        return self.match(fused), self.predict_tokens(fused, jnp.zeros((len(fused), 1), jnp.int32))


def is_temperature(name: str) -> bool:
    """Whether a parameter is a learned temperature; `temperature_..._bias` is a sigmoid's bias."""
    return name.startswith("temperature") and not name.endswith("_bias")


def learned_scalars(params: Collection[str]) -> dict[str, Any]:
    """The attributes `temperatures` and `has_bias` of the model with these parameters."""
    names = tuple(filter(is_temperature, params))
    return dict(temperatures=names, has_bias=any(f"{name}_bias" in params for name in names))


def normalise_pixels(
    image: UInt8[Array, "batch height width 3"], mean: Sequence[float], std: Sequence[float]
) -> Float[Array, "batch height width 3"]:
    """Colours as towers read them, float32; mean and std are of each channel, 0 to 1."""
    return (image.astype(jnp.float32) / 255.0 - jnp.array(mean)) / jnp.array(std)
