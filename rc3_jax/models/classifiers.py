"""Downstream models with the encoders of CCLM: one or two images and a text to a class.

Image-text retrieval uses `CCLM` itself, question answering is in `answer_decoder.py`. The models are those
of the published code of 2022 (CCLM.md section 5).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TypedDict

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
from jax.sharding import Mesh
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from rc3_jax.data.tokenizer import PAD_ID
from rc3_jax.models.base import normalise_pixels
from rc3_jax.models.cclm import build_cclm
from rc3_jax.models.heads import MLPHead
from rc3_jax.models.layers import Block, Stack
from rc3_jax.models.linear import dense
from rc3_jax.models.text import TextTower


class ReaderParts(TypedDict):
    """The attributes of a `Reader`."""

    text: TextTower
    vision: nn.Module
    fusion: Stack
    image_mean: tuple[float, ...]
    image_std: tuple[float, ...]


class Reader(nn.Module):
    """The encoders of CCLM without its heads; its parameters have the same names here."""

    text: TextTower
    vision: nn.Module
    fusion: Stack
    image_mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    image_std: tuple[float, ...] = (0.5, 0.5, 0.5)

    def normalise(self, rows: Mapping[str, Array]) -> Float[Array, "batch ... 3"]:
        """Pixels as the towers read them, of `image` uint8 `[batch, ..., size, size, 3]`."""
        return normalise_pixels(rows["image"], self.image_mean, self.image_std)

    def read(
        self,
        pixels: Float[Array, "batch height width 3"],
        ids: Int[Array, "batch length"],
        mask: Bool[Array, "batch length"] | None = None,
        deterministic: bool = True,
    ) -> Float[Array, "batch length width"]:
        """States of the texts' tokens after they read the images.

        Args:
          pixels: normalised.
          mask: the tokens that others read; None for all but padding.
        """
        mask = ids != PAD_ID if mask is None else mask
        states = self.text(ids, deterministic, mask)
        image = self.vision(pixels, deterministic)
        return self.fusion(states, mask, image, deterministic=deterministic)


class PairClassifier(Reader):
    """Tells the class of an image and a text: XVNLI, a hypothesis about a premise image."""

    classes: int = 3

    def setup(self):
        self.class_head = MLPHead(self.classes, self.fusion.dtype)

    def classify(self, fused: Float[Array, "batch length width"]) -> Float[Array, "batch classes"]:
        """Logits, float32, from the first token of what `read` returns."""
        return self.class_head(fused[:, 0])

    def __call__(
        self,
        rows: Mapping[str, Array],
        ids: Int[Array, "batch length"],
        mask: Bool[Array, "batch length"] | None = None,
        deterministic: bool = True,
    ) -> Float[Array, "batch classes"]:
        """Logits. See `normalise` for `rows` and `read` for the others."""
        return self.classify(self.read(self.normalise(rows), ids, mask, deterministic))


class TwoImageClassifier(PairClassifier):
    """Tells whether a statement is true of two images: NLVR2, MaRVL.

    `rows` hold `image` `[batch, 2, size, size, 3]`, and `fusion` is a `PairedStack`.
    """

    classes: int = 2

    def read(
        self,
        pixels: Float[Array, "batch 2 height width 3"],
        ids: Int[Array, "batch length"],
        mask: Bool[Array, "batch length"] | None = None,
        deterministic: bool = True,
    ) -> Float[Array, "batch length width"]:
        """See `Reader.read`."""
        mask = ids != PAD_ID if mask is None else mask
        states = self.text(ids, deterministic, mask)
        images = self.vision(pixels.reshape(-1, *pixels.shape[2:]), deterministic)
        first, second = jnp.unstack(images.reshape(len(ids), 2, *images.shape[1:]), axis=1)
        return self.fusion(states, mask, first, second, deterministic)


class PairedStack(Stack):
    """`depth` pairs of layers; the first of a pair reads one image, the second the other.

    Both project the images' keys and values with the same parameters. Layers whose image is None
    leave cross-attention out.
    """

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch length width"],
        mask: Bool[Array, "batch length"] | None = None,
        first: Float[Array, "batch keys kv_width"] | None = None,
        second: Float[Array, "batch keys kv_width"] | None = None,
        deterministic: bool = True,
    ) -> Float[Array, "batch length width"]:
        def step(pair, x, mask, first, second):
            return pair(x, mask, first, second, deterministic)

        pair = BlockPair(self.make_block, self.dtype, name="layers")
        return self.loop(step, pair, x, mask, first, second)


class BlockPair(nn.Module):
    """Two blocks with the same keys and values in cross-attention.

    Attributes:
      make_block: see `Stack`.
    """

    make_block: Callable[..., Block]
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x, mask, first, second, deterministic: bool):
        width = x.shape[-1]
        shared = dense(width, self.dtype, "key"), dense(width, self.dtype, "value")
        for name, image in (("first", first), ("second", second)):
            block = self.make_block(key_value=shared, name=name)
            x = block(x, mask, image, None, deterministic)
        return x


def classification_loss(
    logits: Float[Array, "batch classes"], targets: Int[Array, " batch"]
) -> Float[Array, ""]:
    """Mean cross-entropy."""
    log_probability = jax.nn.log_softmax(logits.astype(jnp.float32))
    return -jnp.mean(jnp.take_along_axis(log_probability, targets[:, None], axis=1))


def encoders(
    config: ml_collections.ConfigDict, vocab_size: int, mesh: Mesh | None = None
) -> ReaderParts:
    """The attributes of a `Reader`, as `config.model` says; see `build_cclm`."""
    model = build_cclm(config, vocab_size, mesh)
    return ReaderParts(
        text=model.text,
        vision=model.vision,
        fusion=model.fusion,
        image_mean=model.image_mean,
        image_std=model.image_std,
    )


def build_pair_classifier(
    config: ml_collections.ConfigDict, vocab_size: int, classes: int = 3, mesh: Mesh | None = None
) -> PairClassifier:
    """The model of XVNLI; see `encoders`."""
    return PairClassifier(**encoders(config, vocab_size, mesh), classes=classes)


def build_two_image_classifier(
    config: ml_collections.ConfigDict, vocab_size: int, classes: int = 2, mesh: Mesh | None = None
) -> TwoImageClassifier:
    """The model of NLVR2 and MaRVL, with a pair of layers for each fusion layer; see `encoders`."""
    parts = encoders(config, vocab_size, mesh)
    fusion = parts["fusion"]
    parts["fusion"] = PairedStack(**{f: getattr(fusion, f) for f in _fields(Stack)})
    return TwoImageClassifier(**parts, classes=classes)


def _fields(module: type[nn.Module]) -> list[str]:
    return [f.name for f in dataclasses.fields(module) if f.name not in ("parent", "name")]
