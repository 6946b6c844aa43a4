"""RC³: text, patch and ROI towers, fusion encoder, heads (METHOD.md section 1)."""

from __future__ import annotations

from collections.abc import Mapping

import flax.linen as nn
import jax.numpy as jnp
import ml_collections
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from rc3_jax.config import ConfigError, check_choice
from rc3_jax.data.tokenizer import PAD_ID
from rc3_jax.models.heads import MaskedLMHead, Perceptron, Projection
from rc3_jax.models.layers import TOKEN_INIT, AttentionPool, Stack, masked_mean
from rc3_jax.models.pair import TEMPERATURE_INIT, PairModel, View, normalise_pixels
from rc3_jax.models.roi import GEOMETRIES, RoiTower
from rc3_jax.models.text import TextTower, text_epsilon
from rc3_jax.models.towers import VisualTower, build_visual_tower, check_heads, check_model

READOUTS = ("attention", "mean")
CONTRASTS = ("image_text", "text_text", "fused")


class RC3(PairModel):
    """The parts of RC³; used through `init` and `apply` with one of the methods below.

    Attributes:
      fusion: text that reads a second view, an image or another text, by cross-attention
        (METHOD.md section 1.5).
      readout: how z is read from the text positions, one of `READOUTS`.
      image_mean, image_std: of each colour channel, 0 to 1.
    """

    text: TextTower
    patch: VisualTower
    roi: RoiTower | None
    fusion: Stack
    projection_size: int = 256
    readout: str = "attention"
    image_mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    image_std: tuple[float, ...] = (0.5, 0.5, 0.5)

    def setup(self):
        dtype = self.fusion.dtype
        self.image_projection = Projection(self.projection_size)
        self.text_projection = Projection(self.projection_size)
        self.fused_projection = Projection(self.projection_size)
        if self.readout == "attention":
            self.fused_pool = AttentionPool(self.fusion.heads, dtype)
        if self.roi is not None:
            self.visual_type = self.param("visual_type", TOKEN_INIT, (2, self.patch.width))
        self.matching_head = Perceptron(2, dtype)
        self.masked_lm_head = MaskedLMHead(dtype)
        self.word_bias = self.param("word_bias", nn.initializers.zeros, (self.text.vocab_size,))
        init = nn.initializers.constant(TEMPERATURE_INIT)
        self.temperature = {name: self.param(f"temperature_{name}", init, ()) for name in CONTRASTS}

    def temperatures(self) -> dict[str, Float[Array, ""]]:
        """The learned scalar, float32, that the logits of each contrast are divided by."""
        return self.temperature

    def pair_temperature(self) -> Float[Array, ""]:
        """That of images and texts."""
        return self.temperature["image_text"]

    def encode_visual(self, rows: Mapping[str, Array], deterministic: bool = True) -> View:
        """Patch and ROI tokens of images, either part masked out where a row says so.

        Args:
          rows: `image` uint8 `[batch, size, size, 3]` and `use_patches` bool `[batch]`; with
            an ROI tower also `region_features` `[batch, regions, feature_size]`,
            `region_boxes` `[batch, regions, 4]`, `region_mask` `[batch, regions]`,
            `has_features` `[batch]` and `use_regions` `[batch]`.
        """
        pixels = normalise_pixels(rows["image"], self.image_mean, self.image_std)
        tokens = self.patch(pixels, deterministic)
        mask = jnp.broadcast_to(rows["use_patches"][:, None], tokens.shape[:2])
        parts = [(tokens, mask)]
        if self.roi is not None:
            side = self.patch.grid
            grid = tokens[:, 1:].reshape(tokens.shape[0], side, side, -1)
            regions = self.roi(
                rows["region_features"],
                rows["region_boxes"],
                rows["region_mask"],
                rows["has_features"],
                grid,
                deterministic,
            )
            parts.append((regions, rows["region_mask"] & rows["use_regions"][:, None]))
            types = self.visual_type.astype(tokens.dtype)
            parts = [(t + types[i], m) for i, (t, m) in enumerate(parts)]
        vector = self.image_projection(_pool_parts(parts))
        return View(
            jnp.concatenate([t for t, _ in parts], axis=1),
            jnp.concatenate([m for _, m in parts], axis=1),
            vector,
        )

    def fused_vector(
        self, fused: Float[Array, "batch length width"], text_mask: Bool[Array, "batch length"]
    ) -> Float[Array, "batch size"]:
        """The visio-textual vector z, from its own read-out over the text positions."""
        pooled = (
            self.fused_pool(fused, text_mask)
            if self.readout == "attention"
            else masked_mean(fused, text_mask)
        )
        return self.fused_projection(pooled)

    def vocabulary(self) -> tuple[Float[Array, "vocab width"], Float[Array, " vocab"]]:
        """The word embeddings in the type of computation, and the bias of each word's logit."""
        return self.text.word_embedding.embedding.astype(self.fusion.dtype), self.word_bias

    def __call__(self, rows: Mapping[str, Array], ids: Int[Array, "batch length"]):
        """Runs every part once; for `init`. See `encode_visual` for `rows`."""
        visual = self.encode_visual(rows)
        states, text_vector = self.encode_text(ids)
        mask = ids != PAD_ID
        fused = self.fusion(states, mask, visual.tokens, visual.mask)
        return (
            visual.vector,
            text_vector,
            self.fused_vector(fused, mask),
            self.match(fused),
            self.predict_tokens(fused, jnp.zeros((ids.shape[0], 1), jnp.int32)),
            self.temperatures(),
        )


def _pool_parts(parts: list[tuple[Array, Array]]) -> Float[Array, "batch width"]:
    """Mean of each part's tokens, then of the parts that are present."""
    means = jnp.stack([masked_mean(tokens, mask) for tokens, mask in parts])
    present = jnp.stack([mask.any(axis=1) for _, mask in parts]).astype(jnp.float32)
    return means.sum(axis=0) / jnp.maximum(present.sum(axis=0), 1.0)[:, None]


def build_rc3(config: ml_collections.ConfigDict, vocab_size: int, mesh: Mesh | None = None) -> RC3:
    """RC³ as `config.model` says; parallel text is fused too, so the widths must agree.

    Args:
      mesh: see `Stack`.

    Raises:
      ConfigError: if tower widths differ or a width is not divisible by its heads.
    """
    check_model(config)
    check_choice("model.readout", config.readout, READOUTS)
    check_choice("model.roi.geometry", config.roi.geometry, GEOMETRIES)
    check_heads("text", config.text, mesh)
    patch_tower = build_visual_tower(config, mesh)
    if patch_tower.width != config.text.width:
        raise ConfigError(
            f"model.patch gives tokens of width {patch_tower.width} and model.text.width="
            f"{config.text.width}; they must be equal: the fusion encoder reads images and "
            "parallel text alike"
        )
    text, roi = config.text, config.roi
    dtype = jnp.dtype(config.dtype)

    def encoder(depth, **style) -> Stack:
        common = dict(dropout=config.dropout, remat=config.remat, unroll=config.unroll)
        return Stack(depth, text.heads, text.mlp_width, **style, **common, dtype=dtype, mesh=mesh)

    roi_tower = None
    if roi.regions:
        roi_encoder = encoder(roi.depth, pre_norm=True, epsilon=1e-5)
        roi_tower = RoiTower(roi_encoder, text.width, roi.geometry)
    text_encoder = encoder(text.depth, pre_norm=False, epsilon=text_epsilon(text))
    return RC3(
        text=TextTower(text_encoder, vocab_size, text.width, text.max_positions),
        patch=patch_tower,
        roi=roi_tower,
        fusion=encoder(config.fusion.depth, pre_norm=False, epsilon=1e-5, cross_attention=True),
        projection_size=config.projection_size,
        readout=config.readout,
        image_mean=tuple(config.image_mean),
        image_std=tuple(config.image_std),
    )
