"""Text tower: the XLM-RoBERTa encoder (METHOD.md section 1.1)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int
from pydantic import Field

from rc3_jax.data.tokenizer import PAD_ID
from rc3_jax.models.compute import Compute, Epsilon, TransformerSettings
from rc3_jax.models.hugging_face import ENCODER, LAYER, HuggingFace, Tensors
from rc3_jax.models.layers import TOKEN_INIT, Stack, l2_normalise, masked_mean
from rc3_jax.param_map import ParamMap

TYPES = "embeddings.token_type_embeddings"


BERT_LAYER = LAYER | ParamMap(
    {"self_attention_norm": "attention.output.LayerNorm", "mlp_norm": "output.LayerNorm"}
)
BERT_NAMES = BERT_LAYER.within("encoder/layers", "encoder.layer.{}") | ParamMap(
    {
        "word_embedding": "embeddings.word_embeddings",
        "position_embedding": "embeddings.position_embeddings",
        "type_embedding": TYPES,
        "embedding_norm": "embeddings.LayerNorm",
    }
)
MASKED_LM_NAMES = ParamMap(
    {
        "masked_lm_head/hidden": "lm_head.dense",
        "masked_lm_head/hidden_norm": "lm_head.layer_norm",
        "word_bias": "lm_head.bias",
    }
)
"""XLM-R's head, which predicts words with the word embeddings."""


def _read(tensors: Tensors, template: Mapping, config: Any) -> tuple[dict[str, Any], list[str]]:
    """Takes the first row of the table of token types, the only one that our tower has."""
    table, notes = tensors.get(f"{TYPES}.weight"), []
    if table is not None and table.ndim == 2 and len(table) > 1:
        notes.append(f"the first of {len(table)} embeddings of token types is taken")
        tensors = {**tensors, f"{TYPES}.weight": table[:1]}
    return BERT_NAMES.to_ours(tensors, template), notes


class TextSettings(TransformerSettings):
    """`config.model.text`: XLM-R-base (Conneau et al., arXiv 1911.02116) by default."""

    max_positions: int = Field(514, gt=PAD_ID + 1)
    """Rows of the position table; a text has two tokens fewer at most."""
    epsilon: Epsilon = 1e-5
    """Epsilon of the norms."""
    position_offset: Literal[0, 2] = 2
    """Row of the position table that the first token reads: 2 as XLM-R was trained, padding at row
    1; 0 as the published CCLM of 2022 reads XLM-R's table, which also numbers padding (CCLM.md
    section 1.3)."""
    hugging_face: ClassVar = HuggingFace(
        architecture="XLMRobertaModel",
        model_types={"xlm-roberta": ""},
        fields=ENCODER | dict(max_positions="max_position_embeddings"),
        required=dict(
            hidden_act="gelu", pad_token_id=1, position_embedding_type="absolute", is_decoder=False
        ),
        written=dict(type_vocab_size=1, bos_token_id=0, eos_token_id=2),
        names=BERT_NAMES,
        prefix="roberta.",
        ignored=r"pooler\.|lm_head\.|classifier\.|qa_outputs\.|embeddings\.(position|token_type)_ids",
        read=_read,
    )

    @property
    def room(self) -> int:
        """The most tokens that a text may have."""
        return self.max_positions - self.position_offset

    def build(self, vocab_size: int, compute: Compute) -> TextTower:
        """The tower.

        Raises:
          ConfigError: if the devices cannot share its heads.
        """
        encoder = compute.stack(
            self.depth, self.heads, self.mlp_width, pre_norm=False, epsilon=self.epsilon
        )
        return TextTower(encoder, vocab_size, self.width, self.max_positions, self.position_offset)


class TextLayers(nn.Module):
    """What a text tower and a decoder of texts consist of: embeddings of tokens, and an encoder."""

    encoder: Stack
    vocab_size: int
    width: int = 768
    max_positions: int = 514
    position_offset: int = PAD_ID + 1

    def setup(self):
        def embedding(count):
            # In float32: the gradient of a table sums thousands of rows, which bfloat16 cannot.
            return nn.Embed(count, self.width, embedding_init=TOKEN_INIT)

        self.word_embedding = embedding(self.vocab_size)
        self.position_embedding = embedding(self.max_positions)
        self.type_embedding = embedding(1)
        self.embedding_norm = nn.LayerNorm(self.encoder.epsilon, self.encoder.dtype)
        self.drop = nn.Dropout(self.encoder.dropout)

    def embed(
        self,
        ids: Int[Array, "batch length"],
        positions: Int[Array, "... length"],
        deterministic: bool,
    ) -> Float[Array, "batch length width"]:
        """What enters the encoder."""
        x = (
            self.word_embedding(ids)
            + self.position_embedding(positions)
            + self.type_embedding(jnp.zeros_like(ids))
        )
        return self.drop(self.embedding_norm(x), deterministic=deterministic)


class TextTower(TextLayers):
    """Token ids to token states, as `XLMRobertaModel` of Hugging Face computes them."""

    def __call__(
        self,
        ids: Int[Array, "batch length"],
        deterministic: bool = True,
        mask: Bool[Array, "batch length"] | None = None,
    ) -> Float[Array, "batch length width"]:
        """Token states.

        Args:
          ids: int32, padded on the right with `PAD_ID`.
          mask: the tokens that others read; None for all but padding.
        """
        known = ids != PAD_ID
        if self.position_offset:
            positions = jnp.cumsum(known, axis=1) * known + PAD_ID
        else:
            positions = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
        x = self.embed(ids, positions, deterministic)
        return self.encoder(x, known if mask is None else mask, deterministic=deterministic)


class SentenceEncoder(nn.Module):
    """Texts to unit vectors: the mean of the token states, or the first one (`cls`).

    With fixed parameters, it measures how relevant weak texts are to one another.
    """

    text: TextTower
    pooling: Literal["mean", "cls"] = "mean"

    def __call__(self, ids: Int[Array, "batch length"]) -> Float[Array, "batch width"]:
        """Args: ids: int32, padded on the right with `PAD_ID`."""
        states = self.text(ids)
        mean = self.pooling == "mean"
        return l2_normalise(masked_mean(states, ids != PAD_ID) if mean else states[:, 0])
