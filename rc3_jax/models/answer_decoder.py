"""Visual question answering: a decoder writes answers, or ranks those of a closed list.

As the published code of CCLM of 2022 does it (CCLM.md section 5).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from rc3_jax.data.tokenizer import PAD_ID
from rc3_jax.models.classifiers import Reader, encoders
from rc3_jax.models.heads import MaskedLMHead, word_logits
from rc3_jax.models.layers import TOKEN_INIT, Stack
from rc3_jax.models.text import TextLayers, TextTower


class Question(NamedTuple):
    """Questions that read their images, and which of their tokens are no padding."""

    tokens: Float[Array, "batch question_length width"]
    mask: Bool[Array, "batch question_length"]

    def rows(self, chosen: Int[Array, " chosen"]) -> Question:
        """Some of the questions, in the order given."""
        return Question(self.tokens[chosen], self.mask[chosen])


class AnswerDecoder(TextLayers):
    """The layers of the text tower again, whose tokens read those before them and the question.

    Attributes:
      encoder: causal.
      tied_decoder: words are predicted with its word embeddings, otherwise with a table of their
        own; see `CCLM`.
    """

    tied_decoder: bool = True

    def setup(self):
        super().setup()
        self.masked_lm_head = MaskedLMHead(self.encoder.dtype)
        self.word_bias = self.param("word_bias", nn.initializers.zeros, (self.vocab_size,))
        if not self.tied_decoder:
            self.decoder = self.param("decoder", TOKEN_INIT, (self.vocab_size, self.width))

    def __call__(
        self, ids: Int[Array, "batch length"], question: Question, deterministic: bool = True
    ) -> Float[Array, "batch length vocab"]:
        """Logits, float32, of the token after each one.

        Args:
          ids: from `<s>` on, padded on the right with `PAD_ID`.
        """
        places = jnp.arange(ids.shape[1]) + self.position_offset
        x = self.embed(ids, places, deterministic)
        x = self.encoder(x, ids != PAD_ID, question.tokens, question.mask, deterministic)
        words = self.word_embedding.embedding if self.tied_decoder else self.decoder
        words = words.astype(self.encoder.dtype)
        return word_logits(self.masked_lm_head(x), words, self.word_bias)


class Answerer(nn.Module, kw_only=True):
    """Answers questions about images: GQA, xGQA.

    Answers are token ids from `<s>` to `</s>`, padded on the right with `PAD_ID`.
    """

    decoder: AnswerDecoder

    def read_question(
        self,
        rows: Mapping[str, Array],
        ids: Int[Array, "batch length"],
        deterministic: bool = True,
    ) -> Question:
        """Questions about the images of a batch's rows."""
        raise NotImplementedError

    def decode(
        self, answers: Int[Array, "batch length"], question: Question, deterministic: bool = True
    ) -> Float[Array, "batch length vocab"]:
        """See `AnswerDecoder`."""
        return self.decoder(answers, question, deterministic)

    def answer_losses(
        self, answers: Int[Array, "batch length"], question: Question, deterministic: bool = True
    ) -> Float[Array, " batch"]:
        """Negative log-likelihood of each answer: the sum over its tokens after `<s>`."""
        targets = answers[:, 1:]
        log_probability = jax.nn.log_softmax(self.decode(answers, question, deterministic)[:, :-1])
        picked = jnp.take_along_axis(log_probability, targets[..., None], axis=2)[..., 0]
        return -jnp.sum(picked * (targets != PAD_ID), axis=1)

    def loss(
        self,
        question: Question,
        answers: Int[Array, "answers length"],
        asked: Int[Array, " answers"],
        weights: Float[Array, " answers"],
        deterministic: bool = True,
    ) -> Float[Array, ""]:
        """Weighted sum of the answers' losses, divided by the number of questions.

        Args:
          asked: row of the question that each answer belongs to.
          weights: such as the share of people who gave the answer; 0 for rows that fill a batch.
        """
        losses = self.answer_losses(answers, question.rows(asked), deterministic)
        return jnp.sum(weights * losses) / len(question.tokens)

    def rank(
        self,
        question: Question,
        answers: Int[Array, "list length"],
        k: int,
        count_first_twice: bool = False,
    ) -> tuple[Int[Array, "batch k"], Float[Array, "batch k"]]:
        """The k answers of a closed list whose first tokens are the likeliest, best first.

        Args:
          answers: all begin with the same token; the second tells first choices apart.
          k: at most the length of the list; of equal first tokens, earlier answers are chosen.
          count_first_twice: an answer's score is its log-likelihood plus once more that of its
            first token, as published; False: its log-likelihood.

        Returns:
          Places in the list, and the softmax of the k answers' scores.
        """
        start = jnp.broadcast_to(answers[0, :1], (len(question.tokens), 1))
        log_first = jax.nn.log_softmax(self.decode(start, question)[:, 0])[:, answers[:, 1]]
        log_first, chosen = jax.lax.top_k(log_first, k)

        # One candidate of every question at a time: what the decoder reads is never repeated.
        def one_candidate(model, carry, answers):
            return carry, model.answer_losses(answers, question)

        loop = nn.scan(one_candidate, variable_broadcast="params", split_rngs={"params": False})
        _, losses = loop(self, (), jnp.take(answers, chosen.T, axis=0))
        scores = -losses.T + (log_first if count_first_twice else 0.0)
        scores, order = jax.lax.top_k(scores, k)
        return jnp.take_along_axis(chosen, order, axis=1), jax.nn.softmax(scores)

    def __call__(
        self,
        rows: Mapping[str, Array],
        ids: Int[Array, "batch length"],
        answers: Int[Array, "batch length"],
        deterministic: bool = True,
    ) -> Float[Array, " batch"]:
        """The loss of an answer to each question. See `read_question` for `rows`."""
        question = self.read_question(rows, ids, deterministic)
        return self.answer_losses(answers, question, deterministic)


class QuestionAnswering(Reader, Answerer, kw_only=True):
    """The answerer of CCLM."""

    def ask(
        self,
        pixels: Float[Array, "batch height width 3"],
        ids: Int[Array, "batch length"],
        mask: Bool[Array, "batch length"] | None = None,
        deterministic: bool = True,
    ) -> Question:
        """Questions about normalised images; see `Reader.read`."""
        mask = ids != PAD_ID if mask is None else mask
        return Question(self.read(pixels, ids, mask, deterministic), mask)

    def read_question(
        self,
        rows: Mapping[str, Array],
        ids: Int[Array, "batch length"],
        deterministic: bool = True,
    ) -> Question:
        """See `normalise` for `rows`."""
        return self.ask(self.normalise(rows), ids, deterministic=deterministic)


def answer_decoder(text: TextTower, fusion: Stack, tied_decoder: bool = True) -> AnswerDecoder:
    """The decoder that starts from a text tower and a fusion encoder, as deep as the latter."""
    return AnswerDecoder(
        fusion.clone(causal=True),
        text.vocab_size,
        text.width,
        text.max_positions,
        text.position_offset,
        tied_decoder,
    )


def build_question_answering(
    config: ml_collections.ConfigDict, vocab_size: int, mesh: Mesh | None = None
) -> QuestionAnswering:
    """The model of VQA as `config.model` says."""
    parts = encoders(config, vocab_size, mesh)
    decoder = answer_decoder(parts["text"], parts["fusion"], config.tied_decoder)
    return QuestionAnswering(**parts, decoder=decoder)
