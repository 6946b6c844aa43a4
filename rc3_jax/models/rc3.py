"""RC³: text, patch and ROI towers, fusion encoder, heads (METHOD.md section 1)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import ml_collections
from jaxtyping import Array, Bool, Float, Int

from rc3_jax.data.tokenizer import PAD_ID
from rc3_jax.models.fusion import FusionEncoder
from rc3_jax.models.heads import MaskedLMHead, MatchingHead, Projection, Temperature
from rc3_jax.models.layers import REMAT_POLICIES, TOKEN_INIT, AttentionPool, masked_mean
from rc3_jax.models.patch import PatchTower
from rc3_jax.models.roi import GEOMETRIES, RoiTower
from rc3_jax.models.text import TextTower

READOUTS = ("attention", "mean")
CONTRASTS = ("image_text", "text_text", "fused")


class Visual(NamedTuple):
    """The visual tokens of a row with their mask, and the row's image vector v."""

    tokens: Float[Array, "batch tokens width"]
    mask: Bool[Array, "batch tokens"]
    vector: Float[Array, "batch size"]


class RC3(nn.Module):
    """The parts of RC³; used through `init` and `apply` with one of the methods below."""

    text: TextTower
    patch: PatchTower
    roi: RoiTower | None
    fusion: FusionEncoder
    projection_size: int = 256
    readout: str = "attention"
    image_mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    image_std: tuple[float, ...] = (0.5, 0.5, 0.5)
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        def projection():
            return Projection(self.projection_size)

        self.image_projection = projection()
        self.text_projection = projection()
        self.fused_projection = projection()
        if self.readout == "attention":
            self.fused_pool = AttentionPool(self.fusion.heads, self.dtype)
        if self.roi is not None:
            self.visual_type = self.param("visual_type", TOKEN_INIT, (2, self.patch.width))
        self.matching_head = MatchingHead(self.dtype)
        self.masked_lm_head = MaskedLMHead(self.text.vocab_size, self.dtype)
        self.temperature = {name: Temperature() for name in CONTRASTS}

    def temperatures(self) -> dict[str, Float[Array, ""]]:
        """The learned temperature of each contrast."""
        return {name: self.temperature[name]() for name in CONTRASTS}

    def encode_text(
        self, ids: Int[Array, "batch length"], deterministic: bool = True
    ) -> tuple[Float[Array, "batch length width"], Float[Array, "batch size"]]:
        """Token states and the text vector t, projected from the first token."""
        states = self.text(ids, deterministic)
        return states, self.text_projection(states[:, 0])

    def encode_visual(self, rows: Mapping[str, Array], deterministic: bool = True) -> Visual:
        """Patch and ROI tokens of images, either part masked out where a row says so.

        Args:
          rows: `image` uint8 `[batch, size, size, 3]` and `use_patches` bool `[batch]`; with
            an ROI tower also `region_features` `[batch, regions, feature_size]`,
            `region_boxes` `[batch, regions, 4]`, `region_mask` `[batch, regions]`,
            `has_features` `[batch]` and `use_regions` `[batch]`.
        """
        pixels = rows["image"].astype(jnp.float32) / 255.0
        pixels = (pixels - jnp.array(self.image_mean)) / jnp.array(self.image_std)
        tokens = self.patch(pixels, deterministic)
        mask = jnp.broadcast_to(rows["use_patches"][:, None], tokens.shape[:2])
        parts = [(tokens, mask)]
        if self.roi is not None:
            side = self.patch.image_size // self.patch.patch
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
            types = self.visual_type.astype(self.dtype)
            parts = [(t + types[i], m) for i, (t, m) in enumerate(parts)]
        vector = self.image_projection(_pool_parts(parts))
        return Visual(
            jnp.concatenate([t for t, _ in parts], axis=1),
            jnp.concatenate([m for _, m in parts], axis=1),
            vector,
        )

    def fuse(
        self,
        text_states: Float[Array, "batch length width"],
        text_mask: Bool[Array, "batch length"],
        view: Float[Array, "batch tokens view_width"],
        view_mask: Bool[Array, "batch tokens"],
        deterministic: bool = True,
    ) -> Float[Array, "batch length width"]:
        """Fused states of a text that reads a second view (visual tokens or another text)."""
        return self.fusion(text_states, text_mask, view, view_mask, deterministic)

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

    def match(self, fused: Float[Array, "batch length width"]) -> Float[Array, "batch 2"]:
        """Matching logits from the first fused token."""
        return self.matching_head(fused[:, 0])

    def predict_tokens(
        self,
        fused: Float[Array, "batch length width"],
        positions: Int[Array, "batch masked"],
    ) -> Float[Array, "batch masked vocab"]:
        """Vocabulary logits at the given positions of each row."""
        picked = jnp.take_along_axis(fused, positions[..., None], axis=1)
        return self.masked_lm_head(picked, self.text.word_embedding.embedding)

    def __call__(self, rows: Mapping[str, Array], ids: Int[Array, "batch length"]):
        """Runs every part once; for `init`. See `encode_visual` for `rows`."""
        visual = self.encode_visual(rows)
        states, text_vector = self.encode_text(ids)
        mask = ids != PAD_ID
        fused = self.fuse(states, mask, visual.tokens, visual.mask)
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


def build_rc3(config: ml_collections.ConfigDict, vocab_size: int) -> RC3:
    """RC³ as `config.model` says; parallel text is fused too, so the widths must agree.

    Raises:
      ValueError: if tower widths differ or a width is not divisible by its heads.
    """
    for setting, value, names in (
        ("readout", config.readout, READOUTS),
        ("remat", config.remat, REMAT_POLICIES),
        ("roi.geometry", config.roi.geometry, GEOMETRIES),
    ):
        if value not in names:
            raise ValueError(f"model.{setting}={value!r}: use one of {', '.join(names)}")
    if config.patch.width != config.text.width:
        raise ValueError(
            f"model.patch.width={config.patch.width} and model.text.width={config.text.width} "
            "must be equal: the fusion encoder reads images and parallel text alike"
        )
    for name in ("text", "patch"):
        part = config[name]
        if part.width % part.heads:
            raise ValueError(
                f"model.{name}.width={part.width} is not divisible by its heads={part.heads}"
            )
    if config.patch.image_size % config.patch.patch:
        raise ValueError(
            f"model.patch.image_size={config.patch.image_size} is not a multiple of "
            f"model.patch.patch={config.patch.patch}"
        )
    dtype = jnp.dtype(config.dtype)
    common = dict(dropout=config.dropout, remat=config.remat, unroll=config.unroll, dtype=dtype)
    roi = None
    if config.roi.regions:
        roi = RoiTower(
            width=config.patch.width,
            depth=config.roi.depth,
            heads=config.patch.heads,
            mlp_width=config.patch.mlp_width,
            geometry=config.roi.geometry,
            **common,
        )
    return RC3(
        text=TextTower(vocab_size=vocab_size, **config.text, **common),
        patch=PatchTower(**config.patch, **common),
        roi=roi,
        fusion=FusionEncoder(
            depth=config.fusion.depth,
            heads=config.text.heads,
            mlp_width=config.text.mlp_width,
            **common,
        ),
        projection_size=config.projection_size,
        readout=config.readout,
        image_mean=tuple(config.image_mean),
        image_std=tuple(config.image_std),
        dtype=dtype,
    )
