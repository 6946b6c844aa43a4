"""CCLM small enough for a laptop, on generated scenes or on photographs.

    python launch/train.py --config=configs/cclm_demo.py
    python launch/train.py --config=configs/cclm_demo.py:regions=1
    python launch/train.py --config=configs/cclm_demo.py:root=/data/flickr8k,parallel=/data/multi30k

On scenes, pictures have captions in every language, and parallel sentences join each to English.
With `regions` a quarter of a batch is parts of pictures, as CCLM-4M trains. `root` and `parallel` are
as in configs/rc3_flickr.py.
"""

import pathlib

from rc3_jax.config import parse_argument
from rc3_jax.config_cclm import cclm_config
from rc3_jax.scenes.source import ScenesSource
from rc3_jax.settings import ConfigError


def get_config(argument: str = ""):
    chosen = parse_argument(argument, root="", parallel="", regions=0, steps=0, batch=0)
    config = cclm_config("cclm_3m")
    config.name = "cclm_flickr" if chosen.root else "cclm_demo"
    if chosen.root:
        _photographs(config, pathlib.Path(chosen.root), pathlib.Path(chosen.parallel))
    else:
        _scenes(config)
    config.steps = chosen.steps or config.steps
    config.batch_size = chosen.batch or config.batch_size
    if chosen.regions and chosen.root:
        raise ConfigError("regions=1: the photographs have no regions with captions; leave it out")
    if chosen.regions:
        config.batch_mix = dict(config.batch_mix, captioned=2.0, region=1.0)
    config.model.text.position_offset = 2
    config.model.fusion.depth = 1
    config.model.update(dtype="float32", dropout=0.0)
    config.model.patch.drop_path = 0.0
    config.model.update(image_mean=(0.5, 0.5, 0.5), image_std=(0.5, 0.5, 0.5))
    config.objective.weights.image.contrast = 5.0  # images and words are to meet early
    # At such rates the temperature would fall to its floor.
    groups = config.optimizer.lr_multipliers
    groups.new.parameters = tuple(p for p in groups.new.parameters if p != "temperature")
    groups.temperature = dict(factor=0.05, parameters=("temperature",))
    config.optimizer.warmup = 0.05
    config.log_every = 20
    return config


def _scenes(config) -> None:
    config.steps, config.batch_size = 1000, 64
    config.batch_mix = dict(config.batch_mix, captioned=3.0, parallel=1.0)
    scenes = ScenesSource(captioned=200_000, region=200_000, parallel=1000)
    config.data.sources = dict(scenes=scenes.config_dict())
    config.data.threads = 1  # scenes are drawn in Python, whose threads wait for one another
    config.data.max_length = 60
    config.data.image.crop_scale = (0.9, 1.0)  # captions name places and sizes
    config.data.tokenizer.update(vocab_size=600, texts=4000)
    config.data.regions.per_image = 3
    config.model.text.update(width=64, depth=2, heads=2, mlp_width=256, max_positions=62)
    config.model.patch.update(
        image_size=64, patch=4, width=32, depths=(2, 2), heads=(2, 2), window=8
    )
    config.model.projection_size = 64
    config.optimizer.lr = 2e-3
    config.evaluation.update(every=250, batch_size=64, images=256, rerank=8)
    config.checkpoint.every = 1000


def _photographs(config, root: pathlib.Path, parallel: pathlib.Path) -> None:
    config.steps, config.batch_size = 400, 256
    config.batch_mix = dict(config.batch_mix, captioned=3.0, parallel=1.0)
    config.data.sources = dict(
        flickr=dict(
            type="folder",
            captions=str(root / "captions.jsonl.gz"),
            root=str(root),
            train_split="train",
            heldout_split="val",
        ),
        multi30k=dict(
            type="parallel",
            files={code: str(parallel / f"train.{code}.gz") for code in ("en", "de", "fr", "cs")},
        ),
    )
    config.data.update(max_length=48, parallel_max_length=60, max_masked=5)
    config.data.image.crop_scale = (0.6, 1.0)
    config.data.tokenizer.update(vocab_size=8000, texts=120_000)
    config.model.text.update(width=128, depth=2, heads=4, mlp_width=512, max_positions=62)
    config.model.patch.update(
        image_size=96, patch=8, width=64, depths=(2, 2), heads=(2, 4), window=6
    )
    config.model.projection_size = 128
    config.optimizer.update(lr=1e-3, weight_decay=0.1)
    config.evaluation.update(every=100, batch_size=64, rerank=8)
    config.checkpoint.every = 500
