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

from rc3_jax.data.example import Row, example_batch
from rc3_jax.data.tokenizer import PAD_ID
from rc3_jax.downstream.batches import Batches
from rc3_jax.downstream.examples import Example, Picture
from rc3_jax.downstream.models import build_classifier, start_params
from rc3_jax.downstream.pretrained import Pretrained
from rc3_jax.downstream.scoring import accuracy, best_classes
from rc3_jax.evaluation.pair_encoder import PairEncoder, RetrievalData
from rc3_jax.evaluation.rerank import rank_recalls, retrieve
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
      score: `(params, examples, final=False)` to the task's scores and the outputs behind them;
        final ones may take longer.
      main: the score that checkpoints are selected by.
    """

    params: Any
    loss: Callable[[Any, Batch, PRNGKeyArray], Float[Array, ""]]
    score: Callable[..., tuple[Scores, dict[str, Any]]]
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

    def score(params, examples, final=False):
        del final
        probabilities, labels = [], []
        for batch in batches(examples).in_order():
            found = np.asarray(answer(params, from_host(batch, mesh)))
            probabilities.append(found[batch["present"]])
            labels.append(batch["label"][batch["present"]])
        probabilities, labels = np.concatenate(probabilities), np.concatenate(labels)
        scores = {"accuracy": accuracy(best_classes(probabilities), labels)}
        return scores, {"probabilities": probabilities, "labels": labels}

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
    pretrained: Pretrained,
    mesh: Mesh,
    fields_of: Callable[[Picture], Row],
    batch_size: int,
    rerank: int | None,
) -> Learner:
    """Contrast and matching; recall of images for texts (IR) and of texts for images (TR).

    Args:
      fields_of: the visual fields of a picture.
      rerank: candidates of each query that the matching head orders in final scores; see
        `retrieve`.
    """
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

    encoder = PairEncoder(model, mesh, batch_size)
    encode = pretrained.tokenizer.encode

    def score(params, examples, final=False):
        pictures = {e.pictures[0].name: e.pictures[0] for e in examples}
        numbers = {name: number for number, name in enumerate(pictures)}
        shown = list(pictures.values())

        def rows(places):
            fields = [fields_of(shown[place]) for place in places]
            return {name: np.stack([row[name] for row in fields]) for name in fields[0]}

        data = RetrievalData(
            encode([e.text for e in examples]),
            np.array([numbers[e.pictures[0].name] for e in examples]),
            np.arange(len(shown)),
            rows,
        )
        found = retrieve(encoder, params, data, k=rerank if final else 0)
        scores = rank_recalls(found.by_vectors)
        scores["mean"] = float(np.mean(list(scores.values())))
        if final and rerank != 0:
            again = rank_recalls(found.by_matching)
            scores |= {f"re-ranked {name}": value for name, value in again.items()}
        return scores, {"ranks": found}

    return Learner(pretrained.params, loss, score, "mean")


def _replicated(function: Callable, mesh: Mesh) -> Callable:
    """Compiled; each process reads all of the results."""
    return jax.jit(function, out_shardings=NamedSharding(mesh, PartitionSpec()))
