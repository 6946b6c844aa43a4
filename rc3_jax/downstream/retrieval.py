"""Fine-tuning for retrieval: contrast and matching, and the search of texts and images."""

from __future__ import annotations

import concurrent.futures
import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import ml_collections
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int

from rc3_jax.data.example import Row, stacked
from rc3_jax.data.tokenizer import PAD_ID
from rc3_jax.downstream.examples import Example, Picture
from rc3_jax.downstream.learner import Learner, Scored
from rc3_jax.downstream.pretrained import Pretrained
from rc3_jax.evaluation.pair_encoder import PairEncoder, RetrievalData
from rc3_jax.evaluation.rerank import Result, rank_recalls, retrieve
from rc3_jax.evaluation.streaming import NEVER
from rc3_jax.models.pair import PairModel, View
from rc3_jax.objectives.microbatch import microbatch
from rc3_jax.objectives.views import Context, Pair, contrast, draw_negatives, matching
from rc3_jax.systems import SYSTEMS

OBJECTIVE = ml_collections.FrozenConfigDict(
    dict(
        itc_grad_scale=1.0,
        negatives="global",
        negative_floor=0.0,
        pairs=dict(transport="gather", tile=512),
    )
)
"""Of retrieval: contrast and matching over the whole batch, as CCLM's (CCLM.md section 5)."""


def retrieval(
    pretrained: Pretrained,
    mesh: Mesh,
    fields_of: Callable[[Picture], Row],
    batch_size: int,
    rerank: int | None,
    threads: int,
) -> Learner:
    """Contrast and matching; recall of images for texts (IR) and of texts for images (TR).

    Args:
      fields_of: the visual fields of a picture.
      rerank: candidates of each query that the matching head orders in final scores; see
        `retrieve`.
      threads: that read pictures.
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
        data, shown = retrieval_data(examples, encode, fields_of, threads)
        found = retrieve(encoder, params, data, k=rerank if final else 0)
        scores = rank_recalls(found.by_vectors)
        scores["mean"] = float(np.mean(list(scores.values())))
        if final and rerank != 0:
            again = rank_recalls(found.by_matching)
            again["mean"] = float(np.mean(list(again.values())))
            scores |= {f"re-ranked {name}": value for name, value in again.items()}
        return Scored(scores, _predictions(examples, shown, found))

    return Learner(pretrained.params, loss, score, "mean")


def retrieval_data(
    examples: Sequence[Example],
    encode: Callable[[Sequence[str]], Int[np.ndarray, "texts length"]],
    fields_of: Callable[[Picture], Row],
    threads: int,
) -> tuple[RetrievalData, list[Picture]]:
    """The search of each example's text for its picture, and the pictures in their order.

    Args:
      encode, fields_of: texts to padded ids; a picture to its visual fields.
      threads: that read pictures.
    """
    pictures = {e.pictures[0].name: e.pictures[0] for e in examples}
    numbers = {name: number for number, name in enumerate(pictures)}
    shown = list(pictures.values())

    def rows(places: Int[np.ndarray, " chosen"]) -> Row:
        with concurrent.futures.ThreadPoolExecutor(threads) as pool:
            return stacked(list(pool.map(fields_of, (shown[place] for place in places))))

    owners = np.array([numbers[e.pictures[0].name] for e in examples])
    ids = encode([e.text for e in examples])
    return RetrievalData(ids, owners, np.arange(len(shown)), rows), shown


def _predictions(
    examples: Sequence[Example], pictures: Sequence[Picture], found: Result
) -> list[dict[str, Any]]:
    """Of each text, the final rank of its picture among pictures and of the picture's best text.

    None where it was not found.
    """

    def places(ranks):
        return [rank if rank != NEVER else None for rank in ranks.tolist()]

    names = [pictures[number].name for number in found.images]
    of_picture = dict(zip(names, places(found.by_matching.image_to_text), strict=True))
    of_text = places(found.by_matching.text_to_image)
    rows = []
    for example, rank in zip(examples, of_text, strict=True):
        name = example.pictures[0].name
        row = {
            "id": example.identity,
            "picture": name,
            "IR rank": rank,
            "TR rank": of_picture[name],
        }
        rows.append(row)
    return rows
