"""Families of towers on Hugging Face: names of their tensors, and what `config.json` says of them.

`names.py` has the tables of XLM-R and ViT. Files of transformers 4 and 5 differ in their prefixes
alone; `from_pretrained` of both reads what a family's `saved_prefix` makes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from rc3_jax.convert.names import VIT, XLM_ROBERTA, Layers, Row, Table
from rc3_jax.convert.vision_names import BEIT_LAYER, BEIT_OUTER, BEIT_SAVED_LAYER

CLIP_LAYER = (
    Row("norm", "self_attention_norm", "layer_norm1"),
    Row("dense", "self_attention/query", "self_attn.q_proj"),
    Row("dense", "self_attention/key", "self_attn.k_proj"),
    Row("dense", "self_attention/value", "self_attn.v_proj"),
    Row("dense", "self_attention/out", "self_attn.out_proj"),
    Row("norm", "mlp_norm", "layer_norm2"),
    Row("dense", "mlp_in", "mlp.fc1"),
    Row("dense", "mlp_out", "mlp.fc2"),
)
CLIP_LAYERS = (Layers("encoder/layers/", "encoder.layers.{}.", CLIP_LAYER),)
# Of whole models: the text tower, projections and scalars.
NOT_VISION = ("text_model.", "visual_projection.", "text_projection.", "logit_", "classifier.")

CLIP_VISION = Table(
    prefix="vision_model.",
    ignored=(*NOT_VISION, "embeddings.position_ids"),
    outer=(
        Row("token", "class_token", "embeddings.class_embedding"),
        Row("positions", "position_embedding", "embeddings.position_embedding"),
        Row("patch_kernel", "patch_embedding", "embeddings.patch_embedding"),
        Row("norm", "embedding_norm", "pre_layrnorm"),
        Row("norm", "final_norm", "post_layernorm"),
    ),
    layers=CLIP_LAYERS,
)

SIGLIP_VISION = Table(
    prefix="vision_model.",
    ignored=(*NOT_VISION, "embeddings.position_ids", "head."),
    outer=(
        Row("positions", "position_embedding", "embeddings.position_embedding"),
        Row("patches", "patch_embedding", "embeddings.patch_embedding"),
        Row("norm", "final_norm", "post_layernorm"),
    ),
    layers=CLIP_LAYERS,
)

BEIT = Table(
    prefix="beit.",
    ignored=(
        "embeddings.mask_token",
        "classifier.",
        "lm_head.",
        "decode_head.",
        "auxiliary_head.",
        "fpn",
    ),
    outer=(
        Row("array", "class_token", "embeddings.cls_token"),
        Row("patches", "patch_embedding", "embeddings.patch_embeddings.projection"),
        Row("norm", "final_norm", "pooler.layernorm"),
    ),
    layers=(
        Layers(
            "encoder/layers/",
            "encoder.layer.{}.",
            (
                Row("norm", "self_attention_norm", "layernorm_before"),
                Row(
                    "array",
                    "relative_positions",
                    "attention.attention.relative_position_bias.relative_position_bias_table",
                ),
                Row("dense", "self_attention/query", "attention.attention.query"),
                Row("kernel", "self_attention/key", "attention.attention.key"),
                Row("dense", "self_attention/value", "attention.attention.value"),
                Row("dense", "self_attention/out", "attention.output.dense"),
                Row("array", "self_attention_scale", "lambda_1"),
                Row("norm", "mlp_norm", "layernorm_after"),
                Row("dense", "mlp_in", "intermediate.dense"),
                Row("dense", "mlp_out", "output.dense"),
                Row("array", "mlp_scale", "lambda_2"),
            ),
        ),
    ),
)

BEIT_V2 = Table(
    prefix="",
    # `cls_pt_layers`: what the class token goes through in pre-training, and nothing else does.
    ignored=("mask_token", "head.", "lm_head.", "cls_pt_layers."),
    outer=BEIT_OUTER,
    layers=(Layers("encoder/layers/", BEIT_SAVED_LAYER, BEIT_LAYER),),
)
"""BEiT-v2 as its authors and timm store it."""

MASKED_LM = Table(
    prefix="",
    ignored=(),
    outer=(
        Row("dense", "masked_lm_head/hidden", "lm_head.dense"),
        Row("norm", "masked_lm_head/hidden_norm", "lm_head.layer_norm"),
        Row("array", "word_bias", "lm_head.bias"),
    ),
    layers=(),
)
"""XLM-R's head; it predicts words with the word embeddings."""


class BeitNames(NamedTuple):
    """How a layout of BEiT names what not every checkpoint has.

    Attributes:
      layer: what the names of a layer begin with, `{}` for its number.
      table: of a layer's relative positions.
      shared: the same table for all layers.
      scales: of what the parts of a layer add.
      norms: of all tokens, where no pooler has a norm of the patch tokens; and our name of it.
      absolute: a table of absolute positions.
    """

    layer: str
    table: str
    shared: str
    scales: tuple[str, str]
    norms: tuple[str, str]
    absolute: str


TABLE = "relative_position_bias_table"
INDEX = "relative_position_index"
"""How the names of stored indices of relative positions end, which we compute."""
BEIT_NAMES = BeitNames(
    "encoder.layer.{}.",
    f"attention.attention.relative_position_bias.{TABLE}",
    f"encoder.relative_position_bias.{TABLE}",
    ("lambda_1", "lambda_2"),
    ("layernorm.", "pooler.layernorm."),
    "embeddings.position_embeddings",
)
BEIT_V2_NAMES = BeitNames(
    BEIT_SAVED_LAYER,
    f"attn.{TABLE}",
    f"rel_pos_bias.{TABLE}",
    ("gamma_1", "gamma_2"),
    ("norm.", "fc_norm."),
    "pos_embed",
)


class Family(NamedTuple):
    """A kind of model.

    Attributes:
      part: `text` or `patch`.
      type: of the tower, as `model.patch.type`; the model_type of a text tower.
      table: names of the tensors.
      architecture: the class of transformers that holds the tower alone.
      saved_type: the model_type of that class.
      saved_prefix: what both versions of transformers read before the names of that class.
      defaults: of `config.json`, which files of transformers leave out in nested settings.
      required: key → the only value with which our tower computes the same.
      extra: of `config.json` for the tower alone.
    """

    part: str
    type: str
    table: Table
    architecture: str
    saved_type: str
    saved_prefix: str
    defaults: Mapping[str, Any]
    required: Mapping[str, Any] = {}
    extra: Mapping[str, Any] = {}


_BASE = dict(hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072)
_TEXT = _BASE | dict(
    vocab_size=30522,
    max_position_embeddings=512,
    hidden_act="gelu",
    layer_norm_eps=1e-12,
)
_VISION = _BASE | dict(
    image_size=224, patch_size=16, num_channels=3, hidden_act="gelu", layer_norm_eps=1e-12
)
_CLIP = _VISION | dict(patch_size=32, hidden_act="quick_gelu", layer_norm_eps=1e-5)
_SIGLIP = _VISION | dict(hidden_act="gelu_pytorch_tanh", layer_norm_eps=1e-6)
_BEIT = _VISION | dict(
    layer_scale_init_value=0.1,
    drop_path_rate=0.1,
    use_absolute_position_embeddings=False,
    use_relative_position_bias=False,
    use_shared_relative_position_bias=False,
    use_mean_pooling=True,
)
_CHANNELS = dict(num_channels=3)

FAMILIES = {
    "xlm-roberta": Family(
        "text",
        "xlm-roberta",
        XLM_ROBERTA,
        "XLMRobertaModel",
        "xlm-roberta",
        "",
        _TEXT,
        dict(pad_token_id=1, position_embedding_type="absolute", is_decoder=False),
        dict(bos_token_id=0, pad_token_id=1, eos_token_id=2, position_embedding_type="absolute"),
    ),
    "vit": Family(
        "patch",
        "vit",
        VIT,
        "ViTModel",
        "vit",
        "",
        _VISION,
        _CHANNELS | dict(qkv_bias=True),
        dict(qkv_bias=True),
    ),
    "clip": Family(
        "patch",
        "clip",
        CLIP_VISION,
        "CLIPVisionModel",
        "clip_vision_model",
        "vision_model.",
        _CLIP,
        _CHANNELS,
    ),
    "siglip": Family(
        "patch",
        "siglip",
        SIGLIP_VISION,
        "SiglipVisionModel",
        "siglip_vision_model",
        "vision_model.",
        _SIGLIP,
        _CHANNELS,
        dict(vision_use_head=False),
    ),
    "beit": Family(
        "patch",
        "beit",
        BEIT,
        "BeitModel",
        "beit",
        "",
        _BEIT,
        _CHANNELS | dict(use_absolute_position_embeddings=False),
        dict(
            use_absolute_position_embeddings=False,
            use_relative_position_bias=True,
            use_shared_relative_position_bias=False,
            use_mean_pooling=True,
        ),
    ),
}
"""model_type → family; `required` counts where a key is there, and defaults where it is not."""
FAMILIES |= {f"{name}_vision_model": FAMILIES[name] for name in ("clip", "siglip")}

ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "quick_gelu": "quick_gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
}
"""`hidden_act` → ours; the first name of each is the one that is written."""
