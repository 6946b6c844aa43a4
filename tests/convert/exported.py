"""Tiny models of random parameters in folders of runs, exported, for the tests of conversion."""

from __future__ import annotations

import functools
import io
import json
import pathlib
from typing import NamedTuple

import jax
import ml_collections
import numpy as np
import sentencepiece

from rc3_jax.convert.torch_export import to_torch
from rc3_jax.data.tokenizer import PAD_ID, Tokenizer, load_tokenizer, train_tokenizer
from rc3_jax.models.towers import TOWERS
from rc3_jax.scenes.languages import LANGUAGES
from rc3_jax.scenes.source import SceneRecords
from rc3_jax.systems import abstract_params
from rc3_jax.training.checkpoint import save_params
from tests.tiny import tiny_config

BATCH, LENGTH, MAX_LENGTH, REGIONS, FEATURE_SIZE = 4, 9, 40, 3, 5

SIZES = {"image_size", "patch", "width", "depth", "heads", "mlp_width"}


class Exported(NamedTuple):
    """A model in the folder of a run, its parameters, and the folder that it is exported to."""

    run: pathlib.Path
    params: dict
    config: ml_collections.ConfigDict
    folder: pathlib.Path


def scene_captions(split: str, count: int) -> dict[str, list[str]]:
    """Captions of generated scenes by language."""
    records = SceneRecords("retrieval", split, count, seed=0)
    return {code: [record.texts[code][0] for record in records] for code in LANGUAGES}


@functools.cache
def tiny_tokenizer() -> Tokenizer:
    captions = scene_captions("train", 40)
    return train_tokenizer([text for code in captions for text in captions[code]], 500, MAX_LENGTH)


def from_sentencepiece(texts, vocab_size: int, folder, max_length: int = MAX_LENGTH) -> Tokenizer:
    """XLM-R's own kind: its SentencePiece settings, loaded by transformers."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        vocab_size=vocab_size,
        model_type="unigram",
        unk_id=0,
        bos_id=1,
        eos_id=2,
        num_threads=1,
        minloglevel=2,
    )
    (folder / "some.model").write_bytes(model.getvalue())
    return load_tokenizer(str(folder / "some.model"), max_length)


def tiny_settings(patch: dict | None = None, roi: dict | None = None, **model):
    """The configuration of a tiny run; `patch` and `roi` change parts of its model."""
    config = tiny_config()
    if patch:
        schema = TOWERS[patch["type"]]
        sizes = {
            k: v for k, v in config.model.patch.items() if k in SIZES & schema.model_fields.keys()
        }
        config.model.patch = schema.parse({**sizes, **patch}).config_dict()
    config.model.text.max_positions = MAX_LENGTH + 2
    config.model.roi.update(regions=REGIONS, feature_size=FEATURE_SIZE)
    config.model.roi.update(roi or {})
    config.model.update(image_mean=(0.4, 0.5, 0.6), image_std=(0.2, 0.3, 0.25))
    config.model.update(model)
    config.data.max_length = MAX_LENGTH
    return config


def tiny_folder(
    folder: pathlib.Path, config=None, seed: int = 0, tokenizer: Tokenizer | None = None
) -> dict:
    """Writes parameters, settings and vocabulary; returns the parameters.

    Every parameter is random, norms and biases too; factors of norms and temperatures are around 1.
    """
    config, tokenizer = config or tiny_settings(), tokenizer or tiny_tokenizer()
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        name = path[-1].key
        mean = float(name.endswith("scale") or name.startswith("temperature"))
        return rng.normal(mean, 0.2, leaf.shape).astype(np.float32)

    has_bias = config.objective.contrast == "sigmoid"
    shapes = abstract_params("rc3", config.model, tokenizer.vocab_size, has_bias=has_bias)
    params = jax.tree_util.tree_map_with_path(draw, shapes)
    folder.mkdir(parents=True)
    save_params(folder, params)
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    (folder / "tokenizer.json").write_text(tokenizer.to_json())
    return params


def export_tiny(folder: pathlib.Path, config=None, **options) -> Exported:
    config = config or tiny_settings()
    params = tiny_folder(folder / "run", config)
    to_torch(folder / "run", folder / "exported", **options)
    return Exported(folder / "run", params, config, folder / "exported")


def random_inputs(model) -> tuple[dict, np.ndarray]:
    """Rows with and without patches, regions and features; texts with and without padding."""
    rng = np.random.default_rng(6)
    size, regions = model.patch.image_size, model.roi.regions
    rows = {
        "image": rng.integers(0, 256, (BATCH, size, size, 3)).astype(np.uint8),
        "use_patches": np.array([True, True, not regions, True]),
    }
    if regions:
        corners = np.sort(rng.random((BATCH, regions, 2, 2)), axis=2)
        features = rng.normal(size=(BATCH, regions, FEATURE_SIZE))
        rows |= {
            "region_features": features.astype(np.float32),
            "region_boxes": corners.reshape(BATCH, regions, 4).astype(np.float32),
            "region_mask": np.array([[1, 1, 1], [0, 0, 0], [1, 1, 0], [1, 0, 0]], bool),
            "has_features": np.array([True, True, False, False]),
            "use_regions": np.array([True, True, True, False]),
        }
    ids = rng.integers(4, tiny_tokenizer().vocab_size, (BATCH, LENGTH)).astype(np.int32)
    for row, length in enumerate((LENGTH, 5, 2, 7)):
        ids[row, length:] = PAD_ID
    return rows, ids
