"""RC³-base on data of your own: XLM-R-base and ViT-B/16 sized towers.

    python launch/train.py --config=configs/rc3_base.py:root=/data/pairs,batch=4096

`root` holds `captions.jsonl.gz` (docs/data.md has the format), the images it names and, as
`parallel/train.<language>.gz`, line-aligned translations. Without `vocabulary` a Unigram
vocabulary is trained on the captions; with it, XLM-R's is used from the Hugging Face cache:
`vocabulary=FacebookAI/xlm-roberta-base`. That makes 441 million parameters, the former's 64,000
pieces 298 million. Needs accelerators: parameters and Adam's moments take 12 bytes a parameter, and
gradients 4 more during a step, on each device, or `fsdp` times less.
"""

import pathlib

from rc3_jax.config import default_config, parse_argument
from rc3_jax.settings import ConfigError


def get_config(argument: str = ""):
    chosen = parse_argument(
        argument,
        root="",
        batch=1024,
        steps=100_000,
        vocabulary="",
        fsdp=1,
        init="",
    )
    if not chosen.root:
        raise ConfigError(
            "rc3_base trains on data of your own and has no data root; name its folder: "
            "--config=configs/rc3_base.py:root=/path/to/data (docs/data.md says what it holds). "
            "configs/rc3_demo.py needs no data"
        )
    root = pathlib.Path(chosen.root)
    config = default_config()
    config.name = "rc3_base"
    config.batch_size = chosen.batch
    config.steps = chosen.steps
    config.mesh.fsdp = chosen.fsdp
    # From the start, the contrast of weak pairs lowered retrieval and matching in both seeds of the study
    # `demo` (docs/evidence.md), too few to tell.
    config.objective.weak_start = 0.5
    config.data.tokenizer.vocab_size = 64_000
    if chosen.init:
        config.init = chosen.init
    if chosen.vocabulary:
        config.data.tokenizer.path = chosen.vocabulary
    config.data.sources = dict(
        pairs=dict(
            type="folder",
            captions=str(root / "captions.jsonl.gz"),
            root=str(root),
            train_split="train",
            heldout_split="val",
        )
    )
    if files := _parallel_files(root / "parallel"):
        config.data.sources.parallel = dict(type="parallel", files=files)
        config.data.parallel_max_length = 48
    return config


def _parallel_files(folder: pathlib.Path) -> dict[str, str]:
    """Language → `train.<language>` or `train.<language>.gz`."""
    files: dict[str, str] = {}
    for file in sorted(folder.glob("train.*")):
        _, language, *suffix = file.name.split(".")
        if suffix in ([], ["gz"]):
            files.setdefault(language, str(file))
    if len(files) == 1:
        raise ConfigError(
            f"{folder} holds a single language, {next(iter(files))}; add train.<language> of "
            "another one, line by line its translation, or remove the folder"
        )
    return files
