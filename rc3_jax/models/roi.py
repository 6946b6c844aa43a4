"""ROI tower: detector regions, or plain boxes, to tokens (METHOD.md section 1.3)."""

from __future__ import annotations

from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float
from pydantic import Field

from rc3_jax.models.compute import Compute, TowerSettings
from rc3_jax.models.layers import Stack
from rc3_jax.models.linear import dense
from rc3_jax.models.text import TextSettings

Geometry = Literal["7d", "5d"]


class RoiSettings(TowerSettings):
    """`config.model.roi`; its encoder has the text tower's width and heads."""

    regions: int = Field(36, ge=0)
    """Regions of an image, at most; 0 leaves the tower out."""
    feature_size: int = Field(2048, gt=0)
    """Numbers of a detector's feature."""
    depth: int = Field(2, gt=0, le=1000)
    """Number of layers."""
    geometry: Geometry = "7d"
    """How a box is given to the tower; see `box_geometry`."""

    def build(self, text: TextSettings, compute: Compute) -> RoiTower | None:
        """The tower; None without regions."""
        if not self.regions:
            return None
        encoder = compute.stack(self.depth, text.heads, text.mlp_width, pre_norm=True, epsilon=1e-5)
        return RoiTower(encoder, text.width, self.geometry)


def box_geometry(
    boxes: Float[Array, "batch regions 4"], form: Geometry
) -> Float[Array, "batch regions numbers"]:
    """Boxes (x1, y1, x2, y2, fractions) to `7d`: x1, y1, x2, y2, w, h, area, or `5d` without w, h."""
    x1, y1, x2, y2 = jnp.moveaxis(boxes.astype(jnp.float32), -1, 0)
    width, height = x2 - x1, y2 - y1
    numbers = {
        "7d": (x1, y1, x2, y2, width, height, width * height),
        "5d": (x1, y1, x2, y2, width * height),
    }[form]
    return jnp.stack(numbers, axis=-1)


def _sampling_weights(low, high, cells: int, bins: int) -> Float[Array, "batch regions cells"]:
    """Mean bilinear weight that each grid cell has in 2 samples a bin between low and high."""
    steps = (jnp.arange(2 * bins) + 0.5) / (2 * bins)
    points = low[..., None] + (high - low)[..., None] * steps
    points = jnp.clip(points * cells - 0.5, 0, cells - 1)
    distance = jnp.abs(points[..., None] - jnp.arange(cells))
    return jnp.mean(jnp.maximum(1.0 - distance, 0.0), axis=-2)


def roi_align(
    grid: Float[Array, "batch rows columns width"],
    boxes: Float[Array, "batch regions 4"],
    bins: int = 7,
) -> Float[Array, "batch regions width"]:
    """Mean RoI-align feature of each box: `bins` x `bins` bins of 2 x 2 bilinear samples.

    Bilinear weights are a product of a row and a column weight, and so is their mean over a
    regular grid of samples: two small contractions replace the gather of all samples.
    """
    boxes = boxes.astype(jnp.float32)
    rows = _sampling_weights(boxes[..., 1], boxes[..., 3], grid.shape[1], bins)
    columns = _sampling_weights(boxes[..., 0], boxes[..., 2], grid.shape[2], bins)
    return jnp.einsum(
        "bnr,bnc,brcw->bnw", rows.astype(grid.dtype), columns.astype(grid.dtype), grid
    )


class RoiTower(nn.Module):
    """`LayerNorm(W_f feature) + LayerNorm(W_g geometry)`, then a small transformer.

    Rows whose regions have no detector feature use RoI-align over the patch tower's grid,
    through a projection of its own.
    """

    encoder: Stack
    width: int = 768
    geometry: Geometry = "7d"

    @nn.compact
    def __call__(
        self,
        features: Float[Array, "batch regions feature_size"],
        boxes: Float[Array, "batch regions 4"],
        mask: Bool[Array, "batch regions"],
        has_features: Bool[Array, " batch"],
        grid: Float[Array, "batch rows columns width"] | None,
        deterministic: bool = True,
    ) -> Float[Array, "batch regions width"]:
        """Args: grid: patch tokens in their places; None where every row has features."""
        dtype = self.encoder.dtype

        def norm(name):
            return nn.LayerNorm(self.encoder.epsilon, dtype, name=name)

        content = dense(self.width, dtype, "feature_embedding")(features.astype(dtype))
        if grid is not None:
            aligned = dense(self.width, dtype, "aligned_embedding")(roi_align(grid, boxes))
            content = jnp.where(has_features[:, None, None], content, aligned)
        # In float32: bfloat16 would round places to the third digit.
        place = dense(self.width, jnp.float32, "geometry_embedding")(
            box_geometry(boxes, self.geometry)
        )
        x = norm("feature_norm")(content) + norm("geometry_norm")(place)
        x = nn.Dropout(self.encoder.dropout)(x, deterministic=deterministic)
        x = self.encoder(x, mask, deterministic=deterministic)
        return norm("final_norm")(x)
