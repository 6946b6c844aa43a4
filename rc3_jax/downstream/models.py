"""Models of the tasks on top of pre-trained ones, and how they start.

CCLM has the heads of its published code (CCLM.md section 5, `models/tasks.py`). RC³ reads each
picture of a text by itself; a head turns what it reads into a class, or a decoder like CCLM's reads
the fused tokens and ranks answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import ml_collections
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from rc3_jax.convert.cclm_tasks import decoder_from_trunk, from_trunk
from rc3_jax.data.tokenizer import PAD_ID
from rc3_jax.models.decoder import (
    Answerer,
    Question,
    answer_decoder,
    build_question_answering,
)
from rc3_jax.models.heads import Perceptron
from rc3_jax.models.rc3 import RC3, build_rc3
from rc3_jax.models.tasks import build_pair_classifier, build_two_image_classifier
from rc3_jax.training.checkpoint import check_fit, shapes_of


class RC3Classifier(nn.Module):
    """Tells the class of a text about one picture or two.

    The head reads what pre-training shaped about a pair, of each picture: the fused token that
    tells matches, the fused vector z, and the entrywise product of image and text vector.

    Attributes:
      trunk: its parameters are those of the pre-trained model, as far as they are needed.
      classes: how many there are.
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
          rows: visual fields as `RC3.encode_visual` takes them; of two pictures `[batch, 2, ...]`.
        """
        batch, trunk = len(ids), self.trunk
        pictures = rows["image"].shape[1] if rows["image"].ndim == 5 else 1
        if pictures > 1:
            rows = {name: value.reshape(-1, *value.shape[2:]) for name, value in rows.items()}
        visual = trunk.encode_visual(rows, deterministic)
        text = *trunk.encode_text(ids, deterministic), ids != PAD_ID
        states, vector, mask = (jnp.repeat(x, pictures, axis=0) for x in text)
        fused = trunk.fusion(states, mask, visual.tokens, visual.mask, deterministic)
        # Entries of unit vectors are small: all three come to the size of a token's.
        size = vector.shape[-1]
        z, agreement = trunk.fused_vector(fused, mask), visual.vector * vector
        read = [fused[:, 0].astype(jnp.float32), size**0.5 * z, size * agreement]
        features = jnp.concatenate(read, axis=-1).reshape(batch, -1)
        return Perceptron(self.classes, trunk.fusion.dtype, name="class_head")(features)


class RC3Answerer(Answerer, kw_only=True):
    """Answers a question about one picture.

    Attributes:
      trunk: see `RC3Classifier`.
    """

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


def build_classifier(
    system: str,
    model: ml_collections.ConfigDict,
    vocab_size: int,
    *,
    pictures: int,
    classes: int,
    mesh: Mesh | None = None,
) -> nn.Module:
    """The classifier of a task; called with rows, ids and `deterministic`, it returns logits.

    Args:
      model: `config.model` of the pre-trained one.
      pictures: of a text, 1 or 2.

    Raises:
      ConfigError: for settings that cannot be.
    """
    if system == "rc3":
        return RC3Classifier(build_rc3(model, vocab_size, mesh), classes)
    build = build_two_image_classifier if pictures == 2 else build_pair_classifier
    return build(model, vocab_size, classes, mesh)


def build_answerer(
    system: str, model: ml_collections.ConfigDict, vocab_size: int, mesh: Mesh | None = None
) -> Answerer:
    """The model that ranks answers.

    Args:
      model: `config.model` of the pre-trained one.

    Raises:
      ConfigError: for settings that cannot be.
    """
    if system == "cclm":
        return build_question_answering(model, vocab_size, mesh)
    trunk = build_rc3(model, vocab_size, mesh)
    return RC3Answerer(trunk=trunk, decoder=answer_decoder(trunk.text, trunk.fusion))


def start_params(system: str, trunk: Mapping[str, Any], drawn: Mapping[str, Any], task: str):
    """The parameters that fine-tuning starts from.

    Args:
      trunk: those of the pre-trained model.
      drawn: those of the task's model, at random; of an answerer their shapes suffice.
      task: `classifier`, `two_images` or `answers`, see `from_trunk`.

    Raises:
      ConfigError: lists every parameter that the pre-trained model lacks or has in another shape.
    """
    if system == "cclm":
        return from_trunk(trunk, task, drawn)
    known = {"trunk": trunk}
    if task == "answers":
        known["decoder"] = decoder_from_trunk(trunk)
    wanted, found = {part: drawn[part] for part in known}, flatten_dict(known)
    paths = [path for path in flatten_dict(wanted) if path in found]
    given = unflatten_dict({path: jnp.asarray(found[path]) for path in paths})
    check_fit("the pre-trained model", shapes_of(given), shapes_of(wanted), "the task's model")
    return {**drawn, **given}
