"""Fine-tuning for a class: a class head, or a decoder that ranks the answers of a closed list."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from rc3_jax.data.tokenizer import PAD_ID, Tokenizer
from rc3_jax.models.answer_decoder import Answerer
from rc3_jax.models.classifiers import classification_loss
from rc3_jax.tasks.base import Example
from rc3_jax.tasks.batches import Batch, MakeBatches, visual_fields
from rc3_jax.tasks.head import Scored, TaskHead
from rc3_jax.tasks.models import ANSWERS, CLASSIFIER, TWO_IMAGES, task_model
from rc3_jax.tasks.scoring import accuracy, best_classes, expected_calibration_error
from rc3_jax.training.load import LoadedModel


def class_head(
    pretrained: LoadedModel,
    classes: Sequence[str],
    pictures: int,
    mesh: Mesh,
    batches: MakeBatches,
    seed: int,
) -> TaskHead:
    """A head with a logit for each class: cross-entropy, and accuracy.

    A model that was fine-tuned before keeps its head.

    Args:
      pictures: of a text, 1 or 2.
    """
    kind = TWO_IMAGES if pictures == 2 else CLASSIFIER
    model, params = task_model(pretrained, kind, len(classes), mesh, seed)

    def loss(model: nn.Module, batch: Batch) -> Float[Array, ""]:
        logits = model(visual_fields(batch), batch["ids"], deterministic=False)
        return classification_loss(logits, batch["label"])

    def probabilities(model: nn.Module, batch: Batch) -> Float[Array, "batch classes"]:
        return jax.nn.softmax(model(visual_fields(batch), batch["ids"], deterministic=True))

    return _head(model, params, loss, probabilities, classes, mesh, batches)


def answer_head(
    pretrained: LoadedModel,
    answers: Sequence[str],
    mesh: Mesh,
    batches: MakeBatches,
    candidates: int,
    count_first_twice: bool = False,
) -> TaskHead:
    """A decoder of answers: negative log-likelihood of the right answer's tokens, mean over questions,
    and accuracy.

    The decoder starts from the pre-trained model; that of a model that was fine-tuned before is kept.
    Answers are ranked as `Answerer.rank` does; their probabilities are shared among the candidates
    alone.

    Args:
      answers: the closed list; a label is a place in it.
      candidates: how many of them are ranked, at most all.
      count_first_twice: see `Answerer.rank`.
    """
    model, params = task_model(pretrained, ANSWERS, 0, mesh)
    ids, distinct = encode_answers(answers, pretrained.tokenizer)
    most = min(candidates, len(distinct))

    def loss(model: Answerer, batch: Batch) -> Float[Array, ""]:
        question = model.read_question(visual_fields(batch), batch["ids"], deterministic=False)
        right = jnp.asarray(ids)[batch["label"]]
        return jnp.mean(model.answer_losses(right, question, deterministic=False))

    def probabilities(model: Answerer, batch: Batch) -> Float[Array, "batch answers"]:
        question = model.read_question(visual_fields(batch), batch["ids"])
        ranked = model.rank(question, jnp.asarray(ids[distinct]), most, count_first_twice)
        places, shares = jnp.asarray(distinct)[ranked[0]], ranked[1]
        known = ~jnp.isnan(shares).any(axis=1, keepdims=True)
        none = jnp.zeros((len(shares), len(answers)), shares.dtype)
        filled = jnp.put_along_axis(none, places, shares, axis=1, inplace=False)
        return jnp.where(known, filled, jnp.nan)

    return _head(model, params, loss, probabilities, answers, mesh, batches)


def _head(
    model: nn.Module,
    params: dict,
    loss: Callable[[Any, Batch], Array],
    probabilities: Callable[[Any, Batch], Array],
    classes: Sequence[str],
    mesh: Mesh,
    batches: MakeBatches,
) -> TaskHead:
    """A head whose functions are given the model, of whichever class it is, with its parameters."""

    def apply_loss(params, batch, key):
        return nn.apply(loss, model)({"params": params}, batch, rngs={"dropout": key})

    apply = nn.apply(probabilities, model)
    whole = NamedSharding(mesh, PartitionSpec())
    answer = jax.jit(lambda params, batch: apply({"params": params}, batch), out_shardings=whole)

    def score(params, examples, final=False):
        found = [np.asarray(answer(params, batch)) for batch in batches(examples).in_order()]
        return class_scores(np.concatenate(found)[: len(examples)], examples, classes, final)

    return TaskHead(params, apply_loss, score, "accuracy", batches)


def class_scores(
    probabilities: Float[np.ndarray, "examples classes"],
    examples: Sequence[Example],
    classes: Sequence[str],
    final: bool,
) -> Scored:
    """Accuracy, in which examples without a class count as wrong, and predictions.

    Final scores have the calibration error too, `ECE`, unless a probability is NaN.
    """
    best, labels = best_classes(probabilities), [example.label for example in examples]
    scores = {"accuracy": accuracy(best, labels)}
    if final and not np.isnan(probabilities).any():
        scores["ECE"] = expected_calibration_error(probabilities, labels)
    predictions = [
        {
            "id": example.identity,
            "prediction": classes[at] if at >= 0 else None,
            "probability": float(row[at]) if at >= 0 else None,
        }
        for example, at, row in zip(examples, best, probabilities, strict=True)
    ]
    return Scored(scores, predictions)


def encode_answers(
    answers: Sequence[str], tokenizer: Tokenizer
) -> tuple[Int[np.ndarray, "answers length"], Int[np.ndarray, " distinct"]]:
    """Token ids of answers, and the places of those that are ranked.

    Too long an answer loses its last words, never `</s>`. Of answers with the same ids the first alone
    is ranked: the others cannot be told from it, and exact match is letter for letter.

    Returns:
      int32, from `<s>` to `</s>`, padded with `PAD_ID` to the longest; and int64, ascending.
    """
    ids = tokenizer.encode(answers)
    ids = ids[:, : (ids != PAD_ID).sum(axis=1).max()]
    _, first = np.unique(ids, axis=0, return_index=True)
    return ids, np.sort(first)
