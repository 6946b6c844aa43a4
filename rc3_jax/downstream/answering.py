"""Fine-tuning a decoder that answers questions: likelihood, and ranking of a closed list."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Int

from rc3_jax.config import ConfigError
from rc3_jax.data.tokenizer import PAD_ID, Tokenizer
from rc3_jax.downstream.batches import NOT_VISUAL, Batches
from rc3_jax.downstream.classification import class_scores, picture_rows
from rc3_jax.downstream.examples import Example
from rc3_jax.downstream.learner import Learner
from rc3_jax.downstream.models import build_answerer, start_params
from rc3_jax.downstream.pretrained import Pretrained
from rc3_jax.models.decoder import Answerer
from rc3_jax.training.checkpoint import check_fit, shapes_of


def answerer(
    pretrained: Pretrained,
    answers: Sequence[str],
    mesh: Mesh,
    batches: Callable[[Sequence[Example]], Batches],
    candidates: int,
    count_first_twice: bool = False,
) -> Learner:
    """Negative log-likelihood of the right answer's tokens, mean over questions; accuracy.

    The decoder starts from the pre-trained model whole, so nothing is drawn; that of a model that
    was fine-tuned before is kept. Answers are ranked as `Answerer.rank` does; their probabilities,
    which final scores give the calibration error of, are shared among the candidates alone.

    Args:
      answers: the closed list; a label is a place in it.
      candidates: how many of them are ranked, at most all.
      count_first_twice: see `Answerer.rank`.

    Raises:
      ConfigError: for fewer than one candidate; see also `start_params`.
    """
    if candidates < 1:
        raise ConfigError(f"candidates={candidates}: the decoder must rank one answer at least")
    system, vocab_size = pretrained.system, pretrained.tokenizer.vocab_size
    model = build_answerer(system, pretrained.model, vocab_size, mesh)
    ids, distinct = encode_answers(answers, pretrained.tokenizer)
    most = min(candidates, len(distinct))

    def question(model: Answerer, batch, deterministic):
        rows = {name: value for name, value in batch.items() if name not in NOT_VISUAL}
        return model.read_question(rows, batch["ids"], deterministic)

    def losses(model: Answerer, batch):
        right = jnp.asarray(ids)[batch["label"]]
        return model.answer_losses(right, question(model, batch, False), False)

    def loss(params, batch, key):
        return jnp.mean(nn.apply(losses, model)({"params": params}, batch, rngs={"dropout": key}))

    def ranked(model: Answerer, batch):
        asked = question(model, batch, True)
        return model.rank(asked, jnp.asarray(ids[distinct]), most, count_first_twice)

    whole = NamedSharding(mesh, PartitionSpec())
    rank = nn.apply(ranked, model)
    answer = jax.jit(lambda params, batch: rank({"params": params}, batch), out_shardings=whole)

    def score(params, examples, final=False):
        found = []
        for batch in batches(examples).in_order():
            places, shares = map(np.asarray, answer(params, batch))
            known = ~np.isnan(shares).any(axis=1, keepdims=True)
            row = np.where(known, np.zeros(len(answers), np.float32), np.nan)
            np.put_along_axis(row, distinct[places], shares, axis=1)
            found.append(row)
        return class_scores(np.concatenate(found)[: len(examples)], examples, answers, final)

    params, one = pretrained.params, np.zeros((1, 4), np.int32)
    rows = picture_rows(pretrained.model, 1)
    shapes = jax.eval_shape(model.init, jax.random.key(0), rows, one, one)["params"]
    if pretrained.task is None:
        params = start_params(system, params, shapes, "answers")
    check_fit("the model", shapes_of(params), shapes_of(shapes), "the task's")
    return Learner(params, loss, score, "accuracy")


def encode_answers(
    answers: Sequence[str], tokenizer: Tokenizer
) -> tuple[Int[np.ndarray, "answers length"], Int[np.ndarray, " distinct"]]:
    """Token ids of answers, and the places of those that are ranked.

    Too long an answer loses its last words, never `</s>`. Of answers that are the same to the
    vocabulary the first alone is ranked: the others cannot be told from it and are never given, as
    exact match is letter for letter.

    Returns:
      int32, from `<s>` to `</s>`, padded with `PAD_ID` to the longest; and int64, ascending.
    """
    ids = tokenizer.encode(answers)
    ids = ids[:, : (ids != PAD_ID).sum(axis=1).max()]
    _, first = np.unique(ids, axis=0, return_index=True)
    return ids, np.sort(first)
