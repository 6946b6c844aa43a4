"""The configuration of CCLM: the published models' sizes and the published recipe.

CCLM.md section 4. The defaults of `CCLMSettings` follow METHOD.md section 3; the settings whose
descriptions say "published" bring back what was published.
"""

from __future__ import annotations

import pathlib

import ml_collections

from rc3_jax.config import CCLMSettings, parse_argument
from rc3_jax.models.base import FusionSettings
from rc3_jax.models.beit import BeitSettings
from rc3_jax.models.cclm import CCLMModelSettings
from rc3_jax.models.text import TextSettings
from rc3_jax.settings import ConfigError, check_choice

_CCLM = CCLMModelSettings()  # Swin-B and every second layer of XLM-R-large
_X2VLM = CCLMModelSettings(
    patch=BeitSettings(),
    text=TextSettings(),
    fusion=FusionSettings(epsilon=1e-12),
    tied_decoder=False,
)
_X2VLM_LARGE = CCLMModelSettings(
    patch=BeitSettings(width=1024, depth=24, heads=16, mlp_width=4096),
    text=TextSettings(width=1024, depth=24, heads=16, mlp_width=4096),
    fusion=FusionSettings(epsilon=1e-12),
    tied_decoder=False,
)
MODELS = {
    "cclm_3m": _CCLM,
    "cclm_4m": _CCLM,
    "cclm_x2vlm_base": _X2VLM,
    "cclm_x2vlm_large": _X2VLM_LARGE,
}
"""`config.model` of the published models."""


PUBLISHED_NO_DECAY = (
    r".*bias",
    r".*relative_positions",
    r"(vision|text|fusion|masked_lm_head)/.*norm/scale",
)
"""`optimizer.no_decay` as published: other tables, the temperature and the norms of the matching and
box head decay too."""


def cclm_model(name: str) -> ml_collections.ConfigDict:
    """`config.model` of a published model, by its name in `MODELS`.

    Raises:
      ConfigError: for an unknown name.
    """
    check_choice("the model", name, MODELS)
    return MODELS[name].config_dict()


def cclm_config(name: str = "cclm_3m") -> ml_collections.ConfigDict:
    """The defaults of CCLM without data sources, for one of `MODELS`.

    Raises:
      ConfigError: for an unknown name.
    """
    config = CCLMSettings(name=name).config_dict()
    config.model = cclm_model(name)
    return config


def published_config(name: str, argument: str) -> ml_collections.ConfigDict:
    """The published recipe of a model on data in the published formats (docs/data.md).

    Args:
      name: one of `MODELS`.
      argument: what follows the config file's colon: `root`, a folder that holds `captions`,
        `parallel` and, for 4M and X²-VLM, `regions`, and `heldout` for evaluation; `vocabulary`,
        by default XLM-R's; `batch`, `steps`, `fsdp`.

    Raises:
      ConfigError: without a root; and for an argument that is not understood.
    """
    x2vlm, regions = "x2vlm" in name, name != "cclm_3m"
    steps = {"cclm_3m": 83_160, "cclm_4m": 146_640}.get(name, 406_614)
    chosen = parse_argument(
        argument,
        root="",
        vocabulary="FacebookAI/xlm-roberta-base",  # the large model has the same one
        batch=(19 if regions else 16) * (60 if x2vlm else 128),
        steps=steps,
        fsdp=1,
    )
    if not chosen.root:
        raise ConfigError(
            f"{name} trains on data of your own and has no data root; name its folder: "
            f"--config=configs/{name}.py:root=/path/to/data (docs/data.md says what it holds). "
            "configs/cclm_demo.py needs no data"
        )
    root = pathlib.Path(chosen.root)
    config = cclm_config(name)
    config.batch_size, config.steps, config.mesh.fsdp = chosen.batch, chosen.steps, chosen.fsdp
    # As many images with regions as published; each brings data.regions.per_image pairs.
    config.batch_mix.update(captioned=8.0, parallel=8.0, region=3.0 * regions)
    config.data.tokenizer.path = chosen.vocabulary
    config.data.update(
        clean_captions=True,
        max_length=30 if x2vlm else 40,
        max_masked=10 if x2vlm else 12,
        parallel_max_length=64,
        parallel_max_masked=16 if x2vlm else 20,
        language_exponent=1.0,
    )
    config.data.image.update(crop_scale=(0.2, 1.0), jitter=0.0, rand_augment=(2, 7))
    published = dict(type="cclm", path=str(root / "captions"), format="captions")
    config.data.sources = dict(
        captions=dict(published, heldout_path=str(root / "heldout")),
        parallel=dict(published, path=str(root / "parallel"), format="parallel"),
    )
    if regions:
        config.data.sources.regions = dict(published, path=str(root / "regions"), format="regions")
    if x2vlm:
        rates = {"cclm_x2vlm_base": (2e-5, 8e-5, 4e-5), "cclm_x2vlm_large": (1e-5, 6e-5, 3e-5)}
        vision, text, rest = rates[name]
        config.optimizer.update(lr=rest, warmup=min(0.5, 1000 / chosen.steps))
        config.optimizer.lr_multipliers.vision = dict(
            factor=vision / rest, parameters=(r"vision/.*",)
        )
        config.optimizer.lr_multipliers.text = dict(factor=text / rest, parameters=(r"text/.*",))
    else:
        config.optimizer.warmup = min(0.5, 2500 / chosen.steps)
    return config
