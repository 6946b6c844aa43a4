"""Converts weights: into the folders that runs start from, and out of the folders of runs.

From Hugging Face, towers to start from, with the vocabulary cut to some languages:
  python launch/convert.py from-hf converted/base --text=FacebookAI/xlm-roberta-base \
      --patch=google/vit-base-patch16-224-in21k --languages=en,de --corpus=captions.jsonl.gz
To PyTorch, a folder that needs transformers alone, and back:
  python launch/convert.py to-torch runs/mine exported/mine --onnx
  python launch/convert.py from-torch exported/mine converted/mine
  python launch/convert.py to-hf runs/mine exported/xlm-r --part=text
The same inputs through two models, a table of what differs:
  python launch/convert.py check runs/mine exported/mine
Checkpoints of the published CCLM code:
  python launch/convert.py cclm-to-flax CCLM_3M.th converted/cclm_3m --image_size=384
  python launch/convert.py flax-to-cclm runs/mine mine.safetensors --checkpoint=5000

A run starts from a converted folder with --config.init=converted/base. Pickled weights (.bin, .th,
.pth, .pt) need PyTorch, which the extra `torch` installs; code within them is never run.
"""

import os
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

from absl import app, flags, logging

from rc3_jax.data.record import DataError
from rc3_jax.settings import ConfigError

TEXT = flags.DEFINE_string("text", None, "from-hf: folder or Hub id of an XLM-RoBERTa model.")
PATCH = flags.DEFINE_string(
    "patch",
    None,
    "from-hf: folder or Hub id of a model with a tower for images, such as ViT or CLIP.",
)
SYSTEM = flags.DEFINE_enum("system", "rc3", ["rc3", "cclm"], "from-hf: what the towers are for.")
IMAGE_SIZE = flags.DEFINE_integer(
    "image_size", None, "Pixels a side to resize the tables of positions for."
)
TEXT_LAYERS = flags.DEFINE_list(
    "text_layers", None, "from-hf: numbers of the text layers to take, from 0; all by default."
)
FUSION_LAYERS = flags.DEFINE_list(
    "fusion_layers",
    None,
    "from-hf: numbers of the text layers that the fusion encoder starts from.",
)
LANGUAGES = flags.DEFINE_list("languages", [], "from-hf: languages of the corpus that count.")
CORPUS = flags.DEFINE_list(
    "corpus", [], "from-hf: captions (.jsonl) and sentences to cut the vocabulary to."
)
MIN_COUNT = flags.DEFINE_integer("min_count", 1, "from-hf: how often a kept piece must occur.")
ALLOW_PICKLE = flags.DEFINE_bool(
    "allow_pickle", False, "Reads pickled weights too, without running code in them."
)
PART = flags.DEFINE_enum("part", None, ["text", "patch"], "to-hf: the tower to write.")
DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "to-torch: of the weights.")
SHARD_GB = flags.DEFINE_float(
    "shard_gb", 5.0, "to-torch: largest size of a file of weights.", lower_bound=0.001
)
ONNX = flags.DEFINE_bool("onnx", False, "to-torch: writes ONNX files of the two encoders too.")
LICENCE = flags.DEFINE_string("licence", None, "to-torch: licence of the weights, for the card.")
TOLERANCE = flags.DEFINE_float(
    "tolerance", 1e-4, "check: largest difference, relative to an output's largest value."
)
SEED = flags.DEFINE_integer("seed", 0, "check: of the inputs; from-hf: of what is drawn.")
MODEL = flags.DEFINE_string(
    "model",
    None,
    "cclm-to-flax: published model to expect; by default the sizes are read from the shapes.",
)
TEXT_HEADS = flags.DEFINE_integer(
    "text_heads", None, "cclm-to-flax without --model: heads of the text layers, if not of 64."
)
CHECKPOINT = flags.DEFINE_integer(
    "checkpoint",
    None,
    "Step of the checkpoint, of a folder that is a run's; the newest by default.",
)
OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replaces what an earlier conversion wrote.")


def _from_hf(target: pathlib.Path) -> None:
    from rc3_jax.convert.tower_files import from_hf

    from_hf(
        target,
        text=TEXT.value,
        patch=PATCH.value,
        system=SYSTEM.value,
        image_size=IMAGE_SIZE.value,
        text_layers=_numbers(TEXT_LAYERS),
        fusion_layers=_numbers(FUSION_LAYERS),
        seed=SEED.value,
        languages=LANGUAGES.value,
        corpus=[pathlib.Path(file) for file in CORPUS.value],
        min_count=MIN_COUNT.value,
        allow_pickle=ALLOW_PICKLE.value,
        overwrite=OVERWRITE.value,
    )


def _to_hf(source: pathlib.Path, target: pathlib.Path) -> None:
    from rc3_jax.convert.tower_files import to_hf

    if PART.value is None:
        raise ConfigError("to-hf writes one tower; name it with --part=text or --part=patch")
    to_hf(source, target, part=PART.value, step=CHECKPOINT.value, overwrite=OVERWRITE.value)


def _to_torch(source: pathlib.Path, target: pathlib.Path) -> None:
    from rc3_jax.convert.torch_export import to_torch

    to_torch(
        source,
        target,
        step=CHECKPOINT.value,
        dtype=DTYPE.value,
        shard_bytes=SHARD_GB.value * 1e9,
        onnx=ONNX.value,
        licence=LICENCE.value,
        overwrite=OVERWRITE.value,
    )


def _from_torch(source: pathlib.Path, target: pathlib.Path) -> None:
    from rc3_jax.convert.torch_export import from_torch

    from_torch(source, target, allow_pickle=ALLOW_PICKLE.value, overwrite=OVERWRITE.value)


def _check(first: pathlib.Path, second: pathlib.Path) -> None:
    from rich.console import Console

    from rc3_jax.convert.check import check, largest_of, table_of

    differences = check(first, second, step=CHECKPOINT.value, seed=SEED.value)
    Console().print(table_of(differences))
    worst = largest_of(differences)
    line = f"largest relative difference {worst.relative:.2g}, of {worst.name}"
    if not worst.relative <= TOLERANCE.value:
        raise ConfigError(f"{line}; --tolerance={TOLERANCE.value:g}")
    print(line)


def _cclm_to_flax(source: pathlib.Path, target: pathlib.Path) -> None:
    from rc3_jax.convert.cclm_files import cclm_to_flax

    cclm_to_flax(
        source,
        target,
        model_name=MODEL.value,
        image_size=IMAGE_SIZE.value,
        text_heads=TEXT_HEADS.value,
        overwrite=OVERWRITE.value,
    )


def _flax_to_cclm(source: pathlib.Path, target: pathlib.Path) -> None:
    from rc3_jax.convert.cclm_files import flax_to_cclm

    flax_to_cclm(source, target, step=CHECKPOINT.value, overwrite=OVERWRITE.value)


class Command(NamedTuple):
    """The function to call, the names of its arguments, and its flags."""

    run: Callable[..., None]
    arguments: tuple[str, ...]
    flags: Sequence[flags.FlagHolder]


TOWER_FLAGS = (
    *(TEXT, PATCH, SYSTEM, IMAGE_SIZE, TEXT_LAYERS, FUSION_LAYERS),
    *(LANGUAGES, CORPUS, MIN_COUNT, SEED),
)
COMMANDS = {
    "from-hf": Command(_from_hf, ("TARGET",), (*TOWER_FLAGS, ALLOW_PICKLE, OVERWRITE)),
    "to-hf": Command(_to_hf, ("SOURCE", "TARGET"), (PART, CHECKPOINT, OVERWRITE)),
    "to-torch": Command(
        _to_torch,
        ("SOURCE", "TARGET"),
        (CHECKPOINT, DTYPE, SHARD_GB, ONNX, LICENCE, OVERWRITE),
    ),
    "from-torch": Command(_from_torch, ("SOURCE", "TARGET"), (ALLOW_PICKLE, OVERWRITE)),
    "check": Command(_check, ("A", "B"), (CHECKPOINT, TOLERANCE, SEED)),
    "cclm-to-flax": Command(
        _cclm_to_flax, ("SOURCE", "TARGET"), (MODEL, IMAGE_SIZE, TEXT_HEADS, OVERWRITE)
    ),
    "flax-to-cclm": Command(_flax_to_cclm, ("SOURCE", "TARGET"), (CHECKPOINT, OVERWRITE)),
}


def _numbers(flag: flags.FlagHolder) -> list[int] | None:
    try:
        return None if flag.value is None else [int(number) for number in flag.value]
    except ValueError as error:
        raise ConfigError(f"--{flag.name} takes numbers between commas: {error}") from error


def parse_flags(argv: list[str]) -> list[str]:
    """Parses flags; exits with a one-line message on an unknown flag or value."""
    try:
        remaining = flags.FLAGS(argv)
    except flags.Error as error:
        sys.exit("error: " + str(error).replace("\n", " "))
    name = remaining[1] if len(remaining) > 1 else None
    if name not in COMMANDS:
        sys.exit(f"error: name one of {', '.join(COMMANDS)}; see --help")
    command = COMMANDS[name]
    if len(remaining) != 2 + len(command.arguments):
        sys.exit(f"error: {name} takes {' '.join(command.arguments)} and flags; see --help")
    known = {flag.name: flag for command in COMMANDS.values() for flag in command.flags}
    taken = {flag.name for flag in command.flags}
    wrong = [f"--{name}" for name, flag in known.items() if flag.present and name not in taken]
    if wrong:
        sys.exit(f"error: {name} takes no {', '.join(wrong)}; see --help")
    return remaining


def main(argv: list[str]) -> None:
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)
    os.environ["JAX_PLATFORMS"] = "cpu"  # an accelerator would only be in the way
    from rc3_jax.paths import local_path

    command = COMMANDS[argv[1]]
    try:
        command.run(*map(local_path, argv[2:], command.arguments))
    except (ConfigError, DataError) as error:
        reason, *details = str(error).splitlines()
        for detail in details:
            print(detail, file=sys.stderr)
        listed = ", listed above" if details else ""  # the reason comes last, in one line
        sys.exit(f"error: {reason.removesuffix(':')}{listed}")


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
