"""The demo's configuration and other files of configs/, shrunk until a step takes milliseconds."""

import importlib.util
import io
import pathlib

from rich.console import Console

from rc3_jax.models.towers import visual_settings
from rc3_jax.stored_config import save_config
from rc3_jax.training.checkpoint import save_params
from rc3_jax.training.run import prepare_run
from rc3_jax.training.state import initial_params

ROOT = pathlib.Path(__file__).parents[1]


def quiet() -> Console:
    """A console whose output nobody sees."""
    return Console(file=io.StringIO(), width=200)


def load_config(name: str, argument: str = ""):
    """`configs/<name>.py` as the command line reads it."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "configs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(argument)


def with_tower(config):
    """The configuration with the typed settings of its tower, which rows of regions read."""
    with config.ignore_type():
        config.model.patch = visual_settings(config.model.patch)
    return config


SIZES = dict(width=16, heads=2, mlp_width=32)


def shrink(config):
    """Same structure, smallest sizes; 16 rows, which RC³ has as 8 strict, 4 weak and 4 parallel."""
    cclm = config.system == "cclm"
    depth = 1 if cclm else 2
    config.steps, config.batch_size = 4, 16
    config.data.max_length = 24
    config.data.parallel_max_length = 28 if config.data.parallel_max_length else None
    config.data.parallel_max_masked = None
    config.data.tokenizer.update(vocab_size=3000, texts=2000)
    config.data.regions.per_image = 2
    config.data.update(threads=2, prefetch=2)
    config.model.text.update(SIZES, depth=depth, max_positions=32)
    if config.model.patch.type == "swin":
        config.model.patch.update(image_size=32, patch=4, width=8, depths=(1, 2), heads=(1, 2))
        config.model.patch.window = 2
    else:
        config.model.patch.update(SIZES, depth=depth, image_size=32, patch=8)
    config.model.roi.depth = 1
    config.model.fusion.depth = 1
    config.model.projection_size = 8
    if not cclm:
        # So that the first step has all terms, and each trains all that it reads.
        config.objective.update(weak_start=0.0, weak_gradient="all")
    config.model.update(dtype="float32", dropout=0.0, unroll=1)
    config.evaluation.update(every=0, batch_size=8, images=8, rerank=0)
    config.evaluation.dependence_rows = 0 if cclm else 8
    config.checkpoint.every = 2
    config.log_every = 1
    return config


OTHER_TERMS = ("xtcl", "xvtcl", "xvtcl_weak", "itm", "mclm")


def itc_alone(config):
    """RC³ without its other terms, whose step is compiled in a third of the time."""
    config.objective.weights.update({term: 0.0 for term in OTHER_TERMS})
    return config


def tiny_cclm(regions: int = 1):
    """The CCLM demo on generated scenes, shrunk: 8 captioned, 4 parallel and 4 region rows."""
    config = shrink(load_config("cclm_demo", f"regions={regions}"))
    config.data.sources.scenes.update(captioned=64, region=64, parallel=64)
    return config


def tiny_config(tower: str = "vit"):
    """The RC³ demo on generated scenes, shrunk."""
    config = shrink(load_config("rc3_demo", f"tower={tower}"))
    config.data.sources.scenes.update(strict=64, weak=64, parallel=64)
    config.objective.regularizer = ("weighted", "hinge")  # so that both kinds of form are tried
    config.objective.scales.hinge = 10.0
    return config


def write_pretrained(config, folder: pathlib.Path) -> pathlib.Path:
    """The folder, with a model as a run of that configuration begins."""
    folder.mkdir(parents=True, exist_ok=True)
    run = prepare_run(config)
    save_params(folder, initial_params(run.model, run.config))
    save_config(run.config, folder / "config.json")
    (folder / "tokenizer.json").write_text(run.tokenizer.to_json())
    return folder
