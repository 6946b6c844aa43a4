"""Settings of an RC³ model."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig


class RC3Config(PretrainedConfig):
    """The vocabulary's size, and the sizes and types of the model's parts.

    Attributes:
      model: nested settings: `text`, `patch`, `roi`, `fusion`, `projection_size`, `readout`,
        `dropout`, and the `image_mean` and `image_std` that images are normalised with.
      max_length: token ids of a text in training.
    """

    model_type = "rc3"
    # Declared, for transformers otherwise takes it for a setting of generation, and drops it.
    max_length: int | None = None

    def __init__(
        self,
        vocab_size: int = 0,
        model: dict[str, Any] | None = None,
        max_length: int | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.vocab_size = vocab_size
        self.model = model or {}
        self.max_length = max_length
