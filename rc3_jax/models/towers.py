"""Visual towers by name: images to one pooled token and a token for each part of the image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import ml_collections
from jax.sharding import Mesh

from rc3_jax.config import ConfigError, check_choice
from rc3_jax.models.beit import BeitTower
from rc3_jax.models.layers import ACTIVATIONS, REMAT_POLICIES, Stack
from rc3_jax.models.patch import PatchTower
from rc3_jax.models.swin import SwinTower

DTYPES = ("float32", "bfloat16")


class Style(NamedTuple):
    """What a type of tower computes with unless `config.model.patch` says otherwise.

    Attributes:
      epsilon: of the norms.
      activation: of the feed-forward layers, one of `ACTIVATIONS`.
    """

    epsilon: float
    activation: str


STYLES = {
    "vit": Style(1e-12, "gelu"),
    "clip": Style(1e-5, "quick_gelu"),
    "siglip": Style(1e-6, "gelu_tanh"),
    "beit": Style(1e-6, "gelu"),
    "swin": Style(1e-5, "gelu"),
}
TYPES = tuple(STYLES)

VisualTower = PatchTower | SwinTower | BeitTower
"""Called with normalised pixels `[batch, image_size, image_size, 3]` (and `deterministic`), it
returns tokens `[batch, 1 + grid * grid, width]`: the one for the whole image first, the others row
by row."""


def check_model(config: ml_collections.ConfigDict) -> None:
    """Raises ConfigError for settings that all models have and that cannot be."""
    check_choice("model.dtype", config.dtype, DTYPES)
    check_choice("model.remat", config.remat, REMAT_POLICIES)


def check_heads(name: str, part: Mapping[str, Any], mesh: Mesh | None) -> None:
    """Raises ConfigError if heads cannot share a width, or devices the heads."""
    if part["width"] % part["heads"]:
        raise ConfigError(
            f"model.{name}.width={part['width']} is not divisible by its heads={part['heads']}"
        )
    tensor = 1 if mesh is None else mesh.shape["tensor"]
    if part["heads"] % tensor:
        raise ConfigError(
            f"model.{name}.heads={part['heads']} cannot be shared by mesh.tensor={tensor} devices"
        )


def check_tower(patch: ml_collections.ConfigDict) -> None:
    """Raises ConfigError for an unknown type of tower, or settings that are another type's."""
    check_choice("model.patch.type", patch.type, TYPES)
    several = patch.type == "swin"
    needed = ("depths", "window", "drop_path") if several else ("depth", "mlp_width")
    needed += ("drop_path",) if patch.type == "beit" else ()
    missing = [name for name in needed if name not in patch]
    if missing or isinstance(patch.heads, tuple | list) != several:
        heads = "one number a stage" if several else "one number"
        raise ConfigError(
            f"model.patch.type={patch.type!r} needs the settings {', '.join(needed)}, and heads as "
            f"{heads}; see docs/configuration.md"
        )


def style_of(patch: Mapping[str, Any]) -> Style:
    """The type's own style, with the settings `epsilon` and `activation` where they are set.

    Raises:
      ConfigError: for an unknown activation, and for another style than its own in a Swin tower.
    """
    own = STYLES[patch["type"]]
    settings = {name: patch.get(name) for name in Style._fields}
    style = own._replace(**{name: x for name, x in settings.items() if x is not None})
    check_choice("model.patch.activation", style.activation, ACTIVATIONS)
    if patch["type"] == "swin" and style != own:
        raise ConfigError(
            f"model.patch.type='swin' computes with epsilon={own.epsilon} and {own.activation!r}; "
            "leave model.patch.epsilon and model.patch.activation unset"
        )
    return style


def build_visual_tower(config: ml_collections.ConfigDict, mesh: Mesh | None = None) -> VisualTower:
    """The tower that `config.patch` describes.

    Args:
      config: `config.model`.
      mesh: see `Stack`.

    Raises:
      ConfigError: for a setting that cannot be.
    """
    patch = config.patch
    check_tower(patch)
    style = style_of(patch)
    common = dict(remat=config.remat, dtype=jnp.dtype(config.dtype), mesh=mesh)
    if patch.type == "swin":
        for stage, heads in enumerate(patch.heads):
            check_heads("patch", dict(width=patch.width * 2**stage, heads=heads), mesh)
        return SwinTower(
            patch.image_size,
            patch.patch,
            patch.width,
            tuple(patch.depths),
            tuple(patch.heads),
            patch.window,
            drop_path=patch.drop_path,
            **common,
        )
    check_heads("patch", patch, mesh)
    if patch.image_size % patch.patch:
        raise ConfigError(
            f"model.patch.image_size={patch.image_size} is not a multiple of "
            f"model.patch.patch={patch.patch}"
        )
    common["unroll"] = config.unroll
    if patch.type == "beit":
        return BeitTower(
            patch.image_size,
            patch.patch,
            patch.width,
            patch.depth,
            patch.heads,
            patch.mlp_width,
            style.epsilon,
            drop_path=patch.drop_path,
            activation=style.activation,
            **common,
        )
    clip = patch.type == "clip"
    encoder = Stack(
        patch.depth,
        patch.heads,
        patch.mlp_width,
        pre_norm=True,
        epsilon=style.epsilon,
        dropout=config.dropout,
        activation=style.activation,
        **common,
    )
    return PatchTower(
        encoder,
        patch.image_size,
        patch.patch,
        patch.width,
        patch_bias=not clip,
        norm_first=clip,
        class_token=patch.type != "siglip",
    )
