"""Every recorded output of the pre-training models, computed by our functions."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from rc3_jax.convert.cclm import layout_of
from rc3_jax.convert.mapping import to_torch
from rc3_jax.data.text import IGNORED
from rc3_jax.objectives.boxes import box_losses
from rc3_jax.objectives.masked_lm import masked_lm_loss
from rc3_jax.objectives.matching import Rule, negative_weights
from rc3_jax.objectives.microbatch import microbatch
from rc3_jax.objectives.views import (
    Context,
    Masked,
    Pair,
    View,
    contrast,
    masked_lm,
    matching,
    matching_logits,
)
from rc3_jax.training.step import clamp_temperatures
from tests.parity.recordings import Recording, read

Outputs = dict[str, np.ndarray]

DIFFERENTIATED = ("itc", "itc_idx", "itm", "mlm", "image_total", "text_total", "region_total")
"""The losses whose gradients were recorded."""


@functools.cache
def computed(folder) -> Outputs:
    """Recorded name → our value."""
    recording = read(folder)
    outputs = _hidden_states(recording)
    outputs |= _apply(recording, _values)
    hot = recording.params | {"temperature": jnp.float32(0.8)}
    clamped = clamp_temperatures(hot)
    outputs["clamp.loss_itc"] = _apply(recording, lambda *x: _itc(_Batches(*x)), clamped)
    outputs["clamp.temp_after"] = clamped["temperature"]
    totals = [outputs[f"forward.{kind}.total"] for kind in ("image", "text", "region")]
    outputs["forward.mixed.total"] = sum(totals)
    return {k: np.asarray(v) for k, v in (outputs | _gradients(recording)).items()}


def _apply(recording: Recording, function: Callable, params=None):
    """`function(context, inputs)` with a model that is bound to its parameters."""

    def bound(model):
        in_parts = functools.partial(microbatch, model, 1, None)
        context = Context(model, recording.settings.objective, True, None, in_parts)
        return function(context, recording.inputs)

    params = recording.params if params is None else params
    return jax.jit(nn.apply(bound, recording.model))({"params": params})


def _labels(ids: np.ndarray) -> np.ndarray:
    return np.where(ids == -100, IGNORED, ids)


def _text(context: Context, ids, mask) -> View:
    states, vector = context.model.encode_text(ids, True, mask.astype(bool))
    return View(states, mask.astype(bool), vector)


def _image(context: Context, pixels) -> View:
    return context.model.encode_pixels(pixels)


class _Batches:
    """The recorded inputs after the towers."""

    def __init__(self, context: Context, x: Mapping[str, np.ndarray]):
        self.context, self.x = context, x

    @functools.cached_property
    def image(self) -> View:
        return _image(self.context, self.x["image"])

    @functools.cached_property
    def text(self) -> View:
        return _text(self.context, self.x["text_ids"], self.x["text_atts"])

    @functools.cached_property
    def text_2(self) -> View:
        return _text(self.context, self.x["text_ids_2"], self.x["text_atts_2"])

    @functools.cached_property
    def region_text(self) -> View:
        return _text(self.context, self.x["region_text_ids"], self.x["region_text_atts"])

    @functools.cached_property
    def region_whole(self) -> View:
        return _image(self.context, self.x["region_image"][self.x["region_idx_to_group_img"]])

    @functools.cached_property
    def region(self) -> View:
        inside = self.x["region_image_atts"].astype(bool)[:, None]
        return self.context.model.regions(self.region_whole.tokens, inside)

    def pair(self, kind: str) -> Pair:
        views = {
            "image": (self.image, self.text),
            "text": (self.text, self.text_2),
            "region": (self.region, self.region_text),
        }
        view, text = views[kind]
        return Pair(view, text, jnp.arange(len(text.vector)))

    def negatives(self, kind: str) -> tuple[np.ndarray, np.ndarray]:
        names = {"image": "{}_neg_idx", "text": "para_{}_neg_idx", "region": "region_{}_neg_idx"}
        slots = ("kv", "q") if kind == "text" else ("image", "text")
        return tuple(self.x[names[kind].format(slot)] for slot in slots)

    def masked(self, kind: str) -> Masked:
        prefix = {"image": "", "text": "para_", "region": "region_"}[kind]
        mask = self.x["region_text_atts" if kind == "region" else "text_atts"]
        text = _text(self.context, self.x[f"{prefix}text_ids_masked"], mask)
        view = {"image": "image", "text": "text_2", "region": "region"}[kind]
        positions = self.x[f"{prefix}masked_pos"]
        return Masked(text, getattr(self, view), positions, _labels(self.x[f"{prefix}masked_ids"]))


def _itc(batches: _Batches, groups=None):
    pair = batches.pair("image")
    return contrast(batches.context, pair if groups is None else pair._replace(groups=groups))


def _total(batches: _Batches, kind: str):
    context, x, pair = batches.context, batches.x, batches.pair(kind)
    parts = [
        contrast(context, pair),
        matching(context, pair, batches.negatives(kind))[0],
        masked_lm(context, batches.masked(kind))[0],
    ]
    if kind == "region":
        parts += box_losses(_boxes(batches), x["region_target_bbox"], x["region_is_image"] == 0)
    return sum(parts)


def _boxes(batches: _Batches):
    text, whole = batches.region_text, batches.region_whole
    fused = batches.context.model.fusion(text.tokens, text.mask, whole.tokens, whole.mask)
    return batches.context.model.predict_box(fused)


def _values(context: Context, x) -> Outputs:
    """Features, logits, weights and losses of all three kinds of batches."""
    batches, model = _Batches(context, x), context.model
    tau = model.temperatures()
    image, text, text_2 = batches.image, batches.text, batches.text_2
    out = {
        "vision.tokens": image.tokens,
        "text.tokens": text.tokens,
        "text2.tokens": text_2.tokens,
        "feat.image": image.vector,
        "feat.text": text.vector,
        "feat.text2": text_2.vector,
        "sim.image_text": image.vector @ text.vector.T / tau,
        "sim.text_text2": text.vector @ text_2.vector.T / tau,
        "fusion.image_kv.last_hidden": model.fusion(
            text.tokens, text.mask, image.tokens, image.mask
        ),
        "fusion.text_kv.last_hidden": model.fusion(
            text_2.tokens, text_2.mask, text.tokens, text.mask
        ),
        "itc.loss_idx": _itc(batches, x["idx"]),
    }
    out["fusion.from_ids.last_hidden"] = out["fusion.image_kv.last_hidden"]

    def pair_values(kind: str, itc: str, itm: str, mlm: str, forward: str) -> Outputs:
        pair, masked = batches.pair(kind), batches.masked(kind)
        negatives = batches.negatives(kind)
        fused = model.fusion(
            masked.text.tokens, masked.text.mask, masked.view.tokens, masked.view.mask
        )
        short = [name.split(".")[-1] for name in (itc, itm, mlm)]
        short[2] = "mlm"
        losses = [
            contrast(context, pair),
            matching(context, pair, negatives)[0],
            masked_lm(context, masked)[0],
        ]
        out = {f"{n}.loss": v for n, v in zip((itc, itm, mlm), losses, strict=True)}
        out |= {f"{forward}.loss_{n}": v for n, v in zip(short, losses, strict=True)}
        out[f"{forward}.total"] = sum(losses)
        out |= matching_values(itm, pair, negatives)
        out[f"{mlm}.logits"] = model.predict_tokens(fused, masked.positions)
        return out

    def matching_values(name: str, pair: Pair, negatives) -> Outputs:
        view, text, rule = pair.view.vector, pair.text.vector, Rule(floor=1e-5)
        return {
            f"{name}.weights_t2i": negative_weights(text, view, tau, pair.groups, rule),
            f"{name}.weights_i2t": negative_weights(view, text, tau, pair.groups, rule),
            f"{name}.logits": jnp.concatenate(matching_logits(context, pair, negatives)),
        }

    out |= pair_values("image", "itc", "itm", "mlm", "forward.image")
    out |= pair_values("text", "ttc", "ttm", "para_mlm", "forward.text")
    out |= pair_values("region", "region.itc", "region.itm", "region.mlm", "forward.region")
    same = batches.pair("image")._replace(groups=x["idx"])
    negatives = (x["image_neg_idx_dup"], x["text_neg_idx_dup"])
    out |= matching_values("itm_idx", same, negatives)
    out["itm_idx.loss"] = matching(context, same, negatives)[0]
    out |= _region_values(batches, x)
    out["forward.region.total"] = _total(batches, "region")

    second = contrast(context, Pair(image, text_2, jnp.arange(len(image.vector))))
    out |= {
        "forward.image_two_captions.loss_itc": (out["itc.loss"] + second) / 2,
        "forward.image_two_captions.loss_itm": out["itm.loss"],
        "forward.image_two_captions.loss_mlm": out["mlm.loss"],
        "forward.image_two_captions.loss_ttc": out["ttc.loss"],
    }
    if "tlm_text_ids_masked" in x:
        joined = _text(context, x["tlm_text_ids_masked"], x["tlm_text_atts"])
        fused = model.fusion(joined.tokens, joined.mask)
        states = model.token_states(fused, x["tlm_masked_pos"])
        out["tlm.logits"] = model.predict_tokens(fused, x["tlm_masked_pos"])
        labels = _labels(x["tlm_masked_ids"])
        out["tlm.loss"] = masked_lm_loss(states, *model.vocabulary(), labels, None)[0]
    return out


def _region_values(batches: _Batches, x) -> Outputs:
    text, region = batches.region_text, batches.region
    boxes = _boxes(batches)
    out = {
        "region.image_embeds": region.tokens,
        "region.image_embeds_fullatts": batches.region_whole.tokens,
        "region.feat_image": region.vector,
        "region.feat_text": text.vector,
        "region.bbox_pred": boxes,
        "region.fusion_last_hidden": batches.context.model.fusion(
            text.tokens, text.mask, region.tokens, region.mask
        ),
    }
    counted = x["region_is_image"] == 0
    calls = {
        "": ("region_target_bbox", counted),
        "_all": ("region_target_bbox", np.ones_like(counted)),
        "_degenerate": ("region_target_bbox_degenerate", counted),
    }
    for suffix, (target, rows) in calls.items():
        losses = box_losses(boxes, x[target], rows)
        out[f"region.loss_bbox{suffix}"], out[f"region.loss_giou{suffix}"] = losses
    out["forward.region.loss_bbox"] = out["region.loss_bbox"]
    out["forward.region.loss_giou"] = out["region.loss_giou"]
    return out


def _hidden_states(recording: Recording) -> Outputs:
    """What each layer hands on."""

    def run(model, x):
        visual = model.encode_pixels(x["image"])
        mask = x["text_atts"].astype(bool)
        states, _ = model.encode_text(x["text_ids"], True, mask)
        return model.fusion(states, mask, visual.tokens, visual.mask)

    _, found = jax.jit(
        lambda params: recording.model.apply(
            {"params": params},
            recording.inputs,
            method=run,
            capture_intermediates=True,
            mutable=["intermediates"],
        )
    )(recording.params)
    found = {
        path.removesuffix("/__call__"): value[0]
        for path, value in flatten_dict(found["intermediates"], sep="/").items()
    }
    out = {"text.embeddings": found["text/embedding_norm"]}
    layers = {"text.layer": "text/encoder/layers", "fusion.image_kv.layer": "fusion/layers"}
    if recording.settings.model.patch.type == "swin":
        out["vision.patch_embed"] = found["vision/patch_norm"]
        for path, value in found.items():
            if path.startswith("vision/stage_") and path.count("/") == 1:
                stage = path.removeprefix("vision/stage_")
                out[f"vision.stage{stage}"] = value.reshape(len(value), -1, value.shape[-1])
    else:
        out["vision.patch_embed"] = found["vision/patch_embedding"]
        layers["vision.block"] = "vision/encoder/layers"
    for name, path in layers.items():
        states = found[path][0] if isinstance(found[path], tuple) else found[path]
        out |= {f"{name}{number}": value for number, value in enumerate(states)}
    return out


def _gradients(recording: Recording) -> Outputs:
    """By published names: gradients, the norm of each parameter's, and of all together."""

    def chosen(weights, context, x):
        batches = _Batches(context, x)
        itm = matching(context, batches.pair("image"), batches.negatives("image"))[0]
        mlm = masked_lm(context, batches.masked("image"))[0]
        found = {"itc": _itc(batches), "itc_idx": _itc(batches, x["idx"]), "itm": itm, "mlm": mlm}
        found["image_total"] = found["itc"] + itm + mlm
        found |= {f"{kind}_total": _total(batches, kind) for kind in ("text", "region")}
        return sum(weights[name] * found[name] for name in DIFFERENTIATED)

    # Compiled once: which of the losses is differentiated is an input.
    gradient = jax.jit(
        jax.grad(
            lambda params, weights: _apply(recording, functools.partial(chosen, weights), params)
        )
    )
    jacobian = {
        name: gradient(recording.params, {other: float(other == name) for other in DIFFERENTIATED})
        for name in DIFFERENTIATED
    }
    table = layout_of(recording.settings.model).table
    out = {}
    for name, gradients in jacobian.items():
        tensors = to_torch(gradients, table)
        norms = np.array([np.linalg.norm(tensors[k]) for k in recording.config["param_order"]])
        out[f"gradnorm.{name}.per_param"] = norms
        out[f"gradnorm.{name}.global"] = np.linalg.norm(norms)
        out |= {f"grad.{name}.{k}": v for k, v in tensors.items()}
    return out
