"""How downstream models start from a pre-trained CCLM (CCLM.md section 5)."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import numpy as np

from rc3_jax.settings import check_choice

ENCODERS = ("text", "vision", "fusion")
TASKS = ("retrieval", "classifier", "two_images", "answers")
"""`CCLM` itself, `PairClassifier`, `TwoImageClassifier`, `QuestionAnswering`."""
WORD_HEAD = ("masked_lm_head", "word_bias", "decoder")
"""`decoder`: a word table of its own, in X²VLM only."""


def from_trunk(trunk: Mapping, task: str, fresh: Mapping) -> dict:
    """The parameters that training of a task starts from.

    Each fusion layer becomes both layers of a pair that reads two images, and a layer of the
    answer decoder, which also starts with the text tower's embeddings and the word head.

    Args:
      trunk: parameters of `CCLM`.
      task: one of `TASKS`.
      fresh: new parameters of the task's model, for what the trunk does not have.

    Raises:
      ConfigError: for another task.
    """
    check_choice("the task", task, TASKS)
    if task == "retrieval":
        return dict(trunk)
    params = {**fresh, **{part: trunk[part] for part in ENCODERS}}
    if task == "two_images":
        twice = jax.tree.map(lambda x: np.repeat(np.asarray(x), 2, axis=0), trunk["fusion"])
        params["fusion"] = split_pairs(twice)
    if task == "answers":
        params["decoder"] = decoder_from_trunk(trunk)
    return params


def decoder_from_trunk(trunk: Mapping) -> dict:
    """The parameters that an `AnswerDecoder` starts from, those of `CCLM` or `RC3`."""
    head = {name: trunk[name] for name in WORD_HEAD if name in trunk}
    return {**trunk["text"], "encoder": trunk["fusion"], **head}


def split_pairs(stack: Mapping) -> dict:
    """Parameters of a `PairedStack` from those of a `Stack` of all layers.

    The keys and values are those of the first layer of each pair.
    """
    first = jax.tree.map(lambda x: x[::2], stack["layers"])
    second = jax.tree.map(lambda x: x[1::2], stack["layers"])
    shared = {name: first["cross_attention"][name] for name in ("key", "value")}
    own = {
        name: {**half, "cross_attention": {k: half["cross_attention"][k] for k in ("query", "out")}}
        for name, half in (("first", first), ("second", second))
    }
    return {"layers": {**shared, **own}}
