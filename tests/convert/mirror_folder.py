"""A tiny model in a folder as it is exported, with the PyTorch mirror."""

from __future__ import annotations

import pathlib
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict
from safetensors.numpy import save_file

from rc3_jax.convert.mirror_names import to_mirror
from rc3_jax.convert.torch_export import write_companions
from rc3_jax.data.scenes import SceneSource
from rc3_jax.data.tokenizer import PAD_ID, Tokenizer, train_tokenizer
from tests.tiny import tiny_config

BATCH, LENGTH, MAX_LENGTH, REGIONS, FEATURE_SIZE = 4, 9, 40, 3, 5
LANGUAGES = ("en", "de", "fr", "cs", "zh", "ja")


def captions(split: str, count: int) -> list[str]:
    """Of generated scenes, in all languages."""
    records = SceneSource("retrieval", split, count, seed=0)
    return [record.texts[code][0] for record in records for code in LANGUAGES]


def tiny_tokenizer() -> Tokenizer:
    return train_tokenizer(captions("train", 40), 500, MAX_LENGTH)


def tiny_settings(patch, regions=REGIONS, geometry="7d", readout="attention", text_epsilon=None):
    """`config.model` of a tiny model."""
    model = tiny_config().model
    if patch["type"] == "swin":
        del model.patch["heads"], model.patch["depth"], model.patch["mlp_width"]
    model.patch.update(patch)
    model.text.update(epsilon=text_epsilon, max_positions=MAX_LENGTH + 2)
    model.roi.update(regions=regions, feature_size=FEATURE_SIZE, geometry=geometry)
    model.update(readout=readout, image_mean=(0.4, 0.5, 0.6), image_std=(0.2, 0.3, 0.25))
    return model


def write_folder(
    folder: pathlib.Path,
    params: dict,
    config_model: Any,
    vocab_size: int,
    tokenizer_json: str,
    max_length: int,
    max_words: int | None = None,
) -> None:
    """Everything that `AutoModel` and `AutoProcessor` need."""
    folder.mkdir()
    write_companions(folder, config_model, vocab_size, max_length, "float32", max_words)
    (folder / "tokenizer.json").write_text(tokenizer_json, encoding="utf-8")
    leaves = flatten_dict(params, sep="/").items()
    tensors = dict(pair for path, array in leaves for pair in to_mirror(path, array))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def random_params(model, inputs) -> dict:
    """Every parameter random, norms and biases too; their factors and temperatures around 1."""
    rng = np.random.default_rng(5)
    shapes = jax.eval_shape(model.init, jax.random.key(0), *inputs)["params"]

    def draw(path, leaf):
        name = path[-1].key
        mean = float(name.endswith("scale") or name.startswith("temperature"))
        return rng.normal(mean, 0.2, leaf.shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def random_inputs(settings, vocab_size: int) -> tuple[dict, np.ndarray]:
    """Rows with and without patches, regions and features; texts with and without padding."""
    rng = np.random.default_rng(6)
    size, roi = settings.patch.image_size, settings.roi
    rows = {
        "image": rng.integers(0, 256, (BATCH, size, size, 3)).astype(np.uint8),
        "use_patches": np.array([True, True, not roi.regions, True]),
    }
    if roi.regions:
        corners = np.sort(rng.random((BATCH, roi.regions, 2, 2)), axis=2)
        rows |= {
            "region_features": rng.normal(size=(BATCH, roi.regions, FEATURE_SIZE)).astype(
                np.float32
            ),
            "region_boxes": corners.reshape(BATCH, roi.regions, 4).astype(np.float32),
            "region_mask": np.array([[1, 1, 1], [0, 0, 0], [1, 1, 0], [1, 0, 0]], bool),
            "has_features": np.array([True, True, False, False]),
            "use_regions": np.array([True, True, True, False]),
        }
    ids = rng.integers(4, vocab_size, (BATCH, LENGTH)).astype(np.int32)
    for row, length in enumerate((LENGTH, 5, 2, 7)):
        ids[row, length:] = PAD_ID
    return rows, ids
