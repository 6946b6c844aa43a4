"""The types of visual towers: this is the one list of them."""

from __future__ import annotations

import typing
from typing import Annotated, Any

from pydantic import Field

from rc3_jax.models.beit import BeitSettings
from rc3_jax.models.swin import SwinSettings
from rc3_jax.models.visual import VisualTowerSettings
from rc3_jax.models.vit import ClipSettings, SiglipSettings, ViTSettings
from rc3_jax.settings import check_choice

AnyTower = ViTSettings | ClipSettings | SiglipSettings | BeitSettings | SwinSettings
VisualSettings = Annotated[AnyTower, Field(discriminator="type")]
"""`config.model.patch`."""
TOWERS: dict[str, type[VisualTowerSettings]] = {
    settings.model_fields["type"].default: settings for settings in typing.get_args(AnyTower)
}


def visual_settings(patch: Any) -> VisualTowerSettings:
    """Checks `config.model.patch`, a ConfigDict or a dict, against its type's settings.

    Raises:
      ConfigError: for an unknown type and for invalid settings.
    """
    kind = patch["type"]
    check_choice("model.patch.type", kind, TOWERS)
    return TOWERS[kind].parse(patch, "model.patch")
