"""What every model that reads an image and a text has in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt8

from rc3_jax.models.heads import word_logits

TEMPERATURE_INIT = 0.07
TEMPERATURE_RANGE = (0.001, 0.5)
"""The training step keeps the learned temperatures within it (METHOD.md section 1.7)."""


class View(NamedTuple):
    """Images or texts after their tower: tokens with their mask, and the contrastive vectors."""

    tokens: Float[Array, "batch tokens width"]
    mask: Bool[Array, "batch tokens"]
    vector: Float[Array, "batch size"]


class PairModel(nn.Module):
    """Texts alone, and texts that the fusion encoder read over a second view.

    A model sets up `text`, `text_projection`, `fusion`, `matching_head`, `masked_lm_head`, and says
    what its `vocabulary` is.
    """

    def encode_visual(self, rows: Mapping[str, Array], deterministic: bool = True) -> View:
        """Visual tokens and image vectors of a batch's rows."""
        raise NotImplementedError

    def pair_temperature(self) -> Float[Array, ""]:
        """The learned scalar that similarities of images and texts are divided by, float32."""
        raise NotImplementedError

    def vocabulary(self) -> tuple[Float[Array, "vocab width"], Float[Array, " vocab"]]:
        """What `token_states` are compared with, in the type of computation, and each word's bias."""
        raise NotImplementedError

    def encode_text(
        self,
        ids: Int[Array, "batch length"],
        deterministic: bool = True,
        mask: Bool[Array, "batch length"] | None = None,
    ) -> tuple[Float[Array, "batch length width"], Float[Array, "batch size"]]:
        """Token states and the text vector t, projected from the first token; see `TextTower`."""
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
        return word_logits(self.token_states(fused, positions), *self.vocabulary())

    def token_states(
        self,
        fused: Float[Array, "batch length width"],
        positions: Int[Array, "batch masked"],
    ) -> Float[Array, "batch masked width"]:
        """What `vocabulary` is compared with to predict the tokens at the positions."""
        return self.masked_lm_head(jnp.take_along_axis(fused, positions[..., None], axis=1))


def normalise_pixels(
    image: UInt8[Array, "batch height width 3"], mean: Sequence[float], std: Sequence[float]
) -> Float[Array, "batch height width 3"]:
    """Colours as towers read them, float32; mean and std are of each channel, 0 to 1."""
    return (image.astype(jnp.float32) / 255.0 - jnp.array(mean)) / jnp.array(std)
