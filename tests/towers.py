"""Single towers as `build_rc3` makes them, in float32."""

from rc3_jax.config import default_config
from rc3_jax.models.patch import PatchTower
from rc3_jax.models.rc3 import build_rc3
from rc3_jax.models.text import TextTower


def text_tower(vocab_size: int, **size) -> TextTower:
    return _model(vocab_size, text=size).text


def patch_tower(**size) -> PatchTower:
    return _model(8, patch=size).patch


def _model(vocab_size: int, **sizes):
    config = default_config().model
    config.update(dtype="float32", dropout=0.0, **sizes)
    (size,) = sizes.values()
    for part in ("text", "patch"):
        config[part].update(width=size["width"], heads=size["heads"])
    return build_rc3(config, vocab_size)
