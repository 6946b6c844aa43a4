"""CCLM: an image or a text as the first view, a text as the second (METHOD.md section 3).

Zeng et al., "Cross-View Language Modeling" (arXiv 2206.00621); CCLM.md sections 1.1 to 1.9.
"""

from __future__ import annotations

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from rc3_jax.config import ConfigError, check_choice
from rc3_jax.data.tokenizer import PAD_ID
from rc3_jax.models.heads import MaskedLMHead, Perceptron, Projection
from rc3_jax.models.layers import TOKEN_INIT, Stack, masked_mean
from rc3_jax.models.pair import TEMPERATURE_INIT, PairModel, View, normalise_pixels
from rc3_jax.models.text import POSITION_OFFSETS, TextTower, text_epsilon
from rc3_jax.models.towers import VisualTower, build_visual_tower, check_heads, check_model


class CCLM(PairModel):
    """The parts of CCLM; used through `init` and `apply` with one of the methods below.

    Attributes:
      fusion: text layers that read the other view, an image or a text, by cross-attention.
      tied_decoder: words are predicted with the word embeddings (2022), otherwise with a table of
        their own (X²-VLM).
    """

    text: TextTower
    vision: VisualTower
    fusion: Stack
    projection_size: int = 256
    tied_decoder: bool = True
    image_mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    image_std: tuple[float, ...] = (0.5, 0.5, 0.5)

    def setup(self):
        dtype = self.fusion.dtype
        self.image_projection = Projection(self.projection_size)
        self.text_projection = Projection(self.projection_size)
        self.matching_head = Perceptron(2, dtype)
        self.box_head = Perceptron(4, dtype)
        self.masked_lm_head = MaskedLMHead(dtype)
        words = self.text.vocab_size
        self.word_bias = self.param("word_bias", nn.initializers.zeros, (words,))
        if not self.tied_decoder:
            self.decoder = self.param("decoder", TOKEN_INIT, (words, self.text.width))
        init = nn.initializers.constant(TEMPERATURE_INIT)
        self.temperature = self.param("temperature", init, ())

    def temperatures(self) -> Float[Array, ""]:
        """The learned scalar, float32, that the logits of every contrast are divided by."""
        return self.temperature

    def pair_temperature(self) -> Float[Array, ""]:
        """The same."""
        return self.temperature

    def vocabulary(self) -> tuple[Float[Array, "vocab width"], Float[Array, " vocab"]]:
        """See `PairModel`."""
        words = self.text.word_embedding.embedding if self.tied_decoder else self.decoder
        return words.astype(self.fusion.dtype), self.word_bias

    def encode_visual(self, rows: Mapping[str, Array], deterministic: bool = True) -> View:
        """Pooled token and patch tokens of images, and their vectors.

        Args:
          rows: `image` uint8 `[batch, size, size, 3]`.
        """
        return self.encode_pixels(
            normalise_pixels(rows["image"], self.image_mean, self.image_std), deterministic
        )

    def encode_pixels(
        self, pixels: Float[Array, "batch height width 3"], deterministic: bool = True
    ) -> View:
        """`encode_visual` of normalised pixels."""
        tokens = self.vision(pixels, deterministic)
        return self._visual(tokens, jnp.ones(tokens.shape[:2], bool))

    def regions(
        self,
        tokens: Float[Array, "batch tokens width"],
        inside: Bool[Array, "batch regions tokens"],
    ) -> View:
        """Each region of each image as a row of its own (CCLM.md section 1.8).

        Args:
          tokens: of whole images.
          inside: the tokens of each region; column 0, the pooled one, is always True.

        Returns:
          `[batch * regions, ...]`: the image's tokens, of which the first is now the mean of the
          region's patches, and `inside` as their mask.
        """
        tokens = jnp.repeat(tokens, inside.shape[1], axis=0)
        inside = inside.reshape(-1, inside.shape[-1])
        pooled = masked_mean(tokens[:, 1:], inside[:, 1:]).astype(tokens.dtype)
        return self._visual(jnp.concatenate([pooled[:, None], tokens[:, 1:]], axis=1), inside)

    def _visual(self, tokens, mask) -> View:
        return View(tokens, mask, self.image_projection(tokens[:, 0]))

    def predict_box(self, fused: Float[Array, "batch length width"]) -> Float[Array, "batch 4"]:
        """Where in the image the text belongs: (centre x, centre y, width, height) in (0, 1)."""
        return jax.nn.sigmoid(self.box_head(fused[:, 0]))

    def __call__(self, rows: Mapping[str, Array], ids: Int[Array, "batch length"]):
        """Runs every part once; for `init`. See `encode_visual` for `rows`."""
        visual = self.encode_visual(rows)
        states, text_vector = self.encode_text(ids)
        fused = self.fusion(states, ids != PAD_ID, visual.tokens, visual.mask)
        positions = jnp.zeros((ids.shape[0], 1), jnp.int32)
        return (
            visual.vector,
            text_vector,
            self.match(fused),
            self.predict_box(fused),
            self.predict_tokens(fused, positions),
            self.temperatures(),
        )


def build_cclm(
    config: ml_collections.ConfigDict, vocab_size: int, mesh: Mesh | None = None
) -> CCLM:
    """CCLM as `config.model` says.

    Args:
      mesh: see `Stack`.

    Raises:
      ConfigError: if the views' widths differ, or a setting is none that it can be.
    """
    check_model(config)
    check_choice("model.text.position_offset", config.text.position_offset, POSITION_OFFSETS)
    check_heads("text", config.text, mesh)
    vision = build_visual_tower(config, mesh)
    text = config.text
    if vision.width != text.width:
        raise ConfigError(
            f"model.patch gives tokens of width {vision.width} and model.text.width={text.width}; "
            "they must be equal: the fusion encoder reads images and parallel text alike"
        )
    dtype = jnp.dtype(config.dtype)

    def encoder(part, epsilon, **style) -> Stack:
        return Stack(
            part.depth,
            text.heads,
            text.mlp_width,
            pre_norm=False,
            epsilon=epsilon,
            dropout=config.dropout,
            remat=config.remat,
            unroll=config.unroll,
            dtype=dtype,
            mesh=mesh,
            **style,
        )

    return CCLM(
        text=TextTower(
            encoder(text, text_epsilon(text)),
            vocab_size,
            text.width,
            text.max_positions,
            text.position_offset,
        ),
        vision=vision,
        fusion=encoder(config.fusion, config.fusion.epsilon, cross_attention=True),
        projection_size=config.projection_size,
        tied_decoder=config.tied_decoder,
        image_mean=tuple(config.image_mean),
        image_std=tuple(config.image_std),
    )
