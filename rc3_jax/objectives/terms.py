"""The terms of a system's loss as declarations, and one function that computes them.

A term says which views of which rows it reads, what it reads from the fusion encoder, and how its
loss follows from these. `term_losses` encodes all texts and images that any active term needs once,
draws negatives, fuses all passes, and sums the weighted losses.

Names of views: `a` and `b` are the texts of a row, `masked` is a with masks, `image` is its image,
`one_form` and `other_form` are its patches and its regions in turn.
A region row is a row for each region: `image` is the region, `whole` the whole image. `wrong_view`
and `wrong_text` are hard negatives.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from rc3_jax.models.base import VISUAL_FIELDS, PairModel, View
from rc3_jax.objectives.batching import deinterleave, interleave
from rc3_jax.objectives.contrastive import contrastive_loss, scale_gradient, text_numbers
from rc3_jax.objectives.encoding import Batch, Head, Passes, encode_images, encode_texts, fuse
from rc3_jax.objectives.matching import NegativeSampling, has_negative, sample_negatives
from rc3_jax.objectives.microbatch import microbatched
from rc3_jax.objectives.tiles import Tiling
from rc3_jax.parallel.distributed_gather import gather_rows
from rc3_jax.parallel.mesh import batch_devices
from rc3_jax.settings import ConfigError

Kinds = tuple[str, ...]
Losses = dict[str, Float[Array, ""]]


class Pair(NamedTuple):
    """Two views of the same objects; hard negatives come from all rows of these kinds.

    Attributes:
      view: the view that the fusion encoder attends to.
      text: the view that reads it.
      temperature: the parameter that their similarities are divided by.
    """

    kinds: Kinds
    view: str
    text: str
    temperature: str

    @property
    def texts(self) -> tuple[str, ...]:
        """Those of its views that are texts."""
        return tuple(name for name in (self.view, self.text) if name != "image")


class Pass(NamedTuple):
    """A text of each row goes through the fusion encoder, attending to a view; `head` reads it."""

    kinds: Kinds
    text: str
    view: str
    head: Head


class Term(NamedTuple):
    """One term of the loss.

    Attributes:
      name: its name in the metrics.
      weight: the factor of its loss; with 0 the term, and all that only it needs, is left out of
        the compiled step.
      kinds: rows that it is computed on, as far as a batch has them.
      loss: `(encoded, kinds that are present) -> metrics`, named like the term.
      views: views that it reads directly, of those kinds that have them.
      passes: what it reads from the fusion encoder.
      temperatures: learned scalars that it divides by, as the model's parameters are named.
      more: names of further metrics that are added to the loss.
      ramp: a further factor, which may change from step to step.
    """

    name: str
    weight: float
    kinds: Kinds
    loss: Callable[[Encoded, Kinds], Losses]
    views: tuple[str, ...] = ()
    passes: tuple[Pass, ...] = ()
    temperatures: tuple[str, ...] = ()
    more: tuple[str, ...] = ()
    ramp: Float[Array, ""] | float = 1.0


class Comparison(NamedTuple):
    """How the rows of a batch are compared.

    Attributes:
      gradient_scale: factor of the gradient that contrasts give to the embeddings.
      group_positives: rows of one group are positives of one another; False: only their own pair.
      equal_texts_match: so are rows with an equal text, where that text is compared.
      local_negatives: negatives come from the rows of the same device.
      negative_floor: see `NegativeSampling`.
      random_negatives: see `NegativeSampling`.
    """

    tiling: Tiling = Tiling()
    gradient_scale: float = 1.0
    group_positives: bool = True
    equal_texts_match: bool = True
    local_negatives: bool = False
    negative_floor: float = 0.0
    random_negatives: float = 0.0


@dataclasses.dataclass
class Encoded:
    """A batch after the towers and the fusion encoder.

    Attributes:
      rows: the batch, with a row for each region.
      views: (kind, name of a view) → the encoded view.
      outputs: (kind, text, view, head) → what the head read.
      exists: pair → `has_negative`, which several terms ask for.
    """

    model: PairModel
    rows: Batch
    comparison: Comparison
    views: dict[tuple[str, str], View] = dataclasses.field(default_factory=dict)
    outputs: dict[tuple[str, str, str, Head], Array] = dataclasses.field(default_factory=dict)
    exists: dict[Pair, Array] = dataclasses.field(default_factory=dict)

    def embedding(self, name: str, kinds: Kinds) -> Float[Array, "batch size"]:
        """The contrastive vectors of a view, rows of several kinds interleaved."""
        found = []
        for kind in kinds:
            vectors = self.views[kind, name].embedding
            if vectors is None:
                raise ValueError(f"the view {name} of {kind} rows has no contrastive vectors")
            found.append(vectors)
        return interleave(found)

    def field(self, name: str, kinds: Kinds) -> Array:
        """A field of the batch, rows of several kinds interleaved."""
        return interleave([self.rows[kind][name] for kind in kinds])

    def read(self, text: str, view: str, head: Head, kinds: Kinds) -> Array:
        """The result of a `Pass`, rows of several kinds interleaved."""
        return interleave([self.outputs[kind, text, view, head] for kind in kinds])

    def select_kinds(self, rows: Array, kinds: Kinds, chosen: Kinds) -> Array:
        """Selects the rows of some kinds from interleaved rows of several."""
        counts = [len(self.rows[kind]["groups"]) for kind in kinds]
        parts = dict(zip(kinds, deinterleave(rows, counts), strict=True))
        return interleave([parts[kind] for kind in chosen])

    def having(self, name: str, kinds: Kinds) -> Kinds:
        """The kinds whose rows have the view."""
        return tuple(kind for kind in kinds if (kind, name) in self.views)

    def present(self, kinds: Kinds) -> Kinds:
        """The kinds that the batch has."""
        return tuple(kind for kind in kinds if kind in self.rows)

    def groups(self, kinds: Kinds, *texts: str) -> Int[Array, "batch ..."]:
        """Numbers of each row: those with one in common are no negatives of one another.

        Args:
          texts: `a` and `b`, those that are compared; rows with an equal one, or of one sentence,
            have a number in common.
        """
        groups = self.field("groups", kinds)
        if not self.comparison.group_positives:
            return jnp.arange(len(groups))
        if not texts:
            return groups
        rows = [self.rows[kind] for kind in kinds]
        numbers = [-1 - 2 * groups]  # sentences have even numbers, texts none below 0
        if any("sentences" in of for of in rows):
            said = [
                -2 - 2 * of["sentences"] if "sentences" in of else -1 - 2 * of["groups"]
                for of in rows
            ]
            numbers.append(interleave(said))
        if self.comparison.equal_texts_match:
            numbers += [interleave([text_numbers(of[f"ids_{x}"]) for of in rows]) for x in texts]
        return jnp.stack(numbers, axis=1)

    def contrast(
        self,
        temperature: str,
        x: Float[Array, "batch size"],
        y: Float[Array, "batch size"],
        groups: Int[Array, "batch ..."],
        row_weights: Float[Array, " batch"] | None = None,
        same_image: tuple[Array, Array] | None = None,
    ) -> Float[Array, ""]:
        """The contrast of two views' vectors; see `contrastive_loss`."""
        scale = self.comparison.gradient_scale
        return contrastive_loss(
            scale_gradient(x, scale),
            scale_gradient(y, scale),
            *self.model.temperature_and_bias(temperature),
            groups,
            row_weights,
            same_image,
            self.comparison.tiling,
        )

    def has_negative(self, pair: Pair) -> Bool[Array, " batch"]:
        """Whether each row of a pair's kinds has a hard negative."""
        if pair not in self.exists:
            groups = self.groups(self.present(pair.kinds), *pair.texts)
            block_size = self._sampling(len(groups)).block_size
            self.exists[pair] = has_negative(groups, block_size, self.comparison.tiling)
        return self.exists[pair]

    def draw(self, pair: Pair, key: PRNGKeyArray, wrong: str) -> dict[tuple[str, str], View]:
        """Hard negatives of each row: `wrong_view` for its text, or `wrong_text` for its view."""
        names = (pair.text, pair.view) if wrong == "wrong_view" else (pair.view, pair.text)
        kinds, tiling = self.present(pair.kinds), self.comparison.tiling
        groups = self.groups(kinds, *pair.texts)
        anchors, candidates = (self.embedding(name, kinds) for name in names)
        drawn = sample_negatives(
            key,
            anchors,
            candidates,
            self.model.temperature_and_bias(pair.temperature)[0],
            groups,
            tiling,
            self._sampling(len(groups)),
        )
        views = [self.views[kind, names[1]] for kind in kinds]
        joined = (interleave([v.tokens for v in views]), interleave([v.mask for v in views]))
        counts = [len(view.mask) for view in views]
        found = (deinterleave(x, counts) for x in gather_rows(tiling.mesh, joined, drawn))
        return {
            (kind, wrong): View(tokens, mask, None)
            for kind, tokens, mask in zip(kinds, *found, strict=True)
        }

    def _sampling(self, rows: int) -> NegativeSampling:
        comparison, mesh = self.comparison, self.comparison.tiling.mesh
        devices = 1 if mesh is None else batch_devices(mesh)
        block = rows // devices if comparison.local_negatives else None
        return NegativeSampling(comparison.negative_floor, block, comparison.random_negatives)


def term_losses(
    model: PairModel,
    batch: Batch,
    terms: Sequence[Term],
    draw_keys: Mapping[Pair, Sequence[PRNGKeyArray]],
    comparison: Comparison,
    deterministic: bool = False,
    microbatches: int = 1,
) -> tuple[Float[Array, ""], Losses]:
    """The weighted sum of the terms that apply to a batch, and all metrics.

    Args:
      model: bound to its parameters; the function runs inside `nn.apply`.
      draw_keys: the pairs that negatives are drawn for, with the keys of wrong views and texts.
      deterministic: switches dropout off.
      microbatches: parts of the batch that go through towers and fusion encoder in turn, see
        `microbatched`; all losses see the whole batch.

    Raises:
      ConfigError: if no term applies.
    """
    active = [term for term in terms if term.weight and any(kind in batch for kind in term.kinds)]
    if not active:
        raise ConfigError(
            f"no objective with a weight applies to {', '.join(batch)} rows; see objective.weights"
        )

    def in_parts(function: Callable, *rows: Any) -> Any:
        return microbatched(model, microbatches, comparison.tiling.mesh, function, *rows)

    rows = {kind: _one_row_each(kind, fields) for kind, fields in batch.items()}
    encoded = Encoded(model, rows, comparison)
    needed, passes = _needs(active, draw_keys, rows)
    encoded.views |= encode_texts(rows, needed, deterministic, in_parts)
    encoded.views |= encode_images(model, batch, needed, deterministic, in_parts)
    for pair, keys in draw_keys.items():
        for wrong, key in zip(("wrong_view", "wrong_text"), keys, strict=True):
            if any((kind, wrong) in needed for kind in pair.kinds):
                encoded.views |= encoded.draw(pair, key, wrong)
    encoded.outputs |= fuse(encoded.views, rows, passes, deterministic, in_parts)

    weighted: list[Array] = []
    metrics: Losses = {}
    for term in active:
        found = term.loss(encoded, encoded.present(term.kinds))
        loss = sum(found[name] for name in (term.name, *term.more) if name in found)
        weighted.append(jnp.asarray(term.weight * term.ramp * loss))
        metrics |= found
    total = sum(weighted[1:], weighted[0])
    return total, {"loss": total, **metrics}


def _one_row_each(kind: str, fields: Mapping[str, Array]) -> Mapping[str, Array]:
    """The fields of a kind, those of regions with a row for each region."""
    if kind != "region":
        return fields
    return {
        name: x if name in VISUAL_FIELDS else x.reshape(-1, *x.shape[2:])
        for name, x in fields.items()
    }


def _needs(
    active: Sequence[Term], pairs: Mapping[Pair, Any], rows: Batch
) -> tuple[set[tuple[str, str]], Passes]:
    """The views (kind, name) and the passes that the terms need, each once."""
    needed: set[tuple[str, str]] = set()
    passes: Passes = {}
    for term in active:
        needed |= {(kind, name) for kind in term.kinds for name in term.views}
        for kinds, text, view, head in term.passes:
            for kind in kinds:
                if kind in rows:
                    heads = passes.setdefault((kind, text, view), [])
                    heads += [head] * (head not in heads)
                    needed |= {(kind, text), (kind, view)}
    for pair in pairs:
        if any(kind in pair.kinds and name.startswith("wrong") for kind, name in needed):
            needed |= {(kind, name) for kind in pair.kinds for name in (pair.view, pair.text)}
    return needed, passes
