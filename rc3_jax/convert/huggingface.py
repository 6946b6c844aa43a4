"""Towers of Hugging Face checkpoints read as ours, and written for `from_pretrained`.

What a type of tower is called there, and what its `config.json` means, stands in the tower's file
under `rc3_jax/models`.
"""

from __future__ import annotations

import pathlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from rc3_jax.convert.huggingface_source import CONFIG, image_normalisation, locate, sentence_encoder
from rc3_jax.convert.output import add_source_to_errors
from rc3_jax.convert.torch_file import (
    TensorFileError,
    check_floats,
    read_folder,
    read_json,
    read_tensors,
)
from rc3_jax.models.beit import PUBLISHED_IGNORED, BeitSettings, read_published
from rc3_jax.models.compute import Compute
from rc3_jax.models.heads import MaskedLMHead
from rc3_jax.models.hugging_face import Tensors
from rc3_jax.models.text import MASKED_LM_NAMES, TextSettings
from rc3_jax.models.towers import TOWERS
from rc3_jax.models.visual import VisualTowerSettings
from rc3_jax.param_map import common_prefix
from rc3_jax.settings import ConfigError, check_choice
from rc3_jax.training.checkpoint import check_shapes, shapes_of

TOWERS_OF_PART: dict[str, list[type[TextSettings | VisualTowerSettings]]] = {
    "text": [TextSettings],
    "patch": list(TOWERS.values()),
}
MODEL_TYPES = {
    part: {name: kind for kind in kinds for name in kind.hugging_face.model_types}
    for part, kinds in TOWERS_OF_PART.items()
}
"""Part → `model_type` of `config.json` → our settings of that tower."""
PARTS = tuple(MODEL_TYPES)
WORDS = "embeddings.word_embeddings.weight"
HEAD = "lm_head."
DECODER = "lm_head.decoder."
MAX_GRID = 128
"""Patches a side; larger grids are those of broken files, and their tables would fill the memory."""


class Tower(NamedTuple):
    """A tower of a checkpoint.

    Attributes:
      settings: for `config.model.text` or `config.model.patch`.
      params: nested dict of float32 arrays.
      heads: further parameters of the model: `masked_lm_head` and `word_bias` if the checkpoint has
        them, and `fusion` if layers were chosen for it.
      pooling: how a sentence encoder's vector is read, `mean` or `cls`; None for other models.
      normalisation: `image_mean` and `image_std` of `config.model`, if the checkpoint has them.
      notes: what the user should know.
    """

    settings: Any
    params: dict[str, Any]
    heads: dict[str, Any]
    pooling: str | None
    normalisation: dict[str, tuple[float, ...]]
    notes: list[str]


def read_tower(
    source: str | pathlib.Path,
    *,
    part: str,
    image_size: int | None = None,
    layers: Sequence[int] | None = None,
    fusion_layers: Sequence[int] | None = None,
    seed: int = 0,
    allow_pickle: bool = False,
) -> Tower:
    """The text or patch tower of a checkpoint.

    Args:
      source: a folder written by `save_pretrained`, of a tower alone, with a head or within a
        larger model such as CLIP; a folder of sentence-transformers; a name on the Hugging Face
        hub; or a file of BEiT-v2 by its authors.
      image_size: pixels along a side of the images for a patch tower, whose positions are
        interpolated; by default the checkpoint's own.
      layers: numbers of the text layers to take, in their new order; all by default.
      fusion_layers: numbers of those that the fusion encoder starts from; none by default.
      seed: of the cross-attention of these, which a text tower lacks.
      allow_pickle: reads weights that are stored as pickles, without running code in them.

    Raises:
      ConfigError: for invalid settings, a missing source, and tensors that are missing, extra or
        mis-shaped; it lists all of them.
      TensorFileError: for broken or missing files.
    """
    check_choice("part", part, PARTS)
    if (image_size if part == "text" else layers or fusion_layers) is not None:
        raise ConfigError("image_size is for patch towers alone, and layers for text towers")
    notes: list[str] = []
    path, pooling = locate(source, allow_pickle), None
    if path.is_file():
        beit = _read_beit_v2(path, part, notes)
        return Tower(*_resized(path, *beit, image_size), {}, None, {}, notes)
    if part == "text":
        path, pooling = sentence_encoder(path)
    kind, config = _config(path, part)
    format, vocab_size = kind.hugging_face, getattr(config, "vocab_size", 0)
    with add_source_to_errors(path / CONFIG):
        settings = kind.parse(format.settings(config, notes))
        if part == "patch" and settings.grid > MAX_GRID:
            raise ConfigError(f"image_size: more than {MAX_GRID} patches a side")
    tensors = read_folder(path, allow_pickle)
    text = part == "text"
    head = {x: tensors.pop(x) for x in list(tensors) if text and x.startswith(HEAD)}
    own = _own(path, tensors, format.prefix, format.ignored, notes)
    with add_source_to_errors(path):
        template = template_of(settings, vocab_size)
        if format.read:
            params, more = format.read(own, template, config)
            notes += more
        else:
            params = format.names.to_ours(own, template)
    if part == "patch":
        normalisation = image_normalisation(path, settings.image_size, notes)
        return Tower(*_resized(path, settings, params, image_size), {}, None, normalisation, notes)
    heads = _masked_lm_head(path, head, own[WORDS], settings, notes)
    if fusion_layers is not None:
        heads["fusion"] = _fusion(settings, params["encoder"], fusion_layers, seed)
        notes.append("the cross-attention of the fusion layers is drawn at random")
    if layers is not None:
        encoder = _picked_layers(params["encoder"], layers, settings.depth, "layers")
        settings = settings.model_copy(update=dict(depth=len(layers)))
        params = {**params, "encoder": encoder}
    return Tower(settings, params, heads, pooling, {}, notes)


def tower_files(
    settings: TextSettings | VisualTowerSettings, params: Mapping, heads: Mapping | None = None
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The inverse of `read_tower`.

    Args:
      settings: those of `config.model.text` or `config.model.patch`.
      params: nested dict of the tower's parameters.
      heads: `masked_lm_head` and `word_bias` of a text tower, which make the model
        `XLMRobertaForMaskedLM`.

    Returns:
      The tensors for `model.safetensors`, C-ordered copies, and the object for `config.json`.

    Raises:
      ConfigError: for parameters that are not the tower's, and for one that transformers does not
        have.
    """
    format = settings.hugging_face
    config = format.config(settings)
    prefix = format.prefix if format.keeps_prefix or heads else ""
    vocab_size = 0
    if isinstance(settings, TextSettings):
        if settings.position_offset != 2:
            raise ConfigError(
                f"model.text.position_offset={settings.position_offset}: XLM-R numbers positions "
                "from 2 on and computes something else"
            )
        config["vocab_size"] = vocab_size = len(params["word_embedding"]["embedding"])
    check_shapes("the tower", shapes_of(params), shapes_of(template_of(settings, vocab_size)))
    tensors = {prefix + name: x for name, x in format.names.to_theirs(params).items()}
    if heads:
        config["architectures"] = ["XLMRobertaForMaskedLM"]
        tensors |= MASKED_LM_NAMES.to_theirs(heads)
    return tensors, config


def template_of(settings: Any, vocab_size: int = 0) -> dict[str, Any]:
    """The shapes of a tower's parameters; only a text tower has a vocabulary."""
    if isinstance(settings, TextSettings):
        tower = settings.build(vocab_size, Compute())
        batch = jax.ShapeDtypeStruct((1, 4), np.int32)
    else:
        tower = settings.build(Compute())
        shape = (1, settings.image_size, settings.image_size, 3)
        batch = jax.ShapeDtypeStruct(shape, np.float32)
    return jax.eval_shape(tower.init, jax.random.key(0), batch)["params"]


def _config(folder: pathlib.Path, part: str) -> tuple[Any, Any]:
    """The class of a tower's settings, and its config of transformers."""
    from transformers import AutoConfig

    path, known = folder / CONFIG, MODEL_TYPES[part]
    name = read_json(path).get("model_type")
    if not isinstance(name, str) or name not in known:
        raise ConfigError(
            f"{path}: model_type={name!r} has no {part} tower; use one of {', '.join(known)}"
        )
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers raises anything for invalid settings
        raise ConfigError(f"{path}: {' '.join(str(error).split())}") from error
    part_name = known[name].hugging_face.model_types[name]
    return known[name], getattr(config, part_name) if part_name else config


def _own(
    path: pathlib.Path, tensors: Tensors, prefix: str, ignored: str, notes: list[str]
) -> dict[str, np.ndarray]:
    """The tower's tensors by their names without the prefix."""
    own: dict[str, np.ndarray] = {}
    counts: Counter[str] = Counter()
    for name, tensor in tensors.items():
        short = name.removeprefix(prefix)
        if re.match(ignored, short):
            counts[short.partition(".")[0]] += np.issubdtype(tensor.dtype, np.floating)
        elif short in own:
            raise TensorFileError(f"{path} holds {short} twice, with and without {prefix}")
        else:
            own[short] = tensor
    if parts := ", ".join(f"{name} ({count})" for name, count in counts.items() if count):
        notes.append(f"tensors that are not the tower's are left out: {parts}")
    check_floats(path, own)
    return own


def _read_beit_v2(
    path: pathlib.Path, part: str, notes: list[str]
) -> tuple[BeitSettings, dict[str, Any]]:
    """The tower in a file of BEiT-v2's authors, with the sizes of its tensors."""
    refused = TensorFileError(
        f"{path} is a single file, and not one of BEiT-v2, whose tensors are enough; name the "
        "folder that holds config.json and the tensors"
    )
    if part != "patch":
        raise refused
    own = _own(path, read_tensors(path), "", PUBLISHED_IGNORED, notes)
    if prefix := common_prefix(own, ["blocks.0.norm1.weight"]):
        raise TensorFileError(f"{path}: store the tensors without the prefix {prefix!r}")
    try:
        settings = BeitSettings.of_published(own)
    except (KeyError, StopIteration, ValueError) as error:
        raise refused from error
    notes.append(f"the file has no epsilon, it is {settings.epsilon}, and no image_mean")
    with add_source_to_errors(path):
        params, more = read_published(own, template_of(settings))
    notes += more
    return settings, params


def _resized(
    path: pathlib.Path, settings: Any, params: dict[str, Any], image_size: int | None
) -> tuple[Any, dict[str, Any]]:
    """The settings and parameters of a patch tower for images of another size."""
    if image_size in (None, settings.image_size):
        return settings, params
    with add_source_to_errors(f"{path}, image_size={image_size}"):
        changed = type(settings).parse(dict(settings) | dict(image_size=image_size))
        return changed, settings.resized(params, image_size)


def _picked_layers(encoder: Mapping, layers: Sequence[int], depth: int, name: str) -> Any:
    """The chosen layers of an encoder."""
    layers = list(layers)
    if not layers or len(set(layers)) < len(layers) or not set(layers) <= set(range(depth)):
        raise ConfigError(f"{name}={layers} must be different numbers from 0 to {depth - 1}")
    return jax.tree.map(lambda x: x[layers], encoder)


def _fusion(
    settings: TextSettings, encoder: Mapping, layers: Sequence[int], seed: int
) -> dict[str, Any]:
    """A fusion encoder of text layers, as the published CCLM starts (CCLM.md section 1.3)."""
    picked = _picked_layers(encoder, layers, settings.depth, "fusion_layers")
    stack = Compute().stack(
        *(len(layers), settings.heads, settings.mlp_width),
        pre_norm=False,
        epsilon=settings.epsilon,
        cross_attention=True,
    )
    states = np.zeros((1, 2, settings.width), np.float32)
    drawn = jax.jit(stack.init)(jax.random.key(seed), states, None, states)["params"]
    return {"layers": {**jax.tree.map(np.asarray, drawn["layers"]), **picked["layers"]}}


def _masked_lm_head(
    path: pathlib.Path,
    tensors: dict[str, np.ndarray],
    words: np.ndarray,
    settings: TextSettings,
    notes: list[str],
) -> dict[str, Any]:
    """`masked_lm_head` and `word_bias` of XLM-R; empty where the checkpoint has none."""
    copies = {name: tensors.pop(name) for name in list(tensors) if name.startswith(DECODER)}
    if f"{DECODER}bias" in copies:
        tensors.setdefault("lm_head.bias", copies[f"{DECODER}bias"])
    originals = {f"{DECODER}weight": words, f"{DECODER}bias": tensors.get("lm_head.bias")}
    differing = [
        name
        for name, copy in copies.items()
        if (original := originals.get(name)) is None or not np.array_equal(copy, original)
    ]
    if differing:
        notes.append(
            f"the head of masked words is left out: {' and '.join(differing)} differ from the word "
            "embeddings and lm_head.bias, to which XLM-R ties them, and ours has no others"
        )
        return {}
    if not tensors:
        return {}
    if settings.epsilon != (ours := TextSettings().epsilon):
        notes.append(
            f"the norm in the head of masked words has epsilon {settings.epsilon}; ours keeps {ours}"
        )
    hidden = jax.ShapeDtypeStruct((1, settings.width), np.float32)
    head = jax.eval_shape(MaskedLMHead().init, jax.random.key(0), hidden)["params"]
    bias = jax.ShapeDtypeStruct((len(words),), np.float32)
    check_floats(path, tensors)
    with add_source_to_errors(path):
        return MASKED_LM_NAMES.to_ours(tensors, {"masked_lm_head": head, "word_bias": bias})
