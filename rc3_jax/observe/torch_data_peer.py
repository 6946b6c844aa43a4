"""Reading pictures as PyTorch's users do, to compare speeds with: Pillow in a DataLoader."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageEnhance
from torch.utils.data import DataLoader, Dataset

from rc3_jax.config import PretrainSettings
from rc3_jax.data.augment import random_crop
from rc3_jax.data.record import ImageLike

_CHANGES = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)


class Pictures(Dataset):
    """The pictures of records, changed as `augment` does, step by step as in torchvision: crop and
    resize (bicubic), brightness, contrast, saturation, mirror.

    Args:
      given: the image and name of each record.
      batch: number of pictures that are joined in one array.
    """

    def __init__(
        self, given: Sequence[tuple[ImageLike | None, str]], config: PretrainSettings, batch: int
    ):
        torch.set_num_threads(1)
        self._given, self._batch = given, batch
        self._size, self._changes = config.model.patch.image_size, config.data.image
        self._rng = np.random.default_rng(0)

    def load(self) -> list[torch.Tensor]:
        """Every picture once, uint8 `[batch, size, size, 3]`."""
        return list(DataLoader(self, self._batch))

    def __len__(self) -> int:
        return len(self._given)

    def __getitem__(self, place: int) -> torch.Tensor:
        image: Any = self._given[place][0]
        image = image() if callable(image) else image
        image = io.BytesIO(image) if isinstance(image, bytes) else image
        drawn = isinstance(image, np.ndarray)
        picture = Image.fromarray(image) if drawn else Image.open(image).convert("RGB")
        crop = random_crop(*picture.size, self._rng, self._changes.crop_scale)
        square = (self._size, self._size)
        picture = picture.resize(square, Image.Resampling.BICUBIC, box=crop)
        for change in _CHANGES:
            factor = 1 + self._changes.jitter * self._rng.uniform(-1, 1)
            picture = change(picture).enhance(factor)
        if self._changes.flip and self._rng.random() < 0.5:
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return torch.from_numpy(np.array(picture))
