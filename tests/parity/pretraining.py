"""Every recorded output of the pre-training models, computed by our functions.

The recorded batches go through `term_losses` with CCLM's own terms, and with probes: terms that add
nothing to the loss and return what else was recorded.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from rc3_jax.convert.cclm import layout_of
from rc3_jax.data.text import IGNORED
from rc3_jax.data.tokenizer import PAD_ID
from rc3_jax.objectives import terms
from rc3_jax.objectives.boxes import box_losses
from rc3_jax.objectives.cclm import (
    IMAGE_TEXT,
    REGION_TEXT,
    TEXT_TEXT,
    cclm_terms,
    predict_box,
)
from rc3_jax.objectives.masked_lm import masked_lm_loss
from rc3_jax.objectives.matching import NegativeSampling, negative_weights
from rc3_jax.objectives.pair_terms import match
from rc3_jax.objectives.terms import Comparison, Encoded, Pair, Pass, Term
from rc3_jax.training.step import clamp_temperatures
from tests.parity.recordings import Recording, read

Outputs = dict[str, np.ndarray]

LOSSES = {
    "itc": ["itc.loss", "forward.image.loss_itc"],
    "itc_idx": ["itc.loss_idx"],
    "itm": ["itm.loss", "forward.image.loss_itm", "forward.image_two_captions.loss_itm"],
    "itm_idx": ["itm_idx.loss"],
    "mlm": ["mlm.loss", "forward.image.loss_mlm", "forward.image_two_captions.loss_mlm"],
    "ttc": ["ttc.loss", "forward.text.loss_ttc"],
    "ttm": ["ttm.loss", "forward.text.loss_ttm"],
    "text_mlm": ["para_mlm.loss", "forward.text.loss_mlm"],
    "region_itc": ["region.itc.loss", "forward.region.loss_itc"],
    "region_itm": ["region.itm.loss", "forward.region.loss_itm"],
    "region_mlm": ["region.mlm.loss", "forward.region.loss_mlm"],
    "box": ["region.loss_bbox", "forward.region.loss_bbox"],
    "giou": ["region.loss_giou", "forward.region.loss_giou"],
    "image_total": ["forward.image.total"],
    "text_total": ["forward.text.total"],
    "region_total": ["forward.region.total"],
    "two_captions": ["forward.image_two_captions.loss_itc"],
    "caption_ttc": ["forward.image_two_captions.loss_ttc"],
    "loss": ["forward.mixed.total"],
}
"""Our name of a loss → its recorded names."""
DIFFERENTIATED = ("itc", "itc_idx", "itm", "mlm", "image_total", "text_total", "region_total")
"""The losses whose gradients were recorded."""


@functools.cache
def computed(folder) -> Outputs:
    """Recorded name → our value."""
    recording = read(folder)
    outputs = _hidden_states(recording) | _apply(recording, _values)(recording.params)
    hot = clamp_temperatures(recording.params | {"temperature": jnp.float32(0.8)})
    outputs["clamp.loss_itc"] = _apply(recording, _losses)(hot)["itc"]
    outputs["clamp.temp_after"] = hot["temperature"]
    return {k: np.asarray(v) for k, v in (outputs | _gradients(recording)).items()}


def _apply(recording: Recording, function: Callable[..., Outputs]) -> Callable[..., Outputs]:
    """`function(model, recording)`, jitted, as a function of the parameters."""
    bound = nn.apply(functools.partial(function, recording=recording), recording.model)
    return jax.jit(lambda params: bound({"params": params}))


def batch_of(x: Outputs) -> dict[str, dict[str, np.ndarray]]:
    """The recorded inputs as a batch of all kinds of rows."""

    def masked(prefix: str) -> Outputs:
        labels = x[f"{prefix}masked_ids"]
        return {
            "masked_ids": x[f"{prefix}text_ids_masked"],
            "masked_positions": x[f"{prefix}masked_pos"],
            "masked_labels": np.where(labels == -100, IGNORED, labels),
        }

    for prefix in ("text", "region_text"):
        np.testing.assert_array_equal(x[f"{prefix}_atts"] != 0, x[f"{prefix}_ids"] != PAD_ID)
    texts = {"ids_a": x["text_ids"], "groups": np.arange(len(x["text_ids"]))}
    regions = masked("region_") | {
        "ids_a": x["region_text_ids"],
        "groups": np.arange(len(x["region_text_ids"])),
        "region_tokens": x["region_image_atts"].astype(bool),
        "boxes": x["region_target_bbox"],
        "is_image": x["region_is_image"].astype(bool),
    }
    regions = {name: value[:, None] for name, value in regions.items()}  # one of each image
    return {
        "captioned": texts | masked("") | {"image": x["image"]},
        "parallel": texts | masked("para_") | {"ids_b": x["text_ids_2"]},
        "region": regions | {"image": x["region_image"][x["region_idx_to_group_img"]]},
    }


def run_terms(
    model, batch, run: Sequence[Term], pairs: Sequence[Pair], drawn: Sequence[np.ndarray], **changes
) -> Outputs:
    """The metrics of terms, with recorded hard negatives.

    Args:
      drawn: for each pair in turn, the rows of the wrong views and those of the wrong texts.
      changes: of `Comparison`.
    """
    rows, keys = iter(drawn), {pair: (jax.random.key(0),) * 2 for pair in pairs}
    comparison = Comparison(negative_floor=1e-5, **changes)
    with mock.patch.object(terms, "sample_negatives", lambda *given: next(rows)):
        return terms.term_losses(model, batch, run, keys, comparison, deterministic=True)[1]


def probe(pair: Pair, name: str, fused: str, masked: str | None = None) -> Term:
    """A term that returns how a pair's negatives are drawn and what fusion makes of it.

    Args:
      name, fused, masked: the recorded names of matching, of the fused tokens, and of masked
        language modelling, which is left out without one.
    """

    def tokens(model, fused, mask, positions):
        return fused

    def token_logits(model, fused, mask, positions):
        return model.predict_tokens(fused, positions)

    given = "b" if pair is TEXT_TEXT else "image"
    texts = ((pair.text, pair.view), (pair.text, "wrong_view"), ("wrong_text", pair.view))

    def values(encoded: Encoded, kinds) -> Outputs:
        view, text = (encoded.embedding(one, kinds) for one in (pair.view, pair.text))
        temperature, _ = encoded.model.temperature_and_bias(pair.temperature)
        how = temperature, encoded.groups(kinds), NegativeSampling(floor=1e-5)
        out = {
            f"{name}.weights_t2i": negative_weights(text, view, *how),
            f"{name}.weights_i2t": negative_weights(view, text, *how),
            f"{name}.logits": jnp.concatenate([encoded.read(*t, match, kinds) for t in texts]),
            fused: encoded.read(*texts[0], tokens, kinds),
        }
        if masked is not None:
            out[f"{masked}.logits"] = encoded.read("masked", given, token_logits, kinds)
        return out

    passes = [Pass(pair.kinds, *one, match) for one in texts]
    passes.append(Pass(pair.kinds, *texts[0], tokens))
    if masked is not None:
        passes.append(Pass(pair.kinds, "masked", given, token_logits))
    return Term(f"probe of {name}", 1.0, pair.kinds, values, passes=tuple(passes))


def _losses(model, recording: Recording, probes: Sequence[Term] = ()) -> Outputs:
    """The losses of a batch of all kinds of rows, of images in groups, of images with two texts."""
    x, own = recording.inputs, cclm_terms(recording.settings.objective)
    batch, pairs = batch_of(x), (IMAGE_TEXT, TEXT_TEXT, REGION_TEXT)
    drawn = [
        *(x["image_neg_idx"], x["text_neg_idx"], x["para_kv_neg_idx"], x["para_q_neg_idx"]),
        *(x["region_image_neg_idx"], x["region_text_neg_idx"]),
    ]
    found = run_terms(model, batch, (*own, *probes), pairs, drawn, group_positives=False)
    found |= {
        "image_total": found["itc"] + found["itm"] + found["mlm"],
        "text_total": found["ttc"] + found["ttm"] + found["text_mlm"],
    }
    found["region_total"] = found["loss"] - found["image_total"] - found["text_total"]

    chosen = {term.name: term for term in own}
    contrast, matching = chosen["itc"], chosen["itm"]
    grouped = {"captioned": batch["captioned"] | {"groups": x["idx"]}}
    drawn = (x["image_neg_idx_dup"], x["text_neg_idx_dup"])
    run = (contrast, matching, probe(IMAGE_TEXT, "itm_idx", "unused"))
    same = run_terms(model, grouped, run, pairs, drawn)
    found |= (
        same
        | {"itc_idx": same["itc"], "itm_idx": same["itm"]}
        | {name: found[name] for name in ("itc", "itm", "loss")}
    )

    twice = {"strict": batch["captioned"] | {"ids_b": x["text_ids_2"]}}
    two = run_terms(model, twice, (contrast, chosen["caption_ttc"]), pairs, ())
    return found | {"two_captions": two["itc"], "caption_ttc": two["caption_ttc"]}


def _values(model, recording: Recording) -> Outputs:
    """What towers, fusion encoder and heads give, and all losses."""
    x = recording.inputs
    probes = (
        probe(IMAGE_TEXT, "itm", "fusion.image_kv.last_hidden", "mlm"),
        probe(TEXT_TEXT, "ttm", "fusion.text_kv.last_hidden", "para_mlm"),
        probe(REGION_TEXT, "region.itm", "region.fusion_last_hidden", "region.mlm"),
        Term("towers", 1.0, ("captioned",), _towers),
    )
    out = _losses(model, recording, probes)
    for ours, names in LOSSES.items():
        out |= dict.fromkeys(names, out[ours])
    out["fusion.from_ids.last_hidden"] = out["fusion.image_kv.last_hidden"]
    counted = x["region_is_image"] == 0
    for suffix, target, rows in (
        ("_all", "region_target_bbox", np.ones_like(counted)),
        ("_degenerate", "region_target_bbox_degenerate", counted),
    ):
        losses = box_losses(out["region.bbox_pred"], x[target], rows)
        out[f"region.loss_bbox{suffix}"], out[f"region.loss_giou{suffix}"] = losses
    if "tlm_text_ids_masked" in x:
        mask = x["tlm_text_atts"].astype(bool)
        states, _ = model.encode_text(x["tlm_text_ids_masked"], True, mask)
        fused = model.fusion(states, mask)
        out["tlm.logits"] = model.predict_tokens(fused, x["tlm_masked_pos"])
        hidden = model.mlm_hidden(fused, x["tlm_masked_pos"])
        labels = np.where(x["tlm_masked_ids"] == -100, IGNORED, x["tlm_masked_ids"])
        out["tlm.loss"] = masked_lm_loss(hidden, *model.output_embedding(), labels)[0]
    return out


def _towers(encoded: Encoded, kinds) -> Outputs:
    """A probe of the towers."""
    views = encoded.views
    image, region, whole = (
        views[k] for k in (("captioned", "image"), ("region", "image"), ("region", "whole"))
    )
    text, other = views["parallel", "a"], views["parallel", "b"]
    temperature, _ = encoded.model.temperature_and_bias("temperature")
    return {
        "vision.tokens": image.tokens,
        "text.tokens": text.tokens,
        "text2.tokens": other.tokens,
        "feat.image": image.embedding,
        "feat.text": text.embedding,
        "feat.text2": other.embedding,
        "sim.image_text": image.embedding @ text.embedding.T / temperature,
        "sim.text_text2": text.embedding @ other.embedding.T / temperature,
        "region.image_embeds": region.tokens,
        "region.image_embeds_fullatts": whole.tokens,
        "region.feat_image": region.embedding,
        "region.feat_text": views["region", "a"].embedding,
        "region.bbox_pred": encoded.read("a", "whole", predict_box, ("region",)),
    }


def _hidden_states(recording: Recording) -> Outputs:
    """The output of each layer."""

    def run(model, x):
        visual = model.encode_visual({"image": x["image"]})
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
    losses = _apply(recording, _losses)

    # Compiled once: which of the losses is differentiated is an input.
    @jax.jit
    @jax.grad
    def gradient(params, weights):
        return sum(
            weights[name] * value for name, value in losses(params).items() if name in weights
        )

    names = layout_of(recording.settings.model).names
    out = {}
    for name in DIFFERENTIATED:
        one = {other: float(other == name) for other in DIFFERENTIATED}
        tensors = names.to_theirs(gradient(recording.params, one))
        norms = np.array([np.linalg.norm(tensors[k]) for k in recording.config["param_order"]])
        out[f"gradnorm.{name}.per_param"] = norms
        out[f"gradnorm.{name}.global"] = np.linalg.norm(norms)
        out |= {f"grad.{name}.{k}": v for k, v in tensors.items()}
    return out
