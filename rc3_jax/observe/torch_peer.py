"""The training step of RC³ in PyTorch, to compare speeds with: transformers' towers, and the losses.

The model is the exported one (`convert/torch_model`), so that our parameters fit it. What differs
from our step: the weak rows' regularizer is `weighted`, relevance the text tower's own, debiased, no
negatives are random, a row has no negative fewer for an equal text, and every similarity is stored.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rc3_jax.config import validate
from rc3_jax.convert.torch_export import exported_settings
from rc3_jax.convert.torch_model.configuration_rc3 import RC3Config
from rc3_jax.convert.torch_model.layers_rc3 import masked_mean
from rc3_jax.convert.torch_model.modeling_rc3 import EncodedImage, EncodedText, RC3Model
from rc3_jax.data.text import IGNORED
from rc3_jax.models.base import TEMPERATURE_RANGE
from rc3_jax.observe.step_bench import Timed, random_batch, rows_of
from rc3_jax.settings import ConfigError

KINDS = ("strict", "weak", "parallel")
VISUAL = (
    *("region_features", "region_boxes", "region_mask"),
    *("has_features", "use_patches", "use_regions"),
)
Rows = dict[str, dict[str, Tensor]]


class TorchPeer(Timed):
    """The same step as `StepBench` takes, on the same rows."""

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        vocab_size: int,
        device: str = "cpu",
        compiles: bool = False,
    ):
        """Builds the model with random parameters.

        Args:
          device: of PyTorch, such as `cuda`.
          compiles: by `torch.compile`.

        Raises:
          ConfigError: for invalid settings, rows of other kinds than RC³ has, or `patch_dropout`.
        """
        settings, rows = validate(config), rows_of(config)
        if set(rows) - set(KINDS):
            raise ConfigError(f"the peer has rows of {', '.join(KINDS)}; batch_mix has {rows}")
        if getattr(settings.model.patch, "patch_dropout", 0.0):
            raise ConfigError("the peer reads all patches; set model.patch.patch_dropout=0")
        with torch.device(device):
            model = RC3Model(RC3Config(**exported_settings(config.model, vocab_size)))
        self._losses = torch.compile(peer_losses, dynamic=False) if compiles else peer_losses
        self._model = model.train()
        self._rows = as_tensors(random_batch(settings, rows, vocab_size), settings.model, device)
        self._type = getattr(torch, config.model.dtype)
        self._clip = config.optimizer.clip
        groups = [
            dict(params=[p for p in model.parameters() if (p.ndim >= 2) == decayed], **options)
            for decayed, options in ((True, {}), (False, dict(weight_decay=0.0)))
        ]
        self._optimizer = torch.optim.AdamW(
            groups,
            lr=config.optimizer.lr,
            betas=(config.optimizer.b1, config.optimizer.b2),
            weight_decay=config.optimizer.weight_decay,
            fused=True,
        )
        self.about = dict(
            name=f"{config.name}, PyTorch{', compiled' if compiles else ''}",
            parameters=sum(p.numel() for p in model.parameters()),
            batch=config.batch_size,
            rows=rows,
            flops=self._count(),
        )

    def step(self) -> float:
        device = next(self._model.parameters()).device.type
        with torch.autocast(device, self._type, enabled=self._type != torch.float32):
            losses = self._losses(self._model, self._rows)
        total = torch.stack(list(losses.values())).sum()
        total.backward()
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), self._clip or math.inf)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return total.item()

    def _count(self) -> int:
        """FLOPs of a forward and a backward pass, as PyTorch counts them."""
        from torch.nn.attention import SDPBackend, sdpa_kernel
        from torch.utils.flop_counter import FlopCounterMode

        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            torch.stack(list(peer_losses(self._model, self._rows).values())).sum().backward()
        self._optimizer.zero_grad(set_to_none=True)
        return counter.get_total_flops()


def as_tensors(
    batch: Mapping[str, Mapping[str, np.ndarray]], model: Any, device: str = "cpu"
) -> Rows:
    """The rows as tensors; images are normalised, `[batch, 3, height, width]`."""
    rows: Rows = {}
    for kind, fields in batch.items():
        rows[kind] = {
            name: torch.tensor(np.asarray(x), device=device) for name, x in fields.items()
        }
        if "image" in fields:
            mean, std = (
                torch.tensor(x, device=device) for x in (model.image_mean, model.image_std)
            )
            pixels = (rows[kind].pop("image").float() / 255 - mean) / std
            rows[kind]["pixel_values"] = pixels.permute(0, 3, 1, 2).contiguous()
        for name in ("ids_a", "ids_b", "masked_ids", "masked_positions", "masked_labels"):
            rows[kind][name] = rows[kind][name].long()
    return rows


def peer_losses(model: RC3Model, rows: Rows) -> dict[str, Tensor]:
    """Every term of RC³'s loss, as `objectives/rc3.py` names it."""
    kinds = [kind for kind in KINDS if kind in rows]
    seen = [kind for kind in kinds if "pixel_values" in rows[kind]]

    def field(name: str, of: Sequence[str]) -> Tensor:
        return torch.cat([rows[kind][name] for kind in of])

    every = [field(name, kinds) for name in ("ids_a", "ids_b", "masked_ids")]
    encoded = model.encode_text(torch.cat(every))
    counts = [len(rows[kind]["ids_a"]) for kind in kinds]
    pieces = zip(*(part.split(counts * 3) for part in encoded), strict=True)
    texts = {
        (name, kind): EncodedText(*piece)
        for (name, kind), piece in zip(itertools.product("abm", kinds), pieces, strict=True)
    }
    image = model.encode_image(
        field("pixel_values", seen),
        **{name: field(name, seen) for name in VISUAL if name in rows[seen[0]]},
    )
    a, b, masked = (_joined([texts[name, kind] for kind in seen]) for name in "abm")
    images, groups = len(image.mask), field("groups", seen)
    image_text, text_text, fused = (
        getattr(model, f"temperature_{name}").clamp(*TEMPERATURE_RANGE)
        for name in ("image_text", "text_text", "fused")
    )
    same = groups[:, None] == groups
    losses = {
        "itc": (
            nce(image.image_vector, a.text_vector, image_text, same)
            + nce(image.image_vector, b.text_vector, image_text, same)
        )
        / 2
    }
    aligned = [kind for kind in kinds if kind != "weak"]
    t_a, t_b = (torch.cat([texts[x, kind].text_vector for kind in aligned]) for x in "ab")
    of_aligned = field("groups", aligned)
    losses["xtcl"] = nce(t_a, t_b, text_text, of_aligned[:, None] == of_aligned)

    with torch.no_grad():
        logits = image.image_vector @ a.text_vector.T / image_text
        wrong_text, wrong_image = drawn(logits, same), drawn(logits.T, same)
    reading = [a, b, _taken(a, wrong_text), masked]  # side by side, over the same image
    tokens, mask = (torch.stack([x[place] for x in reading], 1).flatten(0, 1) for place in (0, 1))
    states = model.fusion(tokens, mask, image.tokens, image.mask).unflatten(0, (images, 4))
    other = model.fusion(a.tokens, a.mask, image.tokens[wrong_image], image.mask[wrong_image])

    pool = masked_mean if model.fused_pool is None else model.fused_pool
    z = [model.fused_projection(pool(states[:, place], reading[place].mask)) for place in range(3)]
    start = 0
    for kind, name in (("strict", "xvtcl"), ("weak", "xvtcl_weak")):
        if kind in seen:
            at = slice(start, start + len(rows[kind]["ids_a"]))
            weights = None
            if kind == "weak":
                said = torch.stack([a.text_vector[at], b.text_vector[at]]).detach()
                rest = said - said.mean((0, 1))
                relevance = ((rest[0] * rest[1]).sum(1) / rest.square().sum(-1).mean()).clamp(0, 1)
                weights = relevance / relevance.mean().clamp(min=1e-6)
            own = same[at, at]
            losses[name] = nce(z[0][at], z[1][at], fused, own, z[2][at], weights)
            start = at.stop
    firsts = torch.cat([states[:, 0, 0], other[:, 0], states[:, 2, 0]])
    labels = torch.cat([torch.ones(images), torch.zeros(2 * images)]).long().to(firsts.device)
    losses["itm"] = F.cross_entropy(model.matching_head(firsts), labels)

    hidden, of_words = [states[:, 3]], list(seen)
    if "parallel" in kinds:
        of_words.append("parallel")
        given, known = texts["m", "parallel"], texts["b", "parallel"]
        hidden.append(model.fusion(given.tokens, given.mask, known.tokens, known.mask))
    positions = field("masked_positions", of_words)
    words = field("masked_labels", of_words).flatten()
    places = positions[..., None].expand(-1, -1, states.shape[-1])
    found = model.masked_lm_head(torch.cat(hidden).gather(1, places)).flatten(0, 1)
    table = model.text.embeddings.word_embeddings.weight
    predicted = F.linear(found, table).float() + model.word_bias
    losses["mclm"] = F.cross_entropy(predicted, words, ignore_index=IGNORED)
    return losses


def nce(
    x: Tensor,
    y: Tensor,
    temperature: Tensor,
    same: Tensor,
    wrong: Tensor | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """InfoNCE of both directions; rows that `same` marks are positives, `wrong` a further negative."""
    similarity = x @ y.T / temperature
    positive = (similarity * same).sum(1) / same.sum(1)
    sides = []
    for logits, anchor in ((similarity, x), (similarity.T, y)):
        if wrong is not None:
            more = (anchor * wrong).sum(1, keepdim=True) / temperature
            logits = torch.cat([logits, more], dim=1)
        sides.append(logits.logsumexp(1) - positive)
    losses = (sides[0] + sides[1]) / 2
    return losses.mean() if weights is None else (losses * weights).mean()


def drawn(logits: Tensor, same: Tensor) -> Tensor:
    """A column for each row, with probability softmax(logits), never one that `same` marks."""
    noise = -torch.log(-torch.log(torch.rand_like(logits).clamp_min(1e-20)))
    return (logits + noise).masked_fill(same, -math.inf).argmax(1)


def _joined(parts: Sequence[EncodedText]) -> EncodedText:
    return EncodedText(*(torch.cat(columns) for columns in zip(*parts, strict=True)))


def _taken(view: Any, rows: Tensor) -> EncodedText | EncodedImage:
    return type(view)(*(part[rows] for part in view))
