"""What a task adds to a pre-trained model: its loss, and how examples are answered."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import ml_collections
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, PRNGKeyArray

from rc3_jax.data.example import example_batch
from rc3_jax.data.tokenizer import PAD_ID
from rc3_jax.downstream.batches import Batches
from rc3_jax.downstream.examples import Example
from rc3_jax.downstream.models import build_classifier, start_params
from rc3_jax.downstream.pretrained import Pretrained
from rc3_jax.evaluation.retrieval import CUTOFFS, recalls
from rc3_jax.models.pair import PairModel, View
from rc3_jax.models.tasks import classification_loss
from rc3_jax.objectives.microbatch import microbatch
from rc3_jax.objectives.views import Context, Pair, contrast, draw_negatives, matching
from rc3_jax.parallel.mesh import from_host
from rc3_jax.systems import SYSTEMS

Batch = Mapping[str, Array]
Scores = dict[str, float]
NOT_VISUAL = ("ids", "label", "present")
"""Fields of a batch that are not of its pictures."""
OBJECTIVE = ml_collections.FrozenConfigDict(
    dict(
        itc_grad_scale=1.0,
        negatives="global",
        negative_floor=0.0,
        pairs=dict(transport="gather", tile=512),
    )
)
"""Of retrieval: contrast and matching over the whole batch, as CCLM's (CCLM.md section 5)."""


class Learner(NamedTuple):
    """A model for a task.

    Attributes:
      params: what training starts from.
      loss: `(params, batch, key)` to the mean loss of a batch; the key is dropout's and of the
        negatives.
      score: `(params, examples)` to the task's scores and the outputs behind them.
      main: the score that checkpoints are selected by.
    """

    params: Any
    loss: Callable[[Any, Batch, PRNGKeyArray], Float[Array, ""]]
    score: Callable[[Any, Sequence[Example]], tuple[Scores, dict[str, np.ndarray]]]
    main: str


def classifier(
    pretrained: Pretrained,
    classes: int,
    pictures: int,
    mesh: Mesh,
    batches: Callable[[Sequence[Example]], Batches],
    seed: int,
) -> Learner:
    """Cross-entropy over the classes; accuracy, in which examples of no class count as wrong.

    A model that was fine-tuned before keeps its head.
    """
    system, vocab_size = pretrained.system, pretrained.tokenizer.vocab_size
    model = build_classifier(
        system, pretrained.model, vocab_size, pictures=pictures, classes=classes, mesh=mesh
    )

    def logits(params, batch, deterministic=True, rngs=None):
        rows = {name: value for name, value in batch.items() if name not in NOT_VISUAL}
        given = {"params": params}
        return model.apply(given, rows, batch["ids"], deterministic=deterministic, rngs=rngs)

    def loss(params, batch, key):
        found = logits(params, batch, False, {"dropout": key})
        return classification_loss(found, batch["label"])

    answer = _replicated(lambda params, batch: jax.nn.softmax(logits(params, batch)), mesh)

    def score(params, examples):
        probabilities, labels = [], []
        for batch in batches(examples).in_order():
            found = np.asarray(answer(params, from_host(batch, mesh)))
            probabilities.append(found[batch["present"]])
            labels.append(batch["label"][batch["present"]])
        probabilities, labels = np.concatenate(probabilities), np.concatenate(labels)
        right = probabilities.argmax(axis=1) == labels
        return {"accuracy": float(right.mean())}, {"probabilities": probabilities, "labels": labels}

    params = pretrained.params
    if pretrained.task is None:
        rows = picture_rows(pretrained.model, pictures)
        ids = np.zeros((1, 4), np.int32)
        drawn = jax.jit(model.init)(jax.random.key(seed), rows, ids)["params"]
        params = start_params(system, params, drawn, pictures)
    return Learner(params, loss, score, "accuracy")


def picture_rows(model: ml_collections.ConfigDict, pictures: int) -> dict[str, np.ndarray]:
    """The visual fields of one empty row about so many pictures."""
    config = ml_collections.ConfigDict(dict(model=model, data=dict(max_length=4)))
    rows = {name: value[:pictures] for name, value in example_batch(config)[0].items()}
    return {name: value[None] for name, value in rows.items()} if pictures > 1 else rows


def retrieval(
    pretrained: Pretrained, mesh: Mesh, batches: Callable[[Sequence[Example]], Batches]
) -> Learner:
    """Contrast and matching; recall of images for texts (IR) and of texts for images (TR)."""
    build = SYSTEMS[pretrained.system].build
    model = build(pretrained.model, pretrained.tokenizer.vocab_size, mesh)

    def losses(model: PairModel, batch, key):
        in_parts = functools.partial(microbatch, model, 1, mesh)
        context = Context(model, OBJECTIVE, False, mesh, in_parts)
        view = model.encode_visual(batch, False)
        states, vector = model.encode_text(batch["ids"], False)
        text = View(states, batch["ids"] != PAD_ID, vector)
        pair = Pair(view, text, batch["label"])
        return (
            contrast(context, pair) + matching(context, pair, draw_negatives(context, pair, key))[0]
        )

    def loss(params, batch, key):
        negatives, dropout = jax.random.split(key)
        apply = nn.apply(losses, model)
        return apply({"params": params}, batch, negatives, rngs={"dropout": dropout})

    def vectors(params, batch):
        def encode(model):
            return model.encode_visual(batch).vector, model.encode_text(batch["ids"])[1]

        return nn.apply(encode, model)({"params": params})

    encode = _replicated(vectors, mesh)

    def score(params, examples):
        images, texts, owners = [], [], []
        for batch in batches(examples).in_order():
            found = (np.asarray(x) for x in encode(params, from_host(batch, mesh)))
            for kept, x in zip((images, texts), found, strict=True):
                kept.append(x[batch["present"]])
            owners.append(batch["label"][batch["present"]])
        images, texts, owners = map(np.concatenate, (images, texts, owners))
        pictures, first = np.unique(owners, return_index=True)  # each image once
        images = images[first]
        found = {"IR": recalls(texts, images, owners, pictures)}
        found["TR"] = recalls(images, texts, pictures, owners)
        scores = {f"{name}@{k}": found[name][k] for name in found for k in CUTOFFS}
        scores["mean"] = float(np.mean(list(scores.values())))
        return scores, {"texts": texts, "images": images, "owners": owners, "pictures": pictures}

    return Learner(pretrained.params, loss, score, "mean")


def _replicated(function: Callable, mesh: Mesh) -> Callable:
    """Compiled; each process reads all of the results."""
    return jax.jit(function, out_shardings=NamedSharding(mesh, PartitionSpec()))
