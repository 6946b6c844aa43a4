"""How towers are stored by the library transformers; each tower's file says it of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from rc3_jax.param_map import Name, ParamMap

ENCODER = dict(
    width="hidden_size",
    depth="num_hidden_layers",
    heads="num_attention_heads",
    mlp_width="intermediate_size",
    epsilon="layer_norm_eps",
)
"""Our settings of a transformer encoder and transformers' names of them."""
VISION = dict(ENCODER, image_size="image_size", patch="patch_size", activation="hidden_act")
CHANNELS = dict(num_channels=3)
ACTIVATIONS = {
    "gelu": "gelu",
    "quick_gelu": "quick_gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python": "gelu",
    "gelu_python_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
}
"""Their names of activations and ours; the first of several is written."""

LAYER = ParamMap(
    {
        "self_attention": "attention.self",
        "self_attention/out": "attention.output.dense",
        "mlp_in": "intermediate.dense",
        "mlp_out": "output.dense",
    }
)
VISION_LAYER = LAYER | ParamMap(
    {"self_attention_norm": "layernorm_before", "mlp_norm": "layernorm_after"}
)
"""A layer of Swin; those of ViT and BEiT differ in the attention's name."""
TIMM_LAYER = ParamMap(
    {
        "self_attention_norm": "norm1",
        "relative_positions": "attn.relative_position_bias_table",
        "self_attention/query": Name("attn.qkv", part=0),
        "self_attention/key": Name("attn.qkv", part=1),
        "self_attention/value": Name("attn.qkv", part=2),
        "self_attention/out": "attn.proj",
        "mlp_norm": "norm2",
        "mlp_in": "mlp.fc1",
        "mlp_out": "mlp.fc2",
    }
)
"""A layer of Swin in the library timm and in published code; BEiT has more parts."""

Tensors = Mapping[str, np.ndarray]
Read = Callable[[Tensors, Mapping, Any], tuple[dict[str, Any], list[str]]]
"""`(tensors, template, config)` to parameters like the template, and what the user should know."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class HuggingFace:
    """A type of tower in transformers.

    Attributes:
      architecture: the class that is the tower alone.
      model_types: of `config.json`, with the attribute of the config that describes the tower in
        larger models; the first is the tower alone.
      fields: our settings and their names.
      required: their settings that must have these values for our tower to compute the same.
      written: further settings that are written.
      names: of the weights.
      prefix: what all names begin with in larger models; `keeps_prefix` if also in `architecture`.
      ignored: regular expression for the beginning of names that are not the tower's.
      read: reads the weights where `names` alone is not enough.
      last_norm: module of `architecture` whose norm `last_hidden_state` lacks.
      pooled_mean: whether our pooled token is the mean of the patches, not their first token.
    """

    architecture: str
    model_types: Mapping[str, str]
    fields: Mapping[str, str]
    required: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    written: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    names: ParamMap
    prefix: str
    keeps_prefix: bool = False
    ignored: str
    read: Read | None = None
    last_norm: str = ""
    pooled_mean: bool = False

    def settings(self, config: Any, notes: list[str]) -> dict[str, Any]:
        """Our settings from the tower's config of transformers.

        Args:
          notes: gets what the user should know.

        Raises:
          ValueError: lists the settings with which our tower would compute something else.
        """
        values = {ours: getattr(config, theirs) for ours, theirs in self.fields.items()}
        found = {key: getattr(config, key, needed) for key, needed in self.required.items()}
        problems = [
            f"{key}={found[key]!r}, must be {needed!r}"
            for key, needed in self.required.items()
            if found[key] != needed
        ]
        for ours in {"image_size", "patch"} & values.keys():
            if isinstance(values[ours], list | tuple):
                if len({*values[ours]}) != 1:
                    problems.append(f"{self.fields[ours]}={values[ours]!r}, must be square")
                values[ours] = values[ours][0]
        if "activation" in values:
            name = values["activation"]
            if name not in ACTIVATIONS:
                problems.append(f"hidden_act={name!r}, must be one of {', '.join(ACTIVATIONS)}")
            values["activation"] = ACTIVATIONS.get(name)
        if problems:
            raise ValueError("; ".join(problems))
        if rest := values.get("image_size", 0) % values.get("patch", 1):
            values["image_size"] -= rest
            notes.append(
                f"images of {values['image_size']} pixels are taken: image_size has {rest} more "
                "than a multiple of the patch, which the convolution leaves out"
            )
        return values

    def config(self, settings: Any) -> dict[str, Any]:
        """The object for `config.json` from our settings."""
        values = {theirs: getattr(settings, ours) for ours, theirs in self.fields.items()}
        if "activation" in self.fields:
            names = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}
            values["hidden_act"] = names[settings.activation]
        head = dict(architectures=[self.architecture], model_type=next(iter(self.model_types)))
        return {**head, **values, **self.required, **self.written}
