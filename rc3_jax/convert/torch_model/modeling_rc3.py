"""RC³: a vision-language model of images, their regions, and texts in many languages.

A text tower, a patch tower and a tower of regions (ROI) give tokens of one width. Images and texts
have contrastive vectors, and a fusion encoder reads a text over the visual tokens of an image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import reduce
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from .configuration_rc3 import RC3Config
from .layers_rc3 import (
    AttentionPool,
    Block,
    MaskedLMHead,
    MatchingHead,
    Projection,
    Stack,
    masked_mean,
)
from .towers_rc3 import RoiTower, build_tower, encode_patches

PAD_ID = 1
COMPUTED = [r"relative_position_index"]
"""What Swin computes; transformers 4 would report that a folder lacks it."""


class EncodedText(NamedTuple):
    """Token states `[batch, length, width]`, which of them are no padding, and the vectors."""

    tokens: Tensor
    mask: Tensor
    text_vector: Tensor


class EncodedImage(NamedTuple):
    """Visual tokens `[batch, tokens, width]`, which of them are read, and the vectors."""

    tokens: Tensor
    mask: Tensor
    image_vector: Tensor


class EncodedPair(NamedTuple):
    """States of a text's tokens that read an image, which are no padding, and the vectors."""

    tokens: Tensor
    mask: Tensor
    fused_vector: Tensor


@dataclass
class RC3Output(ModelOutput):
    """What `RC3Model.forward` returns, all float32; None for what was not given.

    Attributes:
      image_vector, text_vector: `[images, projection_size]` and `[texts, projection_size]`, of
        length 1.
      logits_per_image: `[images, texts]`, similarities divided by the learned temperature, plus
        the learned bias of a model that was trained with the sigmoid contrast.
      logits_per_text: the same, `[texts, images]`.
      fused_vector: `[pairs, projection_size]`, of length 1, where there are as many texts as images:
        of each text over the image of the same number.
      matching_logits: `[pairs, 2]`; class 1: image and text belong together.
    """

    image_vector: Tensor | None = None
    text_vector: Tensor | None = None
    logits_per_image: Tensor | None = None
    logits_per_text: Tensor | None = None
    fused_vector: Tensor | None = None
    matching_logits: Tensor | None = None


class RC3Model(PreTrainedModel):
    """Text, patch and ROI towers, the fusion encoder, and their heads.

    Images are given as `encode_image` takes them. A folder's processor makes all inputs.
    """

    config_class = RC3Config
    _supports_sdpa = True
    _keys_to_ignore_on_load_missing = COMPUTED

    def __init__(self, config: RC3Config):
        super().__init__(config)
        model = config.model
        text, roi, dropout = model["text"], model["roi"], model["dropout"]
        width, heads, size = text["width"], text["heads"], model["projection_size"]
        self.text = build_tower(config.towers["text"])
        self.patch = build_tower(config.towers["patch"])
        self.roi = RoiTower(roi, text, dropout) if roi["regions"] else None
        sizes = (width, heads, text["mlp_width"], dropout)
        depth = model["fusion"]["depth"]
        self.fusion = Stack(Block(*sizes, cross_attention=True) for _ in range(depth))
        self.image_projection = Projection(width, size)
        self.text_projection = Projection(width, size)
        self.fused_projection = Projection(width, size)
        self.fused_pool = AttentionPool(width, heads) if model["readout"] == "attention" else None
        if self.roi is not None:
            self.visual_type = nn.Parameter(torch.empty(2, width))
        self.matching_head = MatchingHead(width)
        self.masked_lm_head = MaskedLMHead(width)
        self.word_bias = nn.Parameter(torch.empty(config.vocab_size))
        for name in config.scalars:
            self.register_parameter(name, nn.Parameter(torch.empty(())))
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Draws a module's own parameters that a folder lacks."""
        for name, parameter in module.named_parameters(recurse=False):
            if name.startswith("temperature"):
                nn.init.constant_(parameter, -10.0 if name.endswith("_bias") else 0.07)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif isinstance(module, nn.LayerNorm):
                nn.init.ones_(parameter)
            else:
                nn.init.trunc_normal_(parameter, std=0.02)

    def encode_text(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> EncodedText:
        """Texts alone; the vector is projected from the first token.

        Args:
          input_ids: int64 `[batch, length]`, padded on the right with 1.
          attention_mask: 0 for further tokens that are not read; padding never is.

        Raises:
          ValueError: if they are not `[batch, length]`, or too long for the position table.
        """
        longest = self.config.model["text"]["max_positions"] - PAD_ID - 1
        if input_ids.ndim != 2 or input_ids.shape[1] > longest:
            raise ValueError(
                f"input_ids are {list(input_ids.shape)}; they must be [batch, length] with at most "
                f"{longest} tokens a text"
            )
        mask = input_ids != PAD_ID
        if attention_mask is not None:
            mask = mask & attention_mask.bool()
        tokens = self.text(input_ids, attention_mask=mask.long()).last_hidden_state
        return EncodedText(tokens, mask, self.text_projection(tokens[:, 0]))

    def encode_image(
        self,
        pixel_values: Tensor | None = None,
        region_features: Tensor | None = None,
        region_boxes: Tensor | None = None,
        region_mask: Tensor | None = None,
        has_features: Tensor | None = None,
        use_patches: Tensor | None = None,
        use_regions: Tensor | None = None,
    ) -> EncodedImage:
        """Images as patches, as regions, or as both: tokens of the patches, then of the regions.

        Args:
          pixel_values: normalised colours `[batch, 3, image_size, image_size]`.
          region_features: of a detector, `[batch, regions, feature_size]`.
          region_boxes: x1, y1, x2, y2 as fractions of the image, `[batch, regions, 4]`.
          region_mask: bool `[batch, regions]`, the regions that are there; None for all.
          has_features: bool `[batch]`, the images whose `region_features` count; the features of
            the others are taken from their patches. None for all, or none without features.
          use_patches, use_regions: bool `[batch]`, the images whose patches or regions are read;
            None for all.

        Raises:
          ValueError: for inputs of other sizes, or regions with neither features nor pixels.
        """
        if region_boxes is None and (region_features is not None or region_mask is not None):
            raise ValueError("regions need region_boxes")
        patches, parts = None, []
        if pixel_values is not None:
            patches = self._encode_patches(pixel_values)
            mask = torch.ones(patches.shape[:2], dtype=torch.bool, device=patches.device)
            parts.append(self._part(0, patches, mask, use_patches))
        if region_boxes is not None:
            if region_mask is None:
                region_mask = torch.ones_like(region_boxes[..., 0], dtype=torch.bool)
            regions = self._encode_regions(
                patches, region_features, region_boxes, region_mask, has_features
            )
            parts.append(self._part(1, regions, region_mask, use_regions))
        if not parts:
            raise ValueError("an image needs pixel_values, region_boxes, or both")
        # The mean of each part's tokens, then of the parts that are there.
        means = reduce(torch.add, [masked_mean(tokens, mask) for tokens, mask in parts])
        present = reduce(torch.add, [mask.any(1, keepdim=True).float() for _, mask in parts])
        vector = self.image_projection(means / present.clamp(min=1))
        tokens, masks = zip(*parts, strict=True)
        return EncodedImage(torch.cat(tokens, dim=1), torch.cat(masks, dim=1), vector)

    def fuse(self, text: EncodedText, image: EncodedImage) -> EncodedPair:
        """Reads texts over images, pair by pair; raises ValueError if their numbers differ."""
        if len(text.tokens) != len(image.tokens):
            raise ValueError(
                f"{len(text.tokens)} texts and {len(image.tokens)} images are no pairs; give as "
                "many of one as of the other"
            )
        tokens = self.fusion(text.tokens, text.mask, image.tokens, image.mask)
        pool = masked_mean if self.fused_pool is None else self.fused_pool
        return EncodedPair(tokens, text.mask, self.fused_projection(pool(tokens, text.mask)))

    def encode_pair(
        self, input_ids: Tensor, pixel_values: Tensor | None = None, **regions: Tensor | None
    ) -> EncodedPair:
        """Texts read over images, pair by pair; see `encode_text`, `encode_image` and `fuse`."""
        return self.fuse(self.encode_text(input_ids), self.encode_image(pixel_values, **regions))

    def match(
        self, input_ids: Tensor, pixel_values: Tensor | None = None, **regions: Tensor | None
    ) -> Tensor:
        """Matching logits of pairs, float32 `[batch, 2]`; class 1: they belong together."""
        return self.matching_head(self.encode_pair(input_ids, pixel_values, **regions).tokens[:, 0])

    def fill_mask(
        self,
        input_ids: Tensor,
        pixel_values: Tensor | None = None,
        positions: Tensor | None = None,
        **regions: Tensor | None,
    ) -> Tensor:
        """Logits of every word for tokens of a text that is read over an image.

        Args:
          positions: int64 `[batch, masked]`, the tokens to predict; None for all.

        Returns:
          float32 `[batch, masked, vocab_size]`.
        """
        tokens = self.encode_pair(input_ids, pixel_values, **regions).tokens
        if positions is not None:
            tokens = tokens.gather(1, positions[..., None].expand(-1, -1, tokens.shape[2]))
        words = self.text.embeddings.word_embeddings.weight
        return F.linear(self.masked_lm_head(tokens), words).float() + self.word_bias.float()

    def get_text_features(self, input_ids: Tensor, **inputs: Any) -> Tensor:
        """Vectors of texts, `[texts, projection_size]`, of length 1; see `encode_text`."""
        return self.encode_text(input_ids, inputs.get("attention_mask")).text_vector

    def get_image_features(
        self, pixel_values: Tensor | None = None, **regions: Tensor | None
    ) -> Tensor:
        """Vectors of images, `[images, projection_size]`, of length 1; see `encode_image`."""
        return self.encode_image(pixel_values, **regions).image_vector

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        return_dict: bool | None = None,
        **regions: Tensor | None,
    ) -> RC3Output | tuple[Tensor, ...]:
        """Vectors of texts, of images, or of both, and the similarities of all images and texts.

        As many texts as images are pairs too, which are fused and matched.
        """
        text = image = fused = None
        if input_ids is not None:
            text = self.encode_text(input_ids, attention_mask)
        if pixel_values is not None or regions.get("region_boxes") is not None:
            image = self.encode_image(pixel_values, **regions)
        if text is None and image is None:
            raise ValueError("give input_ids, pixel_values or region_boxes")
        output = RC3Output(
            image_vector=None if image is None else image.image_vector,
            text_vector=None if text is None else text.text_vector,
        )
        if text is not None and image is not None:
            with torch.autocast(text.tokens.device.type, enabled=False):
                similarities = image.image_vector @ text.text_vector.T
            temperature = "temperature_image_text"
            logits = similarities / self.get_parameter(temperature).float()
            if f"{temperature}_bias" in self.config.scalars:
                logits = logits + self.get_parameter(f"{temperature}_bias").float()
            output.logits_per_image, output.logits_per_text = logits, logits.T
            if len(text.tokens) == len(image.tokens):
                fused = self.fuse(text, image)
                output.fused_vector = fused.fused_vector
                output.matching_logits = self.matching_head(fused.tokens[:, 0])
        return output.to_tuple() if return_dict is False else output

    def _encode_patches(self, pixels: Tensor) -> Tensor:
        size = self.config.model["patch"]["image_size"]
        if pixels.shape[1:] != (3, size, size):
            raise ValueError(
                f"pixel_values are {list(pixels.shape)}; this model's images are "
                f"[batch, 3, {size}, {size}]"
            )
        return encode_patches(self.patch, pixels.to(self.dtype), **self.config.towers["readout"])

    def _encode_regions(
        self,
        patches: Tensor | None,
        features: Tensor | None,
        boxes: Tensor,
        mask: Tensor,
        has_features: Tensor | None,
    ) -> Tensor:
        if self.roi is None:
            raise ValueError("this model has no ROI tower; leave the regions out")
        shape = (*boxes.shape[:2], self.config.model["roi"]["feature_size"])
        if features is None:
            features, has_features = boxes.new_zeros(shape), boxes.new_zeros(len(boxes)).bool()
        elif has_features is None:
            has_features = torch.ones_like(mask[:, 0])
        if (
            boxes.ndim != 3
            or boxes.shape[2] != 4
            or mask.shape != boxes.shape[:2]
            or features.shape != shape
        ):
            raise ValueError(
                f"region_boxes are {list(boxes.shape)}, region_mask {list(mask.shape)} and "
                f"region_features {list(features.shape)}; they must be [batch, regions, 4], "
                f"[batch, regions] and [batch, regions, {shape[-1]}]"
            )
        if patches is None:
            if not has_features.all():
                raise ValueError(
                    "regions without region_features take them from the image; give pixel_values"
                )
            return self.roi(features, boxes.float(), mask, has_features, None)
        side = math.isqrt(patches.shape[1] - 1)
        grid = patches[:, 1:].unflatten(1, (side, side))
        return self.roi(features, boxes.float(), mask, has_features, grid)

    def _part(
        self, number: int, tokens: Tensor, mask: Tensor, used: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Patches (0) or regions (1) as visual tokens, and which of them are read."""
        if self.roi is not None:
            tokens = tokens + self.visual_type[number]
        return tokens, mask if used is None else mask & used[:, None]
