"""Files of the published CCLM code to folders of our parameters, and back."""

from __future__ import annotations

import pathlib

import jax
import ml_collections
from flax.traverse_util import unflatten_dict

from rc3_jax.config_cclm import cclm_model
from rc3_jax.convert import cclm, cclm_sizes
from rc3_jax.convert.output import (
    OWN_FILES,
    WORDS,
    add_source_to_errors,
    atomic_write,
    check_target,
    model_settings,
    say,
    sha256,
    size_text,
    write_settings,
)
from rc3_jax.convert.torch_file import (
    check_finite,
    check_floats,
    check_suffix,
    read_tensors,
    stored_bytes,
    write_tensors,
)
from rc3_jax.models.base import learned_scalars
from rc3_jax.settings import ConfigError
from rc3_jax.systems import abstract_params
from rc3_jax.training.checkpoint import (
    check_shapes,
    read_params,
    save_params,
    shapes_of,
    stored_shapes,
)
from rc3_jax.training.state import count_parameters

CAPTION_WORDS = 40
"""Captions of the published pre-training are cleaned and keep so many words (CCLM.md section 3.4)."""
XLM_R_VOCABULARY = 250_002


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
    check_target(target, overwrite, OWN_FILES)
    tensors = read_tensors(source)
    say(f"{source}: {len(tensors)} tensors, {size_text(source.stat().st_size)}")
    with add_source_to_errors(source):
        model = cclm_model(model_name) if model_name else cclm_sizes.model_of(tensors, text_heads)
        layout = cclm.layout_of(model)
        tensors = cclm.own_tensors(tensors, layout)
        check_floats(source, tensors)
        if image_size is not None:
            old = model.patch.image_size
            tensors, model = cclm_sizes.with_image_size(tensors, model, image_size)
            say(f"tables of positions: from images of {old} pixels a side to {image_size}")
        words = tensors.get(f"{cclm.TOWERS[model.patch.type]}.{cclm.WORDS}")
        vocab_size = XLM_R_VOCABULARY if words is None else len(words)
        params = layout.names.to_ours(tensors, abstract_params("cclm", model, vocab_size))
    del tensors
    leaves = jax.tree.leaves(params)
    say(f"{_description(model)}: {count_parameters(params):,} parameters")
    with atomic_write(target, sum(leaf.nbytes for leaf in leaves)) as folder:
        folder.mkdir()
        save_params(folder, params)
        write_settings(
            folder,
            {
                "system": "cclm",
                "model": model.to_dict(),
                "vocab_size": vocab_size,
                "max_words": CAPTION_WORDS,
                "source": {"file": source.name, "sha256": sha256(source)},
            },
        )
    say(f"wrote {target}")


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
    check_suffix(target)
    check_target(target, overwrite, None)
    shapes = stored_shapes(source, step)
    model = model_settings(source, "cclm")
    if learned_scalars(shapes)["has_bias"]:
        raise ConfigError(
            f"{source} was trained with objective.contrast=sigmoid, whose learned bias the published "
            "code does not have; export a model that was trained with softmax"
        )
    vocab_size = shapes.get(WORDS, (XLM_R_VOCABULARY,))[0]
    with add_source_to_errors(source):
        layout = cclm.layout_of(model)
        check_shapes(source, shapes, shapes_of(abstract_params("cclm", model, vocab_size)))
    params = unflatten_dict(read_params(source, list(shapes), step), sep="/")
    count = count_parameters(params)
    say(f"{source}: {_description(model)}, {count:,} parameters")
    for difference in cclm_sizes.differences_from_published(model):
        say(f"note: {difference}")
    tensors = cclm.to_published(params, layout)
    del params
    check_finite(source, tensors)
    size = stored_bytes(target, tensors)
    say(f"{len(tensors)} tensors, {len(layout.buffers)} of them buffers, {size_text(size)}")
    with atomic_write(target, size) as path:
        write_tensors(path, tensors)
    say(f"wrote {target}")


def _description(model: ml_collections.ConfigDict) -> str:
    patch, text = model.patch, model.text
    return (
        f"{patch.type} for {patch.image_size} x {patch.image_size} pixels, {text.depth} text and "
        f"{model.fusion.depth} fusion layers of width {text.width} with {text.heads} heads"
    )
