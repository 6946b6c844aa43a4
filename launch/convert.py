"""Converts checkpoints of the published CCLM code to our parameters, and ours to theirs.

python launch/convert.py cclm-to-flax CCLM_3M.th converted/cclm_3m
python launch/convert.py cclm-to-flax CCLM_3M.th converted/cclm_3m_384 --image_size=384
python launch/convert.py flax-to-cclm converted/cclm_3m again.th
python launch/convert.py flax-to-cclm runs/mine mine.safetensors --checkpoint=5000

A run starts from the converted folder with --config.init=converted/cclm_3m. Files that end in .th,
.pth, .pt or .bin need PyTorch, which the extra `torch` installs; code within them is never run.
"""

import contextlib
import hashlib
import importlib.metadata
import json
import os
import pathlib
import shutil
import sys
import time
from collections.abc import Iterator

from absl import app, flags, logging

from rc3_jax.config import ConfigError

MODEL = flags.DEFINE_string(
    "model", None, "Published model to expect; by default the tensors' shapes tell the sizes."
)
IMAGE_SIZE = flags.DEFINE_integer(
    "image_size", None, "cclm-to-flax: pixels a side to resize the tables of positions for."
)
TEXT_HEADS = flags.DEFINE_integer(
    "text_heads", None, "cclm-to-flax without --model: heads of the text layers, if not of 64."
)
CHECKPOINT = flags.DEFINE_integer(
    "checkpoint", None, "flax-to-cclm: step of the run's checkpoint; the newest by default."
)
OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replaces what an earlier conversion wrote.")

SETTINGS = "config.json"
BEGAN = time.monotonic()
PACKAGES = ("jax", "flax", "orbax-checkpoint", "numpy")


def cclm_to_flax(
    source: pathlib.Path,
    target: pathlib.Path,
    *,
    model_name: str | None = None,
    image_size: int | None = None,
    text_heads: int | None = None,
    overwrite: bool = False,
) -> None:
    """Writes a folder with `params` and `config.json` from a published checkpoint.

    Raises:
      ConfigError, TensorFileError: with the reason; then nothing was written.
    """
    import jax

    from rc3_jax.config_cclm import cclm_model
    from rc3_jax.convert import cclm, cclm_sizes
    from rc3_jax.convert.torch_file import read_tensors
    from rc3_jax.training.checkpoint import save_params

    _check_target(target, overwrite, folder=True)
    tensors = read_tensors(source)
    _say(f"{source}: {len(tensors)} tensors, {_size(source.stat().st_size)}")
    with _reasons(source):
        model = cclm_model(model_name) if model_name else cclm_sizes.model_of(tensors, text_heads)
        tensors = cclm.own_tensors(tensors, cclm.layout_of(model))
        if image_size is not None:
            old = model.patch.image_size
            tensors, model = cclm_sizes.with_image_size(tensors, model, image_size)
            _say(f"tables of positions: from images of {old} pixels a side to {image_size}")
        vocab_size = cclm_sizes.vocabulary_of(tensors, model)
        template = cclm_sizes.abstract_params(model, vocab_size)
        params = cclm.from_published(tensors, model, template)
    del tensors
    leaves = jax.tree.leaves(params)
    _say(f"{_description(model)}: {sum(leaf.size for leaf in leaves):,} parameters")
    settings = {
        "system": "cclm",
        "model": model.to_dict(),
        "vocab_size": vocab_size,
        "source": {"file": source.name, "sha256": _sha256(source)},
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
    }
    with _written(target, sum(leaf.nbytes for leaf in leaves)) as folder:
        folder.mkdir()
        save_params(folder, params)
        text = json.dumps(settings, indent=2) + "\n"
        (folder / SETTINGS).write_text(text, encoding="utf-8")
    _say(f"wrote {target}")


def flax_to_cclm(
    source: pathlib.Path,
    target: pathlib.Path,
    *,
    step: int | None = None,
    overwrite: bool = False,
) -> None:
    """Writes a checkpoint that the published code loads, from a converted folder or a run's.

    Raises:
      ConfigError, TensorFileError: with the reason; then nothing was written.
    """
    import jax

    from rc3_jax.convert import cclm, cclm_sizes
    from rc3_jax.convert.torch_file import check_suffix, stored_bytes, write_tensors
    from rc3_jax.training.checkpoint import load_params, stored_shapes

    check_suffix(target)
    _check_target(target, overwrite, folder=False)
    shapes = stored_shapes(source, step)
    model = _model_settings(source)
    vocabulary = shapes.get("text/word_embedding/embedding", (cclm_sizes.XLM_R_VOCABULARY,))[0]
    with _reasons(source):
        layout = cclm.layout_of(model)
        template = cclm_sizes.abstract_params(model, vocabulary)
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    place = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, "float32", sharding=here), template
    )
    params = load_params(source, place, step)
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    _say(f"{source}: {_description(model)}, {count:,} parameters")
    for difference in cclm_sizes.differences_from_published(model):
        _say(f"note: {difference}")
    tensors = cclm.to_published(params, model)
    del params
    size = stored_bytes(target, tensors)
    buffers = len(layout.buffers)
    _say(f"{len(tensors)} tensors, {buffers} of them buffers, {_size(size)}")
    with _written(target, size) as path:
        write_tensors(path, tensors)
    _say(f"wrote {target}")


def _model_settings(folder: pathlib.Path):
    """`config.model` of a converted folder or of a run's."""
    import ml_collections

    path = folder / SETTINGS
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        system, model = stored["system"], ml_collections.ConfigDict(stored["model"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} cannot be read as settings of a model: {error!r}") from error
    if system != "cclm":
        raise ConfigError(f"{folder} is of {system}; only models of cclm have a published layout")
    return model


def _description(model) -> str:
    """What the sizes are those of."""
    from rc3_jax.convert.cclm_sizes import names_of

    size = model.patch.image_size
    if names := names_of(model):
        return f"sizes of {' and '.join(names)} for {size} x {size} pixels"
    patch, text = model.patch, model.text
    return (
        f"{patch.type} for {size} x {size} pixels, {text.depth} text and {model.fusion.depth} "
        f"fusion layers of width {text.width} with {text.heads} heads"
    )


def _check_target(target: pathlib.Path, overwrite: bool, folder: bool) -> None:
    """Raises ConfigError if something is there that must not be replaced."""
    if not target.exists():
        return
    if not overwrite:
        raise ConfigError(f"{target} exists; choose another name, or give --overwrite")
    if target.is_dir() != folder:
        raise ConfigError(f"{target} is a {'file' if folder else 'folder'} and stays as it is")
    known = {"params", SETTINGS}
    if folder and not {path.name for path in target.iterdir()} <= known:
        raise ConfigError(f"{target} holds more than a conversion writes and stays as it is")


@contextlib.contextmanager
def _written(target: pathlib.Path, size: int) -> Iterator[pathlib.Path]:
    """A name beside the target to write to; the target's own once all is written."""
    parent = target.absolute().parent
    partial = parent / f"partial-{os.getpid()}-{target.name}"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(parent).free
        if free < size:
            raise ConfigError(f"{target} needs {_size(size)}, {parent} has {_size(free)} free")
        _say(f"writes {_size(size)}")
        yield partial
        if target.is_dir():
            shutil.rmtree(target)
        os.replace(partial, target)
    except ConfigError:
        raise
    except (OSError, RuntimeError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ConfigError(f"{target} could not be written: {reason}") from error
    finally:
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        else:
            partial.unlink(missing_ok=True)


@contextlib.contextmanager
def _reasons(source: pathlib.Path) -> Iterator[None]:
    """Names the source in what is wrong with its tensors or sizes."""
    try:
        yield
    except (ValueError, TypeError, ArithmeticError, MemoryError) as error:
        raise ConfigError(f"{source}: {error or 'needs more memory than there is'}") from error
    except AttributeError as error:  # of a ConfigDict
        raise ConfigError(f"{source}: config.model lacks a setting: {error}") from error


def _sha256(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e7 else f"{count / 1e3:.1f} kB"


def _say(line: str) -> None:
    """Prints a line after the seconds since the program began."""
    print(f"{time.monotonic() - BEGAN:5.0f} s  {line}", flush=True)


COMMANDS = ("cclm-to-flax", "flax-to-cclm")


def parse_flags(argv: list[str]) -> list[str]:
    """Reads the command line; what is not understood ends the program with the reason."""
    try:
        remaining = flags.FLAGS(argv)
    except flags.Error as error:
        sys.exit("error: " + str(error).replace("\n", " "))
    if len(remaining) != 4 or remaining[1] not in COMMANDS:
        sys.exit(f"error: name {' or '.join(COMMANDS)}, a source and a target; see --help")
    unused = (CHECKPOINT,) if remaining[1] == "cclm-to-flax" else (MODEL, IMAGE_SIZE, TEXT_HEADS)
    wrong = [f"--{flag.name}" for flag in unused if flag.value is not None]
    if wrong:
        sys.exit(f"error: {remaining[1]} takes no {', '.join(wrong)}; see --help")
    return remaining


def main(argv: list[str]) -> None:
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)
    os.environ["JAX_PLATFORMS"] = "cpu"  # an accelerator would only be in the way
    from rc3_jax.convert.torch_file import TensorFileError

    command, source, target = argv[1], pathlib.Path(argv[2]), pathlib.Path(argv[3])
    try:
        if command == "cclm-to-flax":
            cclm_to_flax(
                source,
                target,
                model_name=MODEL.value,
                image_size=IMAGE_SIZE.value,
                text_heads=TEXT_HEADS.value,
                overwrite=OVERWRITE.value,
            )
        else:
            flax_to_cclm(source, target, step=CHECKPOINT.value, overwrite=OVERWRITE.value)
    except (ConfigError, TensorFileError) as error:
        reason, *details = str(error).splitlines()
        for detail in details:
            print(detail, file=sys.stderr)
        listed = ", listed above" if details else ""  # the reason comes last, in one line
        sys.exit(f"error: {reason.removesuffix(':')}{listed}")


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
