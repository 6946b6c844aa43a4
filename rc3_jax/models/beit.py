"""BEiT-v2 tower: a vision transformer with relative positions (CCLM.md section 1.9).

Bao et al., "BEiT" (arXiv 2106.08254), Peng et al., "BEiT v2" (arXiv 2208.06366), with the details
of the weights that X²-VLM and CCLM-X²VLM start from.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

import flax.linen as nn
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float, Int
from pydantic import Field

from rc3_jax.models.compute import Compute
from rc3_jax.models.hugging_face import CHANNELS, TIMM_LAYER, VISION, HuggingFace, Tensors
from rc3_jax.models.layers import TOKEN_INIT, Block, Stack, prepend_mean, relative_index
from rc3_jax.models.positions import resize_relative_positions
from rc3_jax.models.visual import PatchTransformerSettings, VisualTower
from rc3_jax.models.vit import VIT_LAYER
from rc3_jax.param_map import CONVOLUTION, Name, ParamMap

LAYERS = "encoder/layers"
TABLE = "relative_position_bias_table"
LAYER_SCALE = 0.1


PUBLISHED_LAYER = TIMM_LAYER | ParamMap(
    {
        "self_attention/query/bias": "attn.q_bias",
        "self_attention/value/bias": "attn.v_bias",
        "self_attention_scale": "gamma_1",
        "mlp_scale": "gamma_2",
    }
)
PUBLISHED_NAMES = PUBLISHED_LAYER.within("encoder/layers", "blocks.{}") | ParamMap(
    {
        "class_token": "cls_token",
        "patch_embedding": Name("patch_embed.proj", CONVOLUTION),
        "final_norm": "fc_norm",
    }
)
"""Names in the files of BEiT-v2's authors, and after `vision_encoder.` in those of CCLM-X²VLM."""
PUBLISHED_IGNORED = r"mask_token|(lm_)?head\.|cls_pt_layers\.|.*relative_position_index"
"""`cls_pt_layers`: what the class token goes through in pre-training alone."""
BLOCK = VIT_LAYER | ParamMap(
    {
        "relative_positions": f"attention.attention.relative_position_bias.{TABLE}",
        "self_attention_scale": "lambda_1",
        "mlp_scale": "lambda_2",
    }
)
NAMES = BLOCK.within("encoder/layers", "encoder.layer.{}") | ParamMap(
    {
        "class_token": "embeddings.cls_token",
        "patch_embedding": Name("embeddings.patch_embeddings.projection", CONVOLUTION),
        "final_norm": "pooler.layernorm",
    }
)


def read_published(
    tensors: Tensors, template: Mapping, config: Any = None
) -> tuple[dict[str, Any], list[str]]:
    """Parameters from a file of BEiT-v2's authors; see `HuggingFace.read`."""
    return _read(PUBLISHED_NAMES, "rel_pos_bias", "norm", tensors, template, False)


def _read_hugging_face(
    tensors: Tensors, template: Mapping, config: Any
) -> tuple[dict[str, Any], list[str]]:
    shared, scaled = "encoder.relative_position_bias", config.layer_scale_init_value > 0
    return _read(NAMES, shared, "layernorm", tensors, template, scaled)


def _read(
    names: ParamMap, shared: str, norm: str, tensors: Tensors, template: Mapping, scaled: bool
) -> tuple[dict[str, Any], list[str]]:
    """Fills in what not every BEiT has.

    A table of relative positions that the layers share becomes each one's, layers without scales
    get factors of 1, and the norm of all tokens stands for a missing norm of the patch tokens.

    Args:
      shared: module of the shared table.
      norm: norm of all tokens.
      scaled: whether the layers must have scales.
    """

    def has(path: str, leaf: str = "") -> bool:
        return names.rows[path].theirs.format(0) + leaf in tensors

    tensors, notes, filled = dict(tensors), [], {}
    wanted = flatten_dict(template, sep="/")
    common = tensors.pop(f"{shared}.{TABLE}", None)
    path = f"{LAYERS}/relative_positions"
    if common is not None:
        notes.append("the layers share a table of relative positions: each gets a copy")
        if not has(path):
            filled[path] = np.zeros(wanted.pop(path).shape, np.float32)
    if not scaled and not has(f"{LAYERS}/mlp_scale"):
        notes.append("the layers have no scales: they are 1")
        for part in ("self_attention", "mlp"):
            scale = f"{LAYERS}/{part}_scale"
            filled[scale] = np.ones(wanted.pop(scale).shape, np.float32)
    if not has("final_norm", ".weight"):
        notes.append(
            f"the norm of the patch tokens is {norm}, which was trained on all tokens; the mean of "
            "the patch tokens stands for the image"
        )
        names = names | ParamMap({"final_norm": norm})
    read = names.to_ours(tensors, unflatten_dict(wanted, sep="/"))
    params = flatten_dict(read, sep="/") | filled
    if common is not None:
        if common.shape != params[path].shape[1:]:
            raise ValueError(f"mis-shaped: {shared}.{TABLE} is {common.shape}")
        params[path] = params[path] + common.astype(np.float32)
    return unflatten_dict(params, sep="/"), notes


class BeitSettings(PatchTransformerSettings):
    """BEiT-v2; the mean of the normalised patch tokens is the pooled token."""

    type: Literal["beit"] = "beit"
    drop_path: float = Field(0.1, ge=0, lt=1)
    """Chance to leave out what a part of the last block adds; it grows linearly from 0 at the first."""
    hugging_face: ClassVar = HuggingFace(
        architecture="BeitModel",
        model_types={"beit": ""},
        fields=VISION | dict(drop_path="drop_path_rate"),
        required=CHANNELS | dict(use_absolute_position_embeddings=False),
        written=dict(use_relative_position_bias=True, use_mean_pooling=True),
        names=NAMES,
        prefix="beit.",
        ignored=(
            r"embeddings\.mask_token|classifier\.|lm_head\.|(decode|auxiliary)_head\.|fpn"
            r"|.*relative_position_index"
        ),
        read=_read_hugging_face,
        last_norm="pooler.layernorm",
        pooled_mean=True,
    )

    @classmethod
    def of_published(cls, tensors: Tensors) -> Self:
        """The sizes in the shapes of `PUBLISHED_NAMES`; a file of BEiT-v2's authors has no others.

        Raises:
          KeyError, StopIteration, ValueError: for tensors that are not those of BEiT-v2.
        """
        width, _, _, patch = tensors["patch_embed.proj.weight"].shape
        rows, heads = next(x for name, x in tensors.items() if name.endswith(TABLE)).shape
        mlp_width, _ = tensors["blocks.0.mlp.fc1.weight"].shape
        depth = len({name.split(".")[1] for name in tensors if name.startswith("blocks.")})
        # Offsets go from 1 - grid to grid - 1 both ways; three rows are the class token's.
        size = (math.isqrt(max(rows - 3, 1)) + 1) // 2 * patch
        sizes = dict(width=width, depth=depth, heads=heads, mlp_width=mlp_width)
        return cls(image_size=size, patch=patch, **sizes)

    def build(self, compute: Compute) -> BeitTower:
        return BeitTower(self, compute)

    def resized(self, params: Mapping[str, Any], image_size: int) -> dict[str, Any]:
        flat, path = flatten_dict(params, sep="/"), f"{LAYERS}/relative_positions"
        grid = image_size // self.patch
        flat[path] = np.stack([resize_relative_positions(x, grid, 3) for x in flat[path]])
        return unflatten_dict(flat, sep="/")


def class_relative_index(grid: int) -> Int[np.ndarray, "tokens tokens"]:
    """`relative_index` of the patches after a class token, which has three last rows of its own.

    In order: from the class token to any patch, from any patch to it, and to itself.
    """
    offsets = (2 * grid - 1) ** 2
    index = np.pad(relative_index(grid), (1, 0))
    index[0, :] = offsets
    index[:, 0] = offsets + 1
    index[0, 0] = offsets + 2
    return index


class BeitBlock(Block):
    """A layer with a learned bias for the offset of each two tokens."""

    grid: int = 14

    def attend(self, y, mask, bias=None):
        shape = ((2 * self.grid - 1) ** 2 + 3, self.heads)
        table = self.param("relative_positions", TOKEN_INIT, shape)
        bias = table[class_relative_index(self.grid)].transpose(2, 0, 1)
        return super().attend(y, mask, bias[None])


class BeitStack(Stack):
    """An encoder of such layers, whose parts are scaled."""

    grid: int = 14

    @nn.nowrap
    def make_block(self, kind: type[Block] = BeitBlock, **more: Any) -> Block:
        options = dict(grid=self.grid, key_bias=False, layer_scale=LAYER_SCALE)
        return super().make_block(kind, **options, **more)


class BeitTower(VisualTower):
    """Images to the mean of their patch tokens and these tokens, as CCLM-X²VLM computes them."""

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch height width 3"], deterministic: bool = True
    ) -> Float[Array, "batch tokens width"]:
        x = self.prepend_class_token(self.embed_patches(images))
        encoder = self.stack(
            BeitStack, dropout=0.0, drop_path=self.settings.drop_path, grid=self.grid
        )
        x = encoder(x, deterministic=deterministic)[:, 1:]
        return prepend_mean(self.norm("final_norm")(x))
