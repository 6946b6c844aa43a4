"""Vision transformers of ViT's, CLIP's and SigLIP's styles (METHOD.md section 1.2)."""

from __future__ import annotations

from typing import ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray
from pydantic import Field

from rc3_jax.models.compute import Compute, Epsilon
from rc3_jax.models.hugging_face import CHANNELS, VISION, VISION_LAYER, HuggingFace
from rc3_jax.models.layers import TOKEN_INIT, prepend_mean
from rc3_jax.models.visual import Activation, PatchTransformerSettings, VisualTower
from rc3_jax.param_map import CONVOLUTION, TOKEN, WITHOUT_BATCH, Name, ParamMap

VIT_LAYER = VISION_LAYER | ParamMap({"self_attention": "attention.attention"})
VIT_NAMES = VIT_LAYER.within("encoder/layers", "encoder.layer.{}") | ParamMap(
    {
        "class_token": "embeddings.cls_token",
        "position_embedding": "embeddings.position_embeddings",
        "patch_embedding": Name("embeddings.patch_embeddings.projection", CONVOLUTION),
        "final_norm": "layernorm",
    }
)
CLIP_LAYER = ParamMap(
    {
        "self_attention_norm": "layer_norm1",
        "self_attention/query": "self_attn.q_proj",
        "self_attention/key": "self_attn.k_proj",
        "self_attention/value": "self_attn.v_proj",
        "self_attention/out": "self_attn.out_proj",
        "mlp_norm": "layer_norm2",
        "mlp_in": "mlp.fc1",
        "mlp_out": "mlp.fc2",
    }
)
CLIP_NAMES = CLIP_LAYER.within("encoder/layers", "encoder.layers.{}") | ParamMap(
    {
        "class_token": Name("embeddings.class_embedding", TOKEN),
        "position_embedding": Name("embeddings.position_embedding.weight", WITHOUT_BATCH),
        "patch_embedding": Name("embeddings.patch_embedding", CONVOLUTION),
        "embedding_norm": "pre_layrnorm",
        "final_norm": "post_layernorm",
    }
)
NOT_VISION = r"text_model\.|(visual|text)_projection\.|logit_|classifier\.|embeddings\.position_ids"


class ViTStyleSettings(PatchTransformerSettings):
    """The base of towers that know a patch's place from what is added to its token alone."""

    patch_dropout: float = Field(0.0, ge=0, lt=1)
    """Share of the patches of each image that pre-training leaves out, drawn anew in every step (FLIP)."""


class ViTSettings(ViTStyleSettings):
    """Dosovitskiy et al. (arXiv 2010.11929)."""

    type: Literal["vit"] = "vit"
    epsilon: Epsilon = 1e-12
    hugging_face: ClassVar = HuggingFace(
        architecture="ViTModel",
        model_types={"vit": ""},
        fields=VISION,
        required=CHANNELS | dict(qkv_bias=True),
        names=VIT_NAMES,
        prefix="vit.",
        ignored=r"pooler\.|classifier\.|decoder\.|embeddings\.(mask_token|position_ids)",
    )

    def build(self, compute: Compute) -> ViTTower:
        return ViTTower(self, compute)


class ClipSettings(ViTStyleSettings):
    """CLIP's vision tower, Radford et al. (arXiv 2103.00020).

    Unlike there, the last norm is of all tokens, as in CCLM.
    """

    type: Literal["clip"] = "clip"
    epsilon: Epsilon = 1e-5
    activation: Activation = "quick_gelu"
    hugging_face: ClassVar = HuggingFace(
        architecture="CLIPVisionModel",
        model_types={"clip_vision_model": "", "clip": "vision_config"},
        fields=VISION,
        required=CHANNELS,
        names=CLIP_NAMES,
        prefix="vision_model.",
        keeps_prefix=True,
        ignored=NOT_VISION,
        last_norm="post_layernorm",
    )

    def build(self, compute: Compute) -> ViTTower:
        return ViTTower(self, compute, patch_bias=False, norm_first=True)


class SiglipSettings(ViTStyleSettings):
    """SigLIP's vision tower without its pooling head, Zhai et al. (arXiv 2303.15343).

    The mean of the patch tokens is the pooled token.
    """

    type: Literal["siglip"] = "siglip"
    activation: Activation = "gelu_tanh"
    hugging_face: ClassVar = HuggingFace(
        architecture="SiglipVisionModel",
        model_types={"siglip_vision_model": "", "siglip": "vision_config"},
        fields=VISION,
        required=CHANNELS,
        written=dict(vision_use_head=False),
        names=CLIP_NAMES,
        prefix="vision_model.",
        keeps_prefix=True,
        ignored=rf"{NOT_VISION}|head\.",
        pooled_mean=True,
    )

    def build(self, compute: Compute) -> ViTTower:
        return ViTTower(self, compute, class_token=False)


class ViTTower(VisualTower):
    """Images to token states, as `ViTModel` of Hugging Face computes them.

    Attributes:
      patch_bias: whether the embedding of patches has a bias.
      norm_first: normalises the tokens that enter the encoder.
      class_token: without it, the mean of the patch tokens is the pooled token.
    """

    patch_bias: bool = True
    norm_first: bool = False
    class_token: bool = True

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch height width 3"], deterministic: bool = True
    ) -> Float[Array, "batch tokens width"]:
        x = self.embed_patches(images, self.patch_bias)
        if self.class_token:
            x = self.prepend_class_token(x)
        positions = self.param("position_embedding", TOKEN_INIT, (1, *x.shape[1:]))
        x = x + positions.astype(x.dtype)
        if (rate := self.settings.patch_dropout) and not deterministic:
            first = int(self.class_token)
            kept = drop_patches(x[:, first:], rate, self.make_rng("dropout"))
            x = jnp.concatenate([x[:, :first], kept], axis=1)
        x = self.norm("embedding_norm")(x) if self.norm_first else x
        x = nn.Dropout(self.compute.dropout)(x, deterministic=deterministic)
        x = self.norm("final_norm")(self.stack()(x, deterministic=deterministic))
        return x if self.class_token else prepend_mean(x)


def drop_patches(
    x: Float[Array, "batch patches width"], rate: float, key: PRNGKeyArray
) -> Float[Array, "batch kept width"]:
    """A random subset of each row's patches, in their order: a share of 1 - rate, at least one.

    Li et al., "Scaling Language-Image Pre-training via Masking" (arXiv 2212.00794), section 3.
    """
    kept = max(1, round((1 - rate) * x.shape[1]))
    places = jnp.argsort(jax.random.bits(key, x.shape[:2]), axis=1)[:, :kept]
    return jnp.take_along_axis(x, jnp.sort(places, axis=1)[..., None], axis=1)
