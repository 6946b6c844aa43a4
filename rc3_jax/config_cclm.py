"""The configuration of CCLM: the published models' sizes and the published recipe.

CCLM.md section 4; what differs from the published recipe is the right thing by METHOD.md section 3,
and the settings marked "published" bring back what was published.
"""

from __future__ import annotations

import pathlib

import ml_collections

from rc3_jax.config import ConfigError, check_choice, default_config, parse_argument

SWIN_B = dict(
    type="swin",
    image_size=224,
    patch=4,
    width=128,  # of the first stage; each later one doubles it
    depths=(2, 2, 18, 2),
    heads=(4, 8, 16, 32),
    window=7,
    drop_path=0.1,
)
BEIT_BASE = dict(
    type="beit",
    image_size=224,
    patch=16,
    width=768,
    depth=12,
    heads=12,
    mlp_width=3072,
    drop_path=0.1,
)
HALF_XLM_R_LARGE = dict(width=1024, depth=6, heads=16, mlp_width=4096)
XLM_R_BASE = dict(width=768, depth=12, heads=12, mlp_width=3072)
XLM_R_LARGE = dict(width=1024, depth=24, heads=16, mlp_width=4096)

MODELS = {
    "cclm_3m": dict(patch=SWIN_B, text=HALF_XLM_R_LARGE, epsilon=1e-5, tied_decoder=True),
    "cclm_4m": dict(patch=SWIN_B, text=HALF_XLM_R_LARGE, epsilon=1e-5, tied_decoder=True),
    "cclm_x2vlm_base": dict(patch=BEIT_BASE, text=XLM_R_BASE, epsilon=1e-12, tied_decoder=False),
    "cclm_x2vlm_large": dict(
        patch=BEIT_BASE | dict(width=1024, depth=24, heads=16, mlp_width=4096),
        text=XLM_R_LARGE,
        epsilon=1e-12,
        tied_decoder=False,
    ),
}
"""The published models; `epsilon` is that of the fusion layers' norms."""

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def cclm_model(name: str) -> ml_collections.ConfigDict:
    """`config.model` of a published model, by its name in `MODELS`.

    Raises:
      ConfigError: for an unknown name.
    """
    check_choice("the model", name, MODELS)
    sizes = MODELS[name]
    tied = sizes["tied_decoder"]
    return ml_collections.ConfigDict(
        dict(
            patch=dict(sizes["patch"]),
            text=dict(
                sizes["text"],
                max_positions=514,
                epsilon=1e-5,
                position_offset=0 if tied else 2,  # 0: published in 2022; 2: as XLM-R was trained
            ),
            fusion=dict(depth=6, epsilon=sizes["epsilon"]),
            roi=dict(regions=0, feature_size=2048),  # CCLM has no ROI tower
            projection_size=256,
            tied_decoder=tied,
            dropout=0.1,
            dtype="bfloat16",
            remat="none",
            unroll=1,
            image_mean=CLIP_MEAN,
            image_std=CLIP_STD,
        )
    )


def cclm_config(name: str = "cclm_3m") -> ml_collections.ConfigDict:
    """The defaults of CCLM without data sources, for one of `MODELS`.

    Raises:
      ConfigError: for an unknown name.
    """
    config = default_config()
    config.name = name
    config.system = "cclm"
    config.model = cclm_model(name)
    config.mesh.rules = (*config.mesh.rules, (r"decoder", ("tensor", None)))
    config.shares = dict(captioned=1.0, parallel=1.0, region=0.0, strict=0.0, weak=0.0)
    config.data.regions.grid = visual_grid(config.model.patch)
    config.objective = ml_collections.ConfigDict(
        dict(
            weights=dict(
                # captions: contrast of two captions of one image, where rows have two
                image=dict(contrast=1.0, matching=1.0, masked_lm=1.0, captions=1.0),
                text=dict(contrast=1.0, matching=1.0, masked_lm=1.0),
                region=dict(contrast=1.0, matching=1.0, masked_lm=1.0, box=1.0, giou=1.0),
            ),
            step="summed",  # or "separate": one update each for texts, images, regions (published)
            negatives="global",  # or "local": of matching, from a device's own rows (published)
            negative_floor=0.0,  # added to the chances of negatives (published: 1e-5)
            group_positives=True,  # False: other rows about the same are negatives (published)
            itc_grad_scale=1.0,  # of contrast's features (published: 1 / number of GPUs)
            pairs=dict(transport="gather", tile=512),
        )
    )
    new = (
        r"temperature",
        r"fusion/.*cross_attention.*",
        r"(image|text)_projection/.*",
        r"(matching|box)_head/.*",
    )
    config.optimizer.update(lr=1e-4, warmup=0.03, decay="linear", weight_decay=0.01)
    config.optimizer.rates = dict(new=dict(factor=2.0, parameters=new))
    # Published: everything with a bias or a norm in its name; the norms of the heads decay.
    config.optimizer.no_decay = (
        r".*bias",
        r".*relative_positions",
        r"(vision|text|fusion|masked_lm_head)/.*norm/scale",
    )
    config.evaluation.update(modes=("patches",), dependence_rows=0)
    return config


def visual_grid(patch: ml_collections.ConfigDict) -> int:
    """Patch tokens per side that the tower of `config.model.patch` returns."""
    stride = patch.patch * (2 ** (len(patch.depths) - 1) if patch.type == "swin" else 1)
    return patch.image_size // stride


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
    # Of regions, as many images as published; each brings data.regions.per_image pairs.
    config.shares = dict(config.shares, captioned=8.0, parallel=8.0, region=3.0 * regions)
    config.data.tokenizer.path = chosen.vocabulary
    config.data.update(
        clean_captions=True,
        max_length=30 if x2vlm else 40,
        most_masked=10 if x2vlm else 12,
        parallel_max_length=64,
        parallel_most_masked=16 if x2vlm else 20,
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
        config.optimizer.rates.vision = dict(factor=vision / rest, parameters=(r"vision/.*",))
        config.optimizer.rates.text = dict(factor=text / rest, parameters=(r"text/.*",))
    else:
        config.optimizer.warmup = min(0.5, 2500 / chosen.steps)
    return config
