"""Settings of an RC³ model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PretrainedConfig

SCALARS = ("temperature_image_text", "temperature_text_text", "temperature_fused")


class RC3Config(PretrainedConfig):
    """The settings of the model's parts.

    Attributes:
      model: nested settings: `text`, `patch`, `roi`, `fusion`, `projection_size`, `readout`,
        `dropout`, and the `image_mean` and `image_std` that images are normalised with.
      towers: settings of the `text` and `patch` models of transformers, and `readout`, which says
        how the patch tower's states are read.
      max_length: token ids of a text in training.
      scalars: names of the learned temperatures, and of the biases of a sigmoid contrast.
    """

    model_type = "rc3"
    # Declared, since transformers otherwise takes it for a setting of generation, and drops it.
    max_length: int | None = None

    def __init__(
        self,
        vocab_size: int = 0,
        model: dict[str, Any] | None = None,
        towers: dict[str, Any] | None = None,
        max_length: int | None = None,
        scalars: Sequence[str] = SCALARS,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.vocab_size, self.max_length = vocab_size, max_length
        self.model, self.towers = model or {}, towers or {}
        self.scalars = list(scalars)
