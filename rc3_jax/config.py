"""The default configuration, and what reads, checks and stores one.

A config file in `configs/` starts from `default_config()` (RC³-base) and changes what differs.
"""

from __future__ import annotations

import ast
import json
import pathlib
from collections.abc import Collection, Mapping
from typing import Any

import ml_collections
from ml_collections import config_dict


class ConfigError(ValueError):
    """A setting that cannot be; the message names it and the remedy."""


def check_choice(setting: str, value: Any, choices: Collection[Any]) -> None:
    """Raises ConfigError unless a setting is one of the choices."""
    if value not in choices:
        names = ", ".join(map(str, choices))
        raise ConfigError(f"{setting}={value!r}: use one of {names}")


def default_config() -> ml_collections.ConfigDict:
    """RC³-base (METHOD.md sections 1 and 2) without data sources; see the comments."""
    return ml_collections.ConfigDict(
        dict(
            name="rc3",
            system="rc3",  # or "cclm", with `cclm_config`
            init=config_dict.placeholder(str),  # folder of parameters to start from
            seed=0,
            steps=100_000,
            batch_size=1024,  # rows of a global batch, all kinds together
            shares=dict(strict=2.0, weak=1.0, parallel=1.0, captioned=0.0, region=0.0),
            microbatches=1,  # parts that each device computes in turn; the gradient stays the same
            mesh=dict(
                replica=1,  # across slices or hosts
                data=-1,  # -1: all devices that the others leave
                fsdp=1,  # devices that share one copy of the parameters
                tensor=1,  # devices that share the work on each row
                fsdp_threshold=2**20,  # elements; smaller arrays stay whole along fsdp
                rules=(  # path pattern, axes of the last dimensions; see parallel/rules.py
                    (r"(self|cross)_attention/(query|key|value)/(kernel|bias)", ("tensor",)),
                    (r"(self|cross)_attention/out/kernel", ("tensor", None)),
                    (r"mlp_in/(kernel|bias)", ("tensor",)),
                    (r"mlp_out/kernel", ("tensor", None)),
                    (r"word_embedding/embedding", ("tensor", None)),
                ),
            ),
            data=dict(
                sources=dict(),  # name -> source, see data/corpus.py and docs/data.md
                max_length=40,  # tokens of a text, frame included
                mask_share=0.4,
                most_masked=12,
                mask_eos=False,  # True: as published for CCLM, see data/text.py
                # of parallel rows, where they differ from those of captions
                parallel_max_length=config_dict.placeholder(int),
                parallel_most_masked=config_dict.placeholder(int),
                clean_captions=False,  # lower case, no punctuation, at most max_words words
                max_words=40,
                modality_dropout=0.15,  # chance of each visual part to be dropped whole
                language_exponent=0.7,  # smooths the frequencies of language pairs
                # rand_augment: changes an image, and their strength up to 10
                image=dict(crop_scale=(0.5, 1.0), jitter=0.2, flip=True, rand_augment=(0, 0)),
                # of region rows; grid: patches along a side of the vision tower's output
                regions=dict(per_image=5, grid=14),
                tokenizer=dict(
                    path=config_dict.placeholder(str),  # file, folder or cached model name
                    vocab_size=8000,  # of the vocabulary that is trained where path is unset
                    texts=200_000,  # captions that it is trained on, at most
                ),
                skip_limit=0.01,  # share of unusable records at which a run stops
                threads=8,
                prefetch=8,  # batches read ahead
                workers=0,  # reading processes; 0 reads with threads of this process
            ),
            model=dict(
                text=dict(
                    width=768,
                    depth=12,
                    heads=12,
                    mlp_width=3072,
                    max_positions=514,
                    epsilon=config_dict.placeholder(float),  # of norms; None: 1e-5, as XLM-R
                ),
                # type: "vit", "clip", "siglip", "beit" or "swin"; see models/towers.py
                patch=dict(
                    type="vit",
                    image_size=224,
                    patch=16,
                    width=768,
                    depth=12,
                    heads=12,
                    mlp_width=3072,
                    # None: the type's own
                    epsilon=config_dict.placeholder(float),  # of norms
                    activation=config_dict.placeholder(str),  # "gelu", "gelu_tanh", "quick_gelu"
                ),
                # regions=0 leaves the ROI tower out
                roi=dict(regions=36, feature_size=2048, depth=2, geometry="7d"),
                fusion=dict(depth=6),
                projection_size=256,
                readout="attention",  # of z over the text positions; or "mean"
                dropout=0.1,
                dtype="bfloat16",  # of computation; parameters stay float32
                remat="none",  # or "dots", "full": what the backward pass recomputes
                unroll=1,  # layers in one iteration of the compiled loop
                image_mean=(0.5, 0.5, 0.5),
                image_std=(0.5, 0.5, 0.5),
            ),
            objective=dict(
                # xvtcl: on strict rows; xvtcl_weak: on weak rows with its regularizer
                weights=dict(itc=1.0, xtcl=1.0, xvtcl=1.0, xvtcl_weak=1.0, itm=1.0, mclm=1.0),
                regularizer=("weighted", "hinge"),
                scales=dict(
                    soft=0.3, hinge=1.0, mse=1.0, kl=1.0, margin=0.1, relevance_temperature=0.1
                ),
                # what tells it: the "own" text tower, "ema" for its average, or "encoder" for a
                # fixed one in the folder `relevance_encoder`
                relevance="own",
                relevance_encoder=config_dict.placeholder(str),
                ema_decay=0.999,
                ramp=0.1,  # share of the run in which xvtcl_weak rises from 0
                same_image_negatives=True,
                # "gather", "ring" or "dense": how all pairs of a batch are gone through, and
                # how many columns at a time; see objectives/tiles.py
                pairs=dict(transport="gather", tile=512),
            ),
            optimizer=dict(
                lr=1e-4,
                warmup=0.05,  # share of the run
                decay="cosine",  # or "linear", "constant"
                final_lr=0.0,  # share of lr at the end
                weight_decay=0.01,
                b1=0.9,
                b2=0.98,
                eps=1e-8,
                clip=1.0,  # global norm of the gradient
                mu_dtype=config_dict.placeholder(str),  # e.g. bfloat16, halves that moment
                rates=dict(  # name -> parameters (path patterns) and the factor of their rate
                    new=dict(  # what pre-trained towers do not bring
                        factor=2.0,
                        parameters=(
                            r"fusion/.*cross_attention.*",
                            r"fused_.*",
                            r"(image|text)_projection/.*",
                            r"matching_head/.*",
                        ),
                    ),
                    temperature=dict(factor=2.0, parameters=(r"temperature.*",)),
                ),
                no_decay=(r".*/bias", r".*norm/scale", r"temperature.*"),
            ),
            evaluation=dict(
                every=5000,  # steps
                batch_size=128,
                images=1000,  # held-out images that retrieval ranks, at most
                languages=(),  # all that the held-out images have
                modes=("both", "patches", "regions"),
                dependence_rows=256,
            ),
            log_every=50,
            watchdog_minutes=30.0,  # without progress after which the process ends; 0 waits
            checkpoint=dict(every=5000, keep=2),
        )
    )


def parse_argument(argument: str | None, **defaults: Any) -> ml_collections.ConfigDict:
    """What follows the colon in `--config=file.py:batch=4096,root=/data`.

    Args:
      argument: comma-separated `name=value`, values of the defaults' types.

    Raises:
      ConfigError: for an unknown name or a value of another type.
    """
    chosen = ml_collections.ConfigDict(defaults)
    for item in filter(None, (argument or "").split(",")):
        name, equals, text = item.partition("=")
        if name not in defaults or not equals:
            raise ConfigError(
                f"config argument {item!r} is not understood; use name=value with one of: "
                f"{', '.join(f'{k}={v}' for k, v in defaults.items())}"
            )
        kind = type(defaults[name])
        try:
            value = text if kind is str else ast.literal_eval(text)
        except (ValueError, SyntaxError) as error:
            raise ConfigError(f"config argument {name}={text!r} is no {kind.__name__}") from error
        if type(value) is not kind:
            raise ConfigError(f"config argument {name}={text!r} is no {kind.__name__}")
        chosen[name] = value
    return chosen


def save_config(config: ml_collections.ConfigDict, path: pathlib.Path) -> None:
    """Writes the settings as JSON."""
    path.write_text(json.dumps(config.to_dict(), indent=2) + "\n", encoding="utf-8")


def stored_settings(folder: pathlib.Path) -> dict[str, Any]:
    """What `config.json` of a folder holds.

    Raises:
      ConfigError: if it is missing, broken or no object, or its `model` is none.
    """
    file = folder / "config.json"
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(settings, dict) or not isinstance(settings.get("model", {}), dict):
            raise TypeError("it must hold an object, and its model must be one")
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise ConfigError(f"{file} cannot be read as settings of a model: {error!r}") from error
    return settings


def stored_max_words(settings: Mapping[str, Any]) -> int | None:
    """Words that cleaned captions have at most; None where captions stay as they are.

    Args:
      settings: of a run, whose `data` tells it, or of converted or fine-tuned parameters.
    """
    if "data" not in settings:
        return settings.get("max_words")
    data = settings["data"]
    return data.get("max_words") if data.get("clean_captions") else None
