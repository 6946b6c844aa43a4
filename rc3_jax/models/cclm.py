"""CCLM: an image or a text as the first view, a text as the second (METHOD.md section 3).

Zeng et al., "Cross-View Language Modeling" (arXiv 2206.00621); CCLM.md sections 1.1 to 1.9.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float
from pydantic import model_validator

from rc3_jax.models.base import PairModel, PairModelSettings, View, normalise_pixels
from rc3_jax.models.compute import Compute
from rc3_jax.models.heads import MLPHead
from rc3_jax.models.layers import masked_mean
from rc3_jax.models.roi import RoiSettings
from rc3_jax.models.swin import SwinSettings
from rc3_jax.models.text import TextSettings
from rc3_jax.models.towers import VisualSettings
from rc3_jax.settings import Fraction, PositiveFraction

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
TEMPERATURE = "temperature"


class CCLM(PairModel, kw_only=True):
    """The parts of CCLM; see `PairModel`. Its second view is an image, a region or a text."""

    vision: nn.Module
    temperatures: tuple[str, ...] = (TEMPERATURE,)

    def setup(self):
        super().setup()
        self.box_head = MLPHead(4, self.fusion.dtype)

    def encode_visual(self, rows: Mapping[str, Array], deterministic: bool = True) -> View:
        """Pooled token and patch tokens of images, and their vectors.

        Args:
          rows: `image` uint8 `[batch, size, size, 3]`.
        """
        pixels = normalise_pixels(rows["image"], self.image_mean, self.image_std)
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

    def heads(self, fused, mask):
        """See `PairModel`."""
        return *super().heads(fused, mask), self.predict_box(fused)


class CCLMModelSettings(PairModelSettings):
    """`config.model` of CCLM; the defaults are CCLM-3M, see `config_cclm.MODELS`."""

    patch: VisualSettings = SwinSettings(drop_path=0.1)
    text: TextSettings = TextSettings(
        width=1024, depth=6, heads=16, mlp_width=4096, position_offset=0
    )
    roi: RoiSettings = RoiSettings(regions=0)
    tied_decoder: bool = True
    """Words are predicted with the word embeddings; False: with a table of their own (X²-VLM)."""
    image_mean: tuple[Fraction, Fraction, Fraction] = CLIP_MEAN
    image_std: tuple[PositiveFraction, PositiveFraction, PositiveFraction] = CLIP_STD

    @model_validator(mode="after")
    def _check_roi(self) -> Self:
        if self.roi.regions:
            raise ValueError(f"roi.regions={self.roi.regions}: CCLM has no ROI tower; set it to 0")
        return self

    def build(
        self,
        vocab_size: int,
        mesh: Mesh | None = None,
        temperatures: Sequence[str] = (),
        has_bias: bool = False,
    ) -> CCLM:
        """The model; see `RC3ModelSettings.build`."""
        compute = Compute.of(self, mesh)
        return CCLM(
            **self.parts(vocab_size, compute),
            vision=self.patch.build(compute),
            tied_decoder=self.tied_decoder,
            temperatures=tuple(dict.fromkeys((TEMPERATURE, *temperatures))),
            has_bias=has_bias,
        )


def build_cclm(config: Any, *arguments: Any, **options: Any) -> CCLM:
    """Checks `config.model` and builds the model; see `CCLMModelSettings.build`."""
    return CCLMModelSettings.parse(config, "model").build(*arguments, **options)
