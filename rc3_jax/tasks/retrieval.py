"""Fine-tuning for retrieval: contrast and matching, and the search of texts and images."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int

from rc3_jax.data.example import Row, stacked
from rc3_jax.evaluation.pair_encoder import PairEncoder, RetrievalData
from rc3_jax.evaluation.ranking import NEVER, Ranks, rank_recalls
from rc3_jax.evaluation.rerank import Retrieved, retrieve
from rc3_jax.models.base import PairModel
from rc3_jax.objectives.pair_terms import contrast_term, matching_term
from rc3_jax.objectives.terms import Comparison, term_losses
from rc3_jax.objectives.tiles import Tiling
from rc3_jax.systems import SYSTEMS
from rc3_jax.tasks.base import Example, Picture
from rc3_jax.tasks.batches import MakeBatches, ReadPicture
from rc3_jax.tasks.head import Scored, TaskHead
from rc3_jax.training.load import LoadedModel


def retrieval_head(
    pretrained: LoadedModel,
    mesh: Mesh,
    batches: MakeBatches,
    read: ReadPicture,
    batch_size: int,
    rerank: int | None,
    threads: int,
) -> TaskHead:
    """Contrast and matching, as CCLM's (CCLM.md section 5), over the whole batch; recall of images for
    texts (IR) and of texts for images (TR).

    Args:
      read: see `picture_fields`.
      rerank: candidates of each query that the matching head ranks in final scores; see `retrieve`.
      threads: threads that read pictures.
    """
    model = pretrained.build(mesh)

    pair = SYSTEMS[pretrained.system].image_text._replace(kinds=("captioned",))
    terms = (contrast_term("itc", 1.0, pair), matching_term("itm", 1.0, pair))
    comparison = Comparison(Tiling("gather", mesh=mesh))

    def losses(model: PairModel, batch, key):
        rows = {**batch, "ids_a": batch["ids"], "groups": batch["label"]}
        keys = {pair: tuple(jax.random.split(key))}
        return term_losses(model, {"captioned": rows}, terms, keys, comparison)[0]

    def loss(params, batch, key):
        negatives, dropout = jax.random.split(key)
        apply = nn.apply(losses, model)
        return apply({"params": params}, batch, negatives, rngs={"dropout": dropout})

    encoder = PairEncoder(model, mesh, batch_size)
    encode = pretrained.tokenizer.encode

    def score(params, examples, final=False):
        data, shown = retrieval_data(examples, encode, read, threads)
        found = retrieve(encoder, params, data, k=rerank if final else 0)
        scores = _recalls(found.by_vectors)
        if final and rerank != 0:
            again = _recalls(found.by_matching)
            scores |= {f"re-ranked {name}": value for name, value in again.items()}
        return Scored(scores, _predictions(examples, shown, found))

    return TaskHead(pretrained.params, loss, score, "mean", batches)


def _recalls(ranks: Ranks) -> dict[str, float]:
    recalls = rank_recalls(ranks)
    return recalls | {"mean": float(np.mean(list(recalls.values())))}


def retrieval_data(
    examples: Sequence[Example],
    encode: Callable[[Sequence[str]], Int[np.ndarray, "texts length"]],
    read: ReadPicture,
    threads: int,
) -> tuple[RetrievalData, list[Picture]]:
    """The search of each example's text for its picture, and the pictures in their order.

    Args:
      encode: texts to padded ids.
      read: see `picture_fields`.
      threads: threads that read pictures.
    """
    pictures = {e.pictures[0].name: e.pictures[0] for e in examples}
    numbers = {name: number for number, name in enumerate(pictures)}
    shown = list(pictures.values())

    def rows(places: Int[np.ndarray, " chosen"]) -> Row:
        with concurrent.futures.ThreadPoolExecutor(threads) as pool:
            return stacked(list(pool.map(read, (shown[place] for place in places))))

    owners = np.array([numbers[e.pictures[0].name] for e in examples])
    ids = encode([e.text for e in examples])
    return RetrievalData(ids, owners, np.arange(len(shown)), rows), shown


def _predictions(
    examples: Sequence[Example], pictures: Sequence[Picture], found: Retrieved
) -> list[dict[str, Any]]:
    """For each text the final rank of its picture, and the picture's rank of its best text; None
    where it was not found.
    """

    def places(ranks):
        return [rank if rank != NEVER else None for rank in ranks.tolist()]

    names = [pictures[number].name for number in found.images]
    of_picture = dict(zip(names, places(found.by_matching.image_to_text), strict=True))
    rows = []
    for example, rank in zip(examples, places(found.by_matching.text_to_image), strict=True):
        name = example.pictures[0].name
        ranks = {"IR rank": rank, "TR rank": of_picture[name]}
        rows.append({"id": example.identity, "picture": name} | ranks)
    return rows
