"""The demo's configuration and other files of configs/, shrunk until a step takes milliseconds."""

import importlib.util
import pathlib

ROOT = pathlib.Path(__file__).parents[1]


def load_config(name: str, argument: str = ""):
    """`configs/<name>.py` as the command line reads it."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "configs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(argument)


def shrink(config):
    """Same structure, smallest sizes; 16 rows as 8 strict, 4 weak and 4 parallel."""
    config.steps = 4
    config.batch_size = 16
    tower = dict(width=16, depth=2, heads=2, mlp_width=32)
    config.data.max_length = 24
    config.data.tokenizer.update(vocab_size=3000, texts=2000)
    config.data.update(threads=2, prefetch=2)
    config.model.text.update(tower, max_positions=32)
    config.model.patch.update(tower, image_size=32, patch=8)
    config.model.roi.update(depth=1)
    config.model.fusion.depth = 1
    config.model.projection_size = 8
    config.model.update(dtype="float32", dropout=0.0, unroll=1)
    config.evaluation.update(every=0, batch_size=8, images=8, dependence_rows=8)
    config.checkpoint.every = 2
    config.log_every = 1
    return config


def shrink_cclm(config):
    """Same structure, smallest sizes; 16 rows."""
    config.steps, config.batch_size = 4, 16
    config.data.max_length = 24
    config.data.parallel_max_length = config.data.parallel_most_masked = None
    config.data.tokenizer.update(vocab_size=3000, texts=2000)
    config.data.update(threads=2, prefetch=2)
    config.data.regions.update(per_image=2, grid=4)
    config.model.text.update(width=16, depth=1, heads=2, mlp_width=32, max_positions=32)
    config.model.patch.update(image_size=32, patch=4, width=8, depths=(1, 2), heads=(1, 2))
    config.model.patch.window = 2
    config.model.fusion.depth = 1
    config.model.projection_size = 8
    config.model.update(dtype="float32", dropout=0.0)
    config.evaluation.update(every=0, batch_size=8, images=8)
    config.checkpoint.every = 2
    config.log_every = 1
    return config


def tiny_cclm(regions: int = 1):
    """The CCLM demo on generated scenes, shrunk: 8 captioned, 4 parallel and 4 region rows."""
    config = shrink_cclm(load_config("cclm_demo", f"regions={regions}"))
    config.data.sources.scenes.update(captioned=64, region=64, parallel=64)
    return config


def tiny_config():
    """The demo on generated scenes, shrunk."""
    config = shrink(load_config("rc3_demo"))
    config.data.sources.scenes.update(strict=64, weak=64, parallel=64)
    return config
