"""RC³: text, patch and ROI towers, fusion encoder, heads (METHOD.md section 1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

import flax.linen as nn
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float
from pydantic import model_validator

from rc3_jax.models.base import PairModel, PairModelSettings, View, normalise_pixels
from rc3_jax.models.compute import Compute
from rc3_jax.models.heads import Projection
from rc3_jax.models.layers import TOKEN_INIT, AttentionPool, masked_mean
from rc3_jax.models.roi import RoiTower

TEMPERATURES = ("temperature_image_text", "temperature_text_text", "temperature_fused")


class RC3(PairModel, kw_only=True):
    """The parts of RC³; see `PairModel`.

    Attributes:
      readout: how z is read from the text positions.
    """

    patch: nn.Module
    roi: RoiTower | None
    temperatures: tuple[str, ...] = TEMPERATURES
    readout: str = "attention"

    def setup(self):
        if self.roi is not None:
            self.visual_type = self.param("visual_type", TOKEN_INIT, (2, self.patch.width))
        super().setup()
        self.fused_projection = Projection(self.projection_size)
        if self.readout == "attention":
            self.fused_pool = AttentionPool(self.fusion.heads, self.fusion.dtype)

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
        tokens, mask = (jnp.concatenate(x, axis=1) for x in zip(*parts, strict=True))
        return View(tokens, mask, self.image_projection(_pool_parts(parts)))

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

    def heads(self, fused, mask):
        """See `PairModel`."""
        return *super().heads(fused, mask), self.fused_vector(fused, mask)


def _pool_parts(parts: list[tuple[Array, Array]]) -> Float[Array, "batch width"]:
    """Mean of each part's tokens, then of the parts that are present."""
    means = jnp.stack([masked_mean(tokens, mask) for tokens, mask in parts])
    present = jnp.stack([mask.any(axis=1) for _, mask in parts]).astype(jnp.float32)
    return means.sum(axis=0) / jnp.maximum(present.sum(axis=0), 1.0)[:, None]


class RC3ModelSettings(PairModelSettings):
    """`config.model` of RC³; the defaults are RC³-base."""

    readout: Literal["attention", "mean"] = "attention"
    """How z is read from the text positions."""

    @model_validator(mode="after")
    def _check_patches(self) -> Self:
        if self.roi.regions and (rate := getattr(self.patch, "patch_dropout", 0.0)):
            raise ValueError(
                f"patch.patch_dropout={rate}: regions are read from the grid of all patches; set it "
                f"or roi.regions={self.roi.regions} to 0"
            )
        return self

    def build(
        self,
        vocab_size: int,
        mesh: Mesh | None = None,
        temperatures: Sequence[str] = (),
        has_bias: bool = False,
    ) -> RC3:
        """The model.

        Args:
          mesh: see `Stack`.
          temperatures: names of learned temperatures besides `TEMPERATURES`.
          has_bias: see `PairModel`.

        Raises:
          ConfigError: if the devices cannot share the heads of a tower.
        """
        compute = Compute.of(self, mesh)
        return RC3(
            **self.parts(vocab_size, compute),
            patch=self.patch.build(compute),
            roi=self.roi.build(self.text, compute),
            readout=self.readout,
            temperatures=tuple(dict.fromkeys((*TEMPERATURES, *temperatures))),
            has_bias=has_bias,
        )


def build_rc3(config: Any, *arguments: Any, **options: Any) -> RC3:
    """Checks `config.model` and builds the model; see `RC3ModelSettings.build`."""
    return RC3ModelSettings.parse(config, "model").build(*arguments, **options)
