"""The same random inputs through two models: how far their outputs differ, layer by layer.

A model is a folder of ours (a run's, or converted parameters), one that `to_torch` exported, or a
tower of Hugging Face. No code in a folder is run.
"""

from __future__ import annotations

import math
import pathlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from rich.table import Table

from rc3_jax.convert.huggingface import MODEL_TYPES
from rc3_jax.convert.output import WORDS, add_source_to_errors, import_extra
from rc3_jax.data.tokenizer import BOS_ID, PAD_ID, SPECIAL_TOKENS
from rc3_jax.models.base import learned_scalars, normalise_pixels
from rc3_jax.models.compute import Compute
from rc3_jax.models.rc3 import RC3ModelSettings
from rc3_jax.models.text import TextSettings
from rc3_jax.models.towers import visual_settings
from rc3_jax.models.visual import VisualTowerSettings
from rc3_jax.settings import ConfigError, check_choice
from rc3_jax.stored_config import CONFIG_FILE, read_config
from rc3_jax.systems import abstract_params
from rc3_jax.training.checkpoint import PARAMS, check_shapes, read_params, shapes_of, stored_shapes

Outputs = dict[str, Any]
"""Arrays by name: `text.layers.0` for a layer's states, `text` for the tower's, `image_vector`."""

ROWS, LENGTH, PREDICTED = 3, 24, 4
READS: dict[str, Any] = dict(
    image_size=224,
    regions=0,
    feature_size=1,
    vocab_size=len(SPECIAL_TOKENS) + 1,
    max_positions=LENGTH + PAD_ID + 1,
    image_mean=(0.5, 0.5, 0.5),
    image_std=(0.5, 0.5, 0.5),
)
"""Settings that decide about a model's inputs, with the values where neither of two has any."""
LAYER = re.compile(r"(text|patch|roi|fusion)\.(?:encoder\.)?layers?\.(\d+)(?:\.blocks\.(\d+))?")
"""A layer's name in a PyTorch model."""
HUGGING_FACE = {
    name: (part, settings)
    for part, types in MODEL_TYPES.items()
    for name, settings in types.items()
}
"""model_type of `config.json` → the tower that it is, and our settings of it."""


class Difference(NamedTuple):
    """One output: its largest absolute value, and the largest absolute difference."""

    name: str
    shape: tuple[int, ...]
    largest: float
    difference: float

    @property
    def relative(self) -> float:
        """The difference over the largest value."""
        return self.difference / self.largest if self.largest else self.difference


class Inputs(NamedTuple):
    """Visual rows, their normalised pixels `[rows, size, size, 3]`, and ids `[rows, length]`."""

    rows: dict[str, np.ndarray]
    pixels: np.ndarray
    ids: np.ndarray


def check(
    first: pathlib.Path, second: pathlib.Path, *, step: int | None = None, seed: int = 0
) -> list[Difference]:
    """How far the outputs that both models have differ on random inputs.

    Args:
      step: of the checkpoint, for folders of runs; the newest by default.

    Raises:
      ConfigError: if a folder is no model, the two do not take the same inputs, or have no output
        in common.
    """
    folders = [pathlib.Path(folder) for folder in (first, second)]
    steps = [None if (folder / PARAMS).is_dir() else step for folder in folders]
    configs = [_config(folder) for folder in folders]
    one, other = (_reads(*model) for model in zip(folders, configs, steps, strict=True))
    if differing := [name for name in one if one[name] != other.get(name, one[name])]:
        values = (f"{name} {one[name]!r} and {other[name]!r}" for name in differing)
        raise ConfigError(f"{first} and {second} do not take the same inputs: {', '.join(values)}")
    inputs = random_inputs(READS | one | other, seed)
    ours, theirs = (_outputs(*model, inputs) for model in zip(folders, configs, steps, strict=True))
    if not (names := [name for name in ours if name in theirs]):
        raise ConfigError(f"{first} and {second} have no output in common")
    return [_difference(name, ours[name], theirs[name]) for name in names]


def largest_of(differences: list[Difference]) -> Difference:
    """The largest relative difference; NaN is larger than any number."""
    return max(differences, key=lambda item: (math.isnan(item.relative), item.relative))


def table_of(differences: list[Difference]) -> Table:
    """For the console."""
    table = Table("output", "shape", "largest value", "difference", "relative")
    for item in differences:
        shape = " x ".join(map(str, item.shape))
        numbers = (f"{x:.3g}" for x in (item.largest, item.difference, item.relative))
        table.add_row(item.name, shape, *numbers)
    return table


def random_inputs(reads: Mapping[str, Any], seed: int) -> Inputs:
    """Padded texts and full ones, missing regions, boxes with features and without."""
    rng = np.random.default_rng(seed)
    size, regions = reads["image_size"], reads["regions"]
    rows: Outputs = {"image": rng.integers(0, 256, (ROWS, size, size, 3)).astype(np.uint8)}
    rows["use_patches"] = rows["use_regions"] = np.ones(ROWS, bool)
    if regions:
        corners = np.sort(rng.random((ROWS, regions, 2, 2)), axis=2).astype(np.float32)
        features = rng.normal(size=(ROWS, regions, reads["feature_size"])).astype(np.float32)
        rows |= dict(region_features=features, region_boxes=corners.reshape(ROWS, regions, 4))
        rows["region_mask"] = np.arange(regions) < np.array([regions, 1, regions])[:, None]
        rows["has_features"] = np.array([True, True, False])
    length = min(LENGTH, reads["max_positions"] - PAD_ID - 1)
    ids = rng.integers(len(SPECIAL_TOKENS), reads["vocab_size"], (ROWS, length)).astype(np.int32)
    ids[:, 0] = BOS_ID
    ids[1, length // 2 :] = PAD_ID
    pixels = normalise_pixels(rows["image"], reads["image_mean"], reads["image_std"])
    return Inputs(rows, np.asarray(pixels), ids)


def _config(folder: pathlib.Path) -> dict[str, Any]:
    """`config.json` of a folder; `model_type` is `ours` in folders of ours."""
    config = read_config(folder)
    if "system" in config:
        check_choice(f"{folder / CONFIG_FILE}: system", config["system"], ("rc3",))
        return config | {"model_type": "ours"}
    kinds = ("rc3", *HUGGING_FACE)
    check_choice(f"{folder / CONFIG_FILE}: model_type", config.get("model_type"), kinds)
    return config


def _reads(folder: pathlib.Path, config: Mapping[str, Any], step: int | None) -> dict[str, Any]:
    """Those of `READS` that a folder has."""
    model = config.get("model", {})
    groups = [config, model, *(model.get(part, {}) for part in ("text", "patch", "roi"))]
    if not all(isinstance(group, dict) for group in groups):
        raise ConfigError(f"{folder / CONFIG_FILE} cannot be read as settings of a model")
    found = {name: group[name] for group in groups for name in READS if name in group}
    if config["model_type"] == "ours" and (words := stored_shapes(folder, step).get(WORDS)):
        found["vocab_size"] = words[0]
    return {name: tuple(x) if isinstance(x, list) else x for name, x in found.items()}


def _outputs(
    folder: pathlib.Path, config: Mapping[str, Any], step: int | None, inputs: Inputs
) -> Outputs:
    """A model's outputs, without those of padding."""
    with add_source_to_errors(folder):
        if config["model_type"] == "ours":
            found = _flax_outputs(folder, config, step, inputs)
        else:
            found = _torch_outputs(folder, config["model_type"], inputs)
    known = inputs.ids != PAD_ID
    masks = {"text": known, "fusion": known, "roi": inputs.rows.get("region_mask")}
    for name, value in found.items():
        mask = masks.get(name.split(".")[0])
        found[name] = np.asarray(value) if mask is None else np.asarray(value)[mask]
    return found


class _Towers(nn.Module):
    """The towers of a folder that holds no whole model."""

    text: nn.Module | None
    patch: nn.Module | None


def _flax_outputs(
    folder: pathlib.Path, config: Mapping[str, Any], step: int | None, inputs: Inputs
) -> Outputs:
    model, whole = config["model"], "parts" not in config
    shapes = stored_shapes(folder, step)
    vocab_size = shapes.get(WORDS, (0,))[0]
    if whole:
        settings = RC3ModelSettings.parse({**model, "dtype": "float32", "dropout": 0.0}, "model")
        scalars = learned_scalars(shapes)
        wanted = abstract_params("rc3", settings.config_dict(), vocab_size, **scalars)
        check_shapes(folder, shapes, shapes_of(wanted))
        module: nn.Module = settings.build(vocab_size, **scalars)
    else:
        text = TextSettings.parse(model["text"], "model.text") if WORDS in shapes else None
        patch = visual_settings(model["patch"]) if "patch" in model else None
        module = _Towers(
            None if text is None else text.build(vocab_size, Compute()),
            None if patch is None else patch.build(Compute()),
        )
    params = unflatten_dict(read_params(folder, list(shapes), step), sep="/")

    def run(module) -> Outputs:
        towers = {"text": (module.text, inputs.ids), "patch": (module.patch, inputs.pixels)}
        found = {name: tower(given) for name, (tower, given) in towers.items() if tower}
        return found | _ends(module, inputs) if whole else found

    def apply(params) -> tuple[Outputs, Any]:
        return module.apply(
            {"params": params}, method=run, capture_intermediates=True, mutable=["intermediates"]
        )

    found, captured = jax.jit(apply)(params)
    layers: Outputs = {}
    for path, (value, *_) in flatten_dict(captured["intermediates"]).items():
        name = ".".join(path[:-1]).replace(".encoder.", ".")
        if path[-2] == "layers":
            layers |= {f"{name}.{number}": states for number, states in enumerate(value)}
        elif name == "roi" or re.fullmatch(r"patch\.stage_\d+\.block_\d+", name):
            layers[name] = value
    return layers | found


def _ends(rc3, inputs: Inputs) -> Outputs:
    """The outputs of our whole model after its towers."""
    known = inputs.ids != PAD_ID
    visual = rc3.encode_visual(inputs.rows)
    states, text_vector = rc3.encode_text(inputs.ids)
    fused = rc3.fusion(states, known, visual.tokens, visual.mask)
    return {
        "image_vector": visual.embedding,
        "text_vector": text_vector,
        "fused_vector": rc3.fused_vector(fused, known),
        "matching_logits": rc3.match(fused),
        "word_logits": rc3.predict_tokens(fused, np.tile(np.arange(PREDICTED), (ROWS, 1))),
    }


def _torch_outputs(folder: pathlib.Path, kind: str, inputs: Inputs) -> Outputs:
    """The outputs of an exported model or a tower of Hugging Face, by our names."""
    torch, transformers = import_extra("torch", "torch"), import_extra("transformers", "torch")
    from rc3_jax.convert.torch_model.modeling_rc3 import RC3Model
    from rc3_jax.convert.torch_model.towers_rc3 import encode_patches

    part, settings = HUGGING_FACE.get(kind, (None, None))
    architecture = (
        RC3Model if settings is None else getattr(transformers, settings.hugging_face.architecture)
    )
    try:
        model = architecture.from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, local_files_only=True
        ).eval()
    except Exception as error:  # transformers raises anything for broken settings
        raise ConfigError(f"{folder} cannot be loaded: {error}") from error
    given = {
        name: torch.from_numpy(value)
        for name, value in inputs.rows.items()
        if name.startswith("region_") or name == "has_features"
    }
    pixels = torch.from_numpy(np.ascontiguousarray(inputs.pixels.transpose(0, 3, 1, 2)))
    ids = torch.from_numpy(inputs.ids.astype(np.int64))
    found = _record_layers(model, part)
    with torch.no_grad():
        if part == "text":
            found["text"] = model(ids, attention_mask=(ids != PAD_ID).long()).last_hidden_state
        elif settings is not None and issubclass(settings, VisualTowerSettings):
            tower, names = getattr(model, "vision_model", model), settings.hugging_face
            grid = settings.parse(names.settings(tower.config, [])).grid
            readout = (grid, names.last_norm, names.pooled_mean)
            found["patch"] = encode_patches(tower, pixels, *readout)
        else:
            found["text"] = model.encode_text(ids).tokens
            found["patch"] = encode_patches(model.patch, pixels, **model.config.towers["readout"])
            words = model.fill_mask(ids, pixels, **given)[:, :PREDICTED]
            found |= model(ids, pixels, **given) | {"word_logits": words}
    return found


def _record_layers(model: Any, part: str | None) -> Outputs:
    """A dict that gets what the layers of a PyTorch model and its ROI tower return when it runs."""
    found: Outputs = {}

    def record(name: str):
        def hook(_module, _inputs, output):
            found[name] = output[0] if isinstance(output, tuple) else output

        return hook

    for name, module in model.named_modules():
        name = f"{part}.{name}".replace("vision_model.", "") if part else name
        if match := LAYER.fullmatch(name):
            tower, layer, block = match.groups()
            ours = f"layers.{layer}" if block is None else f"stage_{layer}.block_{block}"
            module.register_forward_hook(record(f"{tower}.{ours}"))
        elif name == "roi":
            module.register_forward_hook(record(name))
    return found


def _difference(name: str, one: np.ndarray, other: np.ndarray) -> Difference:
    if one.size != other.size:
        raise ConfigError(f"{name} is {one.shape} in one model and {other.shape} in the other")
    one, other = one.astype(np.float64), other.astype(np.float64).reshape(one.shape)
    return Difference(
        name, one.shape, float(np.max(np.abs(one))), float(np.max(np.abs(one - other)))
    )
