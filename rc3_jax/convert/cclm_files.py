"""Files of the published CCLM code to folders of our parameters, and back."""

from __future__ import annotations

import pathlib

import jax
import ml_collections

from rc3_jax.config_cclm import cclm_model
from rc3_jax.convert import cclm, cclm_sizes
from rc3_jax.convert.output import (
    OWN_FILES,
    check_target,
    model_settings,
    reasons,
    say,
    sha256,
    size_text,
    write_settings,
    written,
)
from rc3_jax.convert.torch_file import check_suffix, read_tensors, stored_bytes, write_tensors
from rc3_jax.systems import abstract_params
from rc3_jax.training.checkpoint import load_params, save_params, stored_shapes

CAPTION_WORDS = 40
"""Captions of the published pre-training are cleaned and keep so many words (CCLM.md section 3.4)."""


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
    with reasons(source):
        model = cclm_model(model_name) if model_name else cclm_sizes.model_of(tensors, text_heads)
        tensors = cclm.own_tensors(tensors, cclm.layout_of(model))
        if image_size is not None:
            old = model.patch.image_size
            tensors, model = cclm_sizes.with_image_size(tensors, model, image_size)
            say(f"tables of positions: from images of {old} pixels a side to {image_size}")
        vocab_size = cclm_sizes.vocabulary_of(tensors, model)
        template = abstract_params("cclm", model, vocab_size)
        params = cclm.from_published(tensors, model, template)
    del tensors
    leaves = jax.tree.leaves(params)
    say(f"{_description(model)}: {sum(leaf.size for leaf in leaves):,} parameters")
    with written(target, sum(leaf.nbytes for leaf in leaves)) as folder:
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
    vocabulary = shapes.get("text/word_embedding/embedding", (cclm_sizes.XLM_R_VOCABULARY,))[0]
    with reasons(source):
        layout = cclm.layout_of(model)
        template = abstract_params("cclm", model, vocabulary)
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    place = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, "float32", sharding=here), template
    )
    params = load_params(source, place, step)
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    say(f"{source}: {_description(model)}, {count:,} parameters")
    for difference in cclm_sizes.differences_from_published(model):
        say(f"note: {difference}")
    tensors = cclm.to_published(params, model)
    del params
    size = stored_bytes(target, tensors)
    say(f"{len(tensors)} tensors, {len(layout.buffers)} of them buffers, {size_text(size)}")
    with written(target, size) as path:
        write_tensors(path, tensors)
    say(f"wrote {target}")


def _description(model: ml_collections.ConfigDict) -> str:
    """What the sizes are those of."""
    size = model.patch.image_size
    if names := cclm_sizes.names_of(model):
        return f"sizes of {' and '.join(names)} for {size} x {size} pixels"
    patch, text = model.patch, model.text
    return (
        f"{patch.type} for {size} x {size} pixels, {text.depth} text and {model.fusion.depth} "
        f"fusion layers of width {text.width} with {text.heads} heads"
    )
