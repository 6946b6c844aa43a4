"""Models of the tasks on top of pre-trained ones, and the parameters that they start from.

CCLM has the heads of its published code (CCLM.md section 5, `models/classifiers.py`); those of RC³ are
this project's own.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from rc3_jax.convert.cclm_tasks import decoder_from_trunk, from_trunk
from rc3_jax.data.shapes import example_batch
from rc3_jax.data.tokenizer import PAD_ID
from rc3_jax.models import answer_decoder, classifiers
from rc3_jax.models.answer_decoder import Answerer, Question
from rc3_jax.models.heads import MLPHead
from rc3_jax.models.rc3 import RC3, build_rc3
from rc3_jax.training.checkpoint import check_shapes, shapes_of
from rc3_jax.training.load import LoadedModel

CLASSIFIER, TWO_IMAGES, ANSWERS = "classifier", "two_images", "answers"
"""Kinds of models, as `from_trunk` names them."""


class RC3Classifier(nn.Module):
    """Classifies a text about one picture or two, each of which it reads by itself.

    The head reads what pre-training shaped about a pair, for each picture: the fused token that the
    matching head reads, the fused vector z, and the entrywise product of image and text embedding.

    Attributes:
      trunk: its parameters are those of the pre-trained model, as far as they are needed.
    """

    trunk: RC3
    classes: int

    @nn.compact
    def __call__(
        self,
        rows: Mapping[str, Array],
        ids: Int[Array, "batch length"],
        deterministic: bool = True,
    ) -> Float[Array, "batch classes"]:
        """Logits, float32.

        Args:
          rows: visual fields as `RC3.encode_visual` takes them; `[batch, 2, ...]` for two pictures.
        """
        batch, trunk = len(ids), self.trunk
        pictures = rows["image"].shape[1] if rows["image"].ndim == 5 else 1
        if pictures > 1:
            rows = {name: value.reshape(-1, *value.shape[2:]) for name, value in rows.items()}
        visual = trunk.encode_visual(rows, deterministic)
        text = *trunk.encode_text(ids, deterministic), ids != PAD_ID
        states, embedding, mask = (jnp.repeat(x, pictures, axis=0) for x in text)
        fused = trunk.fusion(states, mask, visual.tokens, visual.mask, deterministic)
        assert visual.embedding is not None  # it is, of all images that the trunk encodes
        # Entries of unit vectors are small: all three come to the size of a token's.
        size = embedding.shape[-1]
        z, agreement = trunk.fused_vector(fused, mask), visual.embedding * embedding
        read = [fused[:, 0].astype(jnp.float32), size**0.5 * z, size * agreement]
        features = jnp.concatenate(read, axis=-1).reshape(batch, -1)
        return MLPHead(self.classes, trunk.fusion.dtype, name="class_head")(features)


class RC3Answerer(Answerer, kw_only=True):
    """Answers a question about one picture."""

    trunk: RC3

    def read_question(
        self,
        rows: Mapping[str, Array],
        ids: Int[Array, "batch length"],
        deterministic: bool = True,
    ) -> Question:
        """See `RC3.encode_visual` for `rows`."""
        visual = self.trunk.encode_visual(rows, deterministic)
        states, _ = self.trunk.encode_text(ids, deterministic)
        mask = ids != PAD_ID
        fused = self.trunk.fusion(states, mask, visual.tokens, visual.mask, deterministic)
        return Question(fused, mask)


def task_model(
    pretrained: LoadedModel, kind: str, classes: int, mesh: Mesh, seed: int = 0
) -> tuple[nn.Module, dict[str, Any]]:
    """The model of a task, and the parameters that fine-tuning starts from.

    Args:
      pretrained: if it was fine-tuned for the task already, all of its parameters are kept;
        otherwise a class head is drawn at random, and a decoder starts from the pre-trained model.
      kind: CLASSIFIER, TWO_IMAGES or ANSWERS.

    Raises:
      ConfigError: lists the parameters of another shape than the model's.
    """
    model = _build(pretrained, kind, classes, mesh)
    pictures, ids = 2 if kind == TWO_IMAGES else 1, np.zeros((1, 4), np.int32)
    sizes = ml_collections.ConfigDict(dict(model=pretrained.settings, data=dict(max_length=4)))
    rows = {name: value[:pictures] for name, value in example_batch(sizes)[0].items()}
    if pictures == 2:
        rows = {name: value[None] for name, value in rows.items()}
    inputs = (rows, ids, ids) if kind == ANSWERS else (rows, ids)
    init = functools.partial(model.init, jax.random.key(seed), *inputs)
    params = trunk = pretrained.params
    if pretrained.task is None:
        drawn = jax.jit(init)()["params"]
        if pretrained.system == "cclm":
            params = from_trunk(trunk, kind, drawn)
        else:
            params = drawn | {"trunk": _selected(trunk, drawn["trunk"])}
            params |= {"decoder": decoder_from_trunk(trunk)} if kind == ANSWERS else {}
    shapes = shapes_of(jax.eval_shape(init)["params"])
    check_shapes("the model", shapes_of(params), shapes, "the task's")
    return model, params


def _build(pretrained: LoadedModel, kind: str, classes: int, mesh: Mesh) -> nn.Module:
    settings, words = pretrained.settings, pretrained.tokenizer.vocab_size
    if pretrained.system == "rc3":
        trunk = build_rc3(settings, words, mesh)
        if kind != ANSWERS:
            return RC3Classifier(trunk, classes)
        decoder = answer_decoder.answer_decoder(trunk.text, trunk.fusion)
        return RC3Answerer(trunk=trunk, decoder=decoder)
    if kind == ANSWERS:
        return answer_decoder.build_question_answering(settings, words, mesh)
    if kind == TWO_IMAGES:
        return classifiers.build_two_image_classifier(settings, words, classes, mesh)
    return classifiers.build_pair_classifier(settings, words, classes, mesh)


def _selected(params: Mapping[str, Any], like: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters that `like` has."""
    return {
        name: _selected(params[name], value) if isinstance(value, Mapping) else params[name]
        for name, value in like.items()
    }
