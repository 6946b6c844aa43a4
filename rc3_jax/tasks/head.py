"""What a task adds to a pre-trained model: its loss, and how it answers examples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxtyping import Array, Float, PRNGKeyArray

from rc3_jax.tasks.batches import Batch, MakeBatches


class Scored(NamedTuple):
    """What a model makes of some examples.

    Attributes:
      scores: name → score; shares, not percent.
      predictions: a row for each example, in their order; values that JSON can hold. All have its
        `id`.
    """

    scores: dict[str, float]
    predictions: list[dict[str, Any]]


class TaskHead(NamedTuple):
    """A pre-trained model with the head of a task.

    Attributes:
      params: what training starts from.
      loss: `(params, batch, key)` to the mean loss of a batch; the key is dropout's and of the
        negatives.
      score: `(params, examples, final=False)` to what a model with these parameters makes of them;
        final scores may take longer.
      main: the score that checkpoints are selected by.
      batches: `(examples, batch_size=...)` to their batches, of the configured size by default.
    """

    params: Any
    loss: Callable[[Any, Batch, PRNGKeyArray], Float[Array, ""]]
    score: Callable[..., Scored]
    main: str
    batches: MakeBatches
