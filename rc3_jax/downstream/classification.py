"""Fine-tuning for a class: cross-entropy, accuracy and calibration."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import jax
import ml_collections
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float

from rc3_jax.data.example import example_batch
from rc3_jax.downstream.batches import NOT_VISUAL, Batches
from rc3_jax.downstream.examples import Example
from rc3_jax.downstream.learner import Learner, Scored
from rc3_jax.downstream.models import build_classifier, start_params
from rc3_jax.downstream.pretrained import Pretrained
from rc3_jax.downstream.scoring import accuracy, best_classes, expected_calibration_error
from rc3_jax.models.tasks import classification_loss
from rc3_jax.training.checkpoint import check_fit, shapes_of


def classifier(
    pretrained: Pretrained,
    classes: Sequence[str],
    pictures: int,
    mesh: Mesh,
    batches: Callable[[Sequence[Example]], Batches],
    seed: int,
) -> Learner:
    """Cross-entropy over the classes; accuracy, in which examples of no class count as wrong.

    Final scores have the calibration error too. A model that was fine-tuned before keeps its head.
    """
    system, vocab_size = pretrained.system, pretrained.tokenizer.vocab_size
    model = build_classifier(
        system, pretrained.model, vocab_size, pictures=pictures, classes=len(classes), mesh=mesh
    )

    def logits(params, batch, deterministic=True, rngs=None):
        rows = {name: value for name, value in batch.items() if name not in NOT_VISUAL}
        given = {"params": params}
        return model.apply(given, rows, batch["ids"], deterministic=deterministic, rngs=rngs)

    def loss(params, batch, key):
        found = logits(params, batch, False, {"dropout": key})
        return classification_loss(found, batch["label"])

    whole = NamedSharding(mesh, PartitionSpec())
    answer = jax.jit(lambda *given: jax.nn.softmax(logits(*given)), out_shardings=whole)

    def score(params, examples, final=False):
        found = [np.asarray(answer(params, batch)) for batch in batches(examples).in_order()]
        return class_scores(np.concatenate(found)[: len(examples)], examples, classes, final)

    params = pretrained.params
    empty = picture_rows(pretrained.model, pictures), np.zeros((1, 4), np.int32)
    init = functools.partial(model.init, jax.random.key(seed), *empty)
    if pretrained.task is None:
        task = "two_images" if pictures == 2 else "classifier"
        params = start_params(system, params, jax.jit(init)()["params"], task)
    shapes = shapes_of(jax.eval_shape(init)["params"])
    check_fit("the model", shapes_of(params), shapes, "the task's")
    return Learner(params, loss, score, "accuracy")


def class_scores(
    probabilities: Float[np.ndarray, "examples classes"],
    examples: Sequence[Example],
    classes: Sequence[str],
    final: bool,
) -> Scored:
    """Accuracy; of final scores also the calibration error, `ECE`, of probabilities that are
    numbers. See `scoring`."""
    best, labels = best_classes(probabilities), [example.label for example in examples]
    scores = {"accuracy": accuracy(best, labels)}
    if final and not np.isnan(probabilities).any():
        scores["ECE"] = expected_calibration_error(probabilities, labels)
    chosen = [
        (classes[at], float(row[at])) if at >= 0 else (None, None)
        for at, row in zip(best, probabilities, strict=True)
    ]
    predictions = [
        {"id": example.identity, "prediction": name, "probability": probability}
        for example, (name, probability) in zip(examples, chosen, strict=True)
    ]
    return Scored(scores, predictions)


def picture_rows(model: ml_collections.ConfigDict, pictures: int) -> dict[str, np.ndarray]:
    """The visual fields of one empty row about so many pictures."""
    config = ml_collections.ConfigDict(dict(model=model, data=dict(max_length=4)))
    rows = {name: value[:pictures] for name, value in example_batch(config)[0].items()}
    return {name: value[None] for name, value in rows.items()} if pictures > 1 else rows
